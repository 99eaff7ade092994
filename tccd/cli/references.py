"""References as a user types them -> what is contrasted with.

no-vision                      one reference
blank-image=black              with its setting
no-vision,-0.5*text-centroid   two at once, with a weight each
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

from tccd.cli.options import parse_numbers
from tccd.data.records import is_text
from tccd.errors import ConfigError

if TYPE_CHECKING:
    from tccd.centroids.bank import CentroidBank
    from tccd.decoding.config import Rule
    from tccd.decoding.huggingface import Contrast
    from tccd.modality import Modality

TEXT, VISION, MEAN = "text-centroid", "vision-centroid", "mean-vision"

#: Every reference's name -> what may follow it behind `=`; empty where nothing may.
NAMES: Mapping[str, str] = {
    TEXT: "",
    VISION: "",
    "no-vision": "",
    MEAN: "",
    "blank-image": "COLOR or FILE",
    "noised-image": "STEP",
    "prompt": "",
    "early-exit": "LAYERS",
}

#: Where a question's own words stand in `--other-prompt`.
PLACE = "{prompt}"

_MODALITY: Mapping[str, Modality] = {TEXT: "text", VISION: "vision"}
_TERM = re.compile(r"(?:([+-]?\d+(?:\.\d*)?)\s*\*)?\s*([^=*]*?)\s*(?:=(.*))?", re.DOTALL)


class Batch(NamedTuple):
    """What some references are made of: the processor, the prompts with their pictures, and what they became.

    Attributes:
        processor: the model's.
        images: a list of PIL images for each prompt.
        prompts: texts.
        inputs: what the model is given, by name.
    """

    processor: Any
    images: list[list[Any]]
    prompts: list[str]
    inputs: Mapping[str, Any]


#: A reference, as `tccd.decoding.references` makes it; or how to make it for a batch, where it depends on that.
Source: TypeAlias = Any


@dataclass(frozen=True)
class Term:
    """One reference: its name, what stood behind `=`, and its weight."""

    name: str
    value: str | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Wanted:
    """What to contrast with, and the options that say how.

    Attributes:
        terms: references, one or several at once.
        bank: file of centroids.
        layers: by modality, where centroids are taken.
        alpha_interp: what an erased stream keeps.
        other_prompt: other words, with `{prompt}` for the question's own.
        text_only: ask them without the pictures.
        seed: of the noise.

    Raises:
        ConfigError: an option belongs to none of the references, or one of them lacks an option.
    """

    terms: tuple[Term, ...]
    bank: Path | None = None
    layers: Mapping[Modality, int] = field(default_factory=dict)
    alpha_interp: float | None = None
    other_prompt: str | None = None
    text_only: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        of_layer = tuple(name for name, modality in _MODALITY.items() if modality in self.layers)
        for option, given, names in (
            ("--bank", self.bank, (TEXT, VISION, MEAN)),
            ("--layer", self.layers or None, of_layer),
            ("--alpha-interp", self.alpha_interp, (TEXT, VISION)),
            ("--other-prompt", self.other_prompt, ("prompt",)),
            ("--text-only", self.text_only or None, ("prompt",)),
            ("--seed", self.seed, ("noised-image",)),
        ):
            if given is not None and not set(names) & set(self.names):
                raise ConfigError(
                    f"{option} is of {' and '.join(names)}, but --reference is {', '.join(self.names)}; leave it "
                    "out, or give another --reference"
                )
        if self.alpha_interp is not None and not 0 <= self.alpha_interp <= 1:
            raise ConfigError(f"alpha_interp is {self.alpha_interp}; expected 0 to 1")
        banked = [name for name in self.names if name in (TEXT, VISION, MEAN)]
        if banked and self.bank is None:
            layers = "" if banked[0] == MEAN else f" --layers {_MODALITY[banked[0]]}=LAYER"
            raise ConfigError(f"{banked[0]} needs --bank FILE, which tccd fit{layers} makes; no-vision needs none")
        words = self.other_prompt or ""
        if "prompt" in self.names and not (words.strip() and is_text(words)):
            raise ConfigError(
                f"prompt needs --other-prompt TEXT, in which {PLACE} stands for the question, as in "
                f'--other-prompt "You are a confused object detector. {PLACE}"'
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Of the references."""
        return tuple(term.name for term in self.terms)

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the references."""
        return tuple(term.weight for term in self.terms)

    def other(self, prompt: str) -> str:
        """A prompt in the other words."""
        return (self.other_prompt or "").replace(PLACE, prompt)


def parse_references(text: str, weights: str | None = None) -> tuple[Term, ...]:
    """`no-vision,-0.5*blank-image=black` -> terms; `+` stands between them as well as a comma.

    Args:
        text: names; `=` and a setting may follow, and a weight and `*` come before.
        weights: numbers with commas between, one a reference, in place of those in `text`.

    Raises:
        ConfigError: an unknown name, one that stands twice, a setting that it does not take; a weight that is 0,
            given twice, or missing.
    """
    terms = [_term(part, text) for part in re.split("[,+]", text)]
    names = [term.name for term in terms]
    if len(set(names)) < len(names):
        raise ConfigError(f"--reference {text!r}; expected each name once")
    if weights is not None:
        if any("*" in part for part in re.split("[,+]", text)):
            raise ConfigError(f"--reference {text!r} holds weights, and so does --weights; give them once")
        given = parse_numbers(weights, "--weights")
        if len(given) != len(terms):
            raise ConfigError(
                f"--weights {weights!r} are {len(given)} for {len(terms)} of --reference; expected one for each"
            )
        terms = [Term(term.name, term.value, weight) for term, weight in zip(terms, given, strict=True)]
    for term in terms:
        if not 0 < abs(term.weight) < 1e30:
            raise ConfigError(
                f"{term.name} has the weight {term.weight:g}; expected a finite number other than 0: leave the "
                "reference out instead"
            )
    return tuple(terms)


def _term(part: str, text: str) -> Term:
    found = _TERM.fullmatch(part.strip())
    weight, name, value = found.groups() if found else (None, part.strip(), None)
    if name not in NAMES:
        raise ConfigError(
            f"--reference {text[:200]!r}: no reference is called {name[:200]!r}; expected one of "
            f"{', '.join(NAMES)}; two at once as in no-vision,-0.5*text-centroid"
        )
    if value is not None and not NAMES[name]:
        raise ConfigError(f"--reference {name}={value[:200]}: {name} takes nothing behind its name")
    if value is not None and not value.strip():
        raise ConfigError(f"--reference {name}=; expected {name}={NAMES[name]}, or {name}")
    return Term(name, value and value.strip(), 1.0 if weight is None else float(weight))


def parse_layer(text: str | None) -> dict[Modality, int]:
    """`12` -> that layer for both modalities; `text=12,vision=16` -> one each; none where nothing is given.

    Raises:
        ConfigError: anything else.
    """
    if text is None:
        return {}
    if re.fullmatch(r"\s*\d{1,4}\s*", text):
        return {"text": int(text), "vision": int(text)}
    found: dict[Modality, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(text|vision)\s*=\s*(\d{1,4})\s*", part)
        if match is None or match[1] in found:
            raise ConfigError(f"--layer {text[:200]!r}; expected a layer, from 0, as in 12 or text=12,vision=16")
        found[cast("Modality", match[1])] = int(match[2])
    return found


def make_sources(wanted: Wanted, bank: CentroidBank | None) -> list[Source]:
    """What runs: references, or how each is made for a batch.

    Args:
        wanted: what was asked for.
        bank: what `wanted.bank` holds.

    Raises:
        ConfigError: a setting can't be read, or the bank's layer is ambiguous.
        BankMismatchError: the bank lacks what a reference is made of.
        DataError: the picture of blank-image can't be read.
    """
    return [_source(term, wanted, bank) for term in wanted.terms]


def _source(term: Term, wanted: Wanted, bank: CentroidBank | None) -> Source:
    from tccd.data.pictures import GREY
    from tccd.decoding import references as made

    value = term.value
    if bank is not None and term.name in _MODALITY:
        layer = _layer(bank, term.name, wanted.layers.get(_MODALITY[term.name]))
        kept = {} if wanted.alpha_interp is None else {"alpha_interp": wanted.alpha_interp}
        return (made.text_centroid if term.name == TEXT else made.vision_centroid)(bank, layer, **kept)
    if bank is not None and term.name == MEAN:
        return made.mean_vision(bank)
    if term.name == "early-exit":
        return made.early_exit("low" if value is None else _exits(value))
    if term.name == "blank-image":
        shown = GREY if value is None else _color(value)
        return lambda batch: made.blank_image(batch.processor, batch.images, batch.prompts, shown)
    if term.name == "noised-image":
        step, seed = (made.DIFFUSION_STEPS - 1 if value is None else _step(value)), wanted.seed or 0
        return lambda batch: made.noised_image(batch.inputs, step, seed)
    if term.name == "prompt":
        return lambda batch: made.other_prompt(
            batch.processor,
            [wanted.other(prompt) for prompt in batch.prompts],
            None if wanted.text_only else batch.images,
        )
    return made.no_vision()


def _layer(bank: CentroidBank, name: str, asked: int | None) -> int:
    modality = _MODALITY[name]
    found = bank.layers(modality)
    if asked is not None:
        bank.centroids(modality, asked)
        return asked
    if not found:
        raise ConfigError(
            f"the bank holds no {modality} centroids, which {name} needs ({bank!r}); fit them (tccd fit --layers "
            f"{modality}=LAYER), or give another --reference"
        )
    if len(found) > 1:
        raise ConfigError(f"the bank holds {modality} centroids of layers {list(found)}; say which by --layer")
    return found[0]


def _color(text: str) -> Any:
    """A color's red, green and blue, or a picture."""
    from PIL import ImageColor

    from tccd.data.pictures import open_image

    try:
        return ImageColor.getrgb(text)[:3]
    except ValueError as error:
        if os.path.isfile(text):
            return open_image(Path(text))
        raise ConfigError(
            f"--reference blank-image={text[:200]}; expected a color such as grey, black or #7f7f7f, or a "
            "picture's file"
        ) from error


