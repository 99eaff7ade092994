"""What a run contrasts with, made of what the user named: see `probes.references` for the names."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import ImageColor

from probes.asking.asked import Asked, Source
from probes.references import KINDS, TEXT, VISION, Term, parse
from tccd.centroids.bank import CentroidBank
from tccd.decoding.references import blank_image, early_exit, mean_vision, no_vision, noised_image, other_prompt
from tccd.engine import Erasure, Reference
from tccd.errors import BankMismatchError, ConfigError
from tccd.modality import Modality

#: Bank's name, modality, layer, alpha_interp -> the erasure; made once for cells and contrasts alike.
Erasing = Callable[[str, Modality, int, float], Erasure]


@dataclass(frozen=True)
class Variant:
    """A reference with its own settings, or several at once.

    Attributes:
        name: of its kind; of several, with `+` between.
        parameters: its settings by name, of `probes.references.PARAMETERS`.
        sources: what runs.
        weights: one a source.
    """

    name: str
    parameters: Mapping[str, Any]
    sources: tuple[Source, ...]
    weights: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class Shelf:
    """What references may be made of.

    Attributes:
        banks: by the name that reports give them.
        layers: modality -> layers to erase at.
        alphas: values of `alpha_interp`.
        erasing: makes erasures.
    """

    banks: Mapping[str, CentroidBank]
    layers: Mapping[str, Sequence[int]]
    alphas: Sequence[float]
    erasing: Erasing

    def variants(self, text: str) -> list[Variant]:
        """Every reference that one name stands for; of several at once those of one bank, layer and alpha_interp.

        Args:
            text: as `probes.references.parse` takes it.

        Raises:
            ConfigError: an unknown name or parameter, or a bank or layer that is missing.
            BankMismatchError: a bank lacks what the reference is made of.
        """
        terms = parse(text)
        found = []
        for parts in itertools.product(*(list(self._of(term)) for term in terms)):
            merged = dict(item for part in parts for item in part.parameters.items())
            if all(part.parameters.items() <= merged.items() for part in parts):
                weights = tuple(term.weight for term in terms)
                more = {} if weights == (1.0,) else {"weights": list(weights)}
                sources = tuple(source for part in parts for source in part.sources)
                found.append(Variant("+".join(part.name for part in parts), more | merged, sources, weights))
        return found

    def _of(self, term: Term) -> Iterator[Variant]:
        kind = term.kind
        if kind.needs_bank and not self.banks:
            raise ConfigError(f"reference {kind.name} is made of a bank, and none was given; fit one (tccd fit)")
        if kind.name in _CENTROIDS:
            yield from self._erasures(kind.name)
        elif kind.name == "mean-vision":
            yield from self._means()
        else:
            value, source = _MADE[kind.name](term.value)
            yield Variant(kind.name, {kind.parameter: value} if kind.parameter else {}, (source,))

    def _erasures(self, name: str) -> Iterator[Variant]:
        modality = _CENTROIDS[name]
        if not self.layers.get(modality):
            raise ConfigError(f"reference {name} erases {modality}, but no layer of {modality} is asked for")
        filled = {bank: of for bank, of in self.banks.items() if of.tensors}
        for (bank, of), layer, alpha in itertools.product(filled.items(), self.layers[modality], self.alphas):
            k = of.centroids(modality, layer).k
            parameters = {"layer": layer, "k": k, "bank": bank, "alpha_interp": alpha}
            yield Variant(name, parameters, (self.erasing(bank, modality, layer, alpha),))

    def _means(self) -> Iterator[Variant]:
        fitted = {bank: of for bank, of in self.banks.items() if of.vision_mean is not None}
        if not fitted:
            raise BankMismatchError(
                "reference mean-vision: no bank holds a vision mean; fit one again with `tccd fit`, which keeps it"
            )
        for bank, of in fitted.items():
            yield Variant("mean-vision", {"bank": bank}, (mean_vision(of),))


def able(banks: Collection[CentroidBank]) -> tuple[str, ...]:
    """Names of the references that can be made with these banks, or with none."""
    held = {name: any(bank.layers(modality) for bank in banks) for name, modality in _CENTROIDS.items()}
    held["mean-vision"] = any(bank.vision_mean is not None for bank in banks)
    return tuple(
        name for name, kind in KINDS.items() if held.get(name, kind.default is not None or not kind.parameter)
    )


def _blank(color: str) -> tuple[str, Source]:
    try:
        rgb = ImageColor.getrgb(color)[:3]
    except ValueError as error:
        raise ConfigError(
            f"reference blank-image={color}; expected a color such as grey, black or #7f7f7f"
        ) from error

    def make(asked: Asked) -> Reference:
        prompts = [sample.prompt for sample in asked.samples]
        return blank_image(asked.processor, [[image] for image in asked.images], prompts, rgb)

    return color, make


def _noised(step: str) -> tuple[int, Source]:
    if not step.isdecimal() or int(step) > 999:
        raise ConfigError(f"reference noised-image={step}; expected a step of the noise, 0 to 999")
    return int(step), lambda asked: noised_image(asked.inputs, int(step))


def _exit(layers: str) -> tuple[str | int, Source]:
    if layers in ("low", "high"):
        return layers, early_exit(layers)
    if not layers.removeprefix("-").isdecimal():
        raise ConfigError(f"reference early-exit={layers}; expected low, high or a decoder layer")
    return int(layers), early_exit(int(layers))


def _words(words: str) -> tuple[str, Source]:
    def make(asked: Asked) -> Reference:
        prompts = [words.replace("{prompt}", sample.prompt) for sample in asked.samples]
        return other_prompt(asked.processor, prompts, [[image] for image in asked.images])

    return words, make


_CENTROIDS: Mapping[str, Modality] = {TEXT: "text", VISION: "vision"}
_MADE: Mapping[str, Callable[[str], tuple[Any, Source]]] = {
    "no-vision": lambda value: (value, no_vision()),
    "blank-image": _blank,
    "noised-image": _noised,
    "early-exit": _exit,
    "prompt": _words,
}