def _step(text: str) -> int:
    if not re.fullmatch(r"\d{1,3}", text):
        raise ConfigError(f"--reference noised-image={text[:200]}; expected a step of the noise, 0 to 999")
    return int(text)


def _exits(text: str) -> str | int | tuple[int, ...]:
    if text in ("low", "high"):
        return text
    if re.fullmatch(r"-1|\d{1,4}", text):
        return int(text)
    ends = re.fullmatch(r"(\d{1,4})-(\d{1,4})", text)
    if ends is None or int(ends[1]) > int(ends[2]):
        raise ConfigError(
            f"--reference early-exit={text[:200]}; expected low, high, a decoder layer, or some as in 4-8"
        )
    return tuple(range(int(ends[1]), int(ends[2]) + 1))


def contrast_with(
    model: Any, sources: Sequence[Source], weights: Sequence[float], rule: Rule
) -> Callable[[Batch], Contrast]:
    """How to decode a batch; made once, where nothing depends on the batch.

    Args:
        model: as for `Contrast`; so are the others.
        sources: references, or how they are made.
        weights: one a source.
        rule: of the contrast.

    Raises:
        ConfigError: as `Contrast`, at once for all that is known before the first batch.
        UnsupportedModelError: as `Contrast`.
    """
    from tccd.decoding.huggingface import Contrast

    known = {i: source for i, source in enumerate(sources) if not callable(source)}
    if known:
        whole = Contrast(model, list(known.values()), weights=[weights[i] for i in known], rule=rule)
        if len(known) == len(sources):
            return lambda batch: whole

    def make(batch: Batch) -> Contrast:
        every = [source(batch) if callable(source) else source for source in sources]
        return Contrast(model, every, weights=weights, rule=rule)

    return make
