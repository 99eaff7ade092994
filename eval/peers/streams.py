"""The streams of one model: what gives each question its next-token logits, in groups that are kept together."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from eval import zoo
from eval.banks import fit_banks
from eval.peers import outside
from eval.peers.kept import Folder
from eval.peers.questions import Questions, training
from probes.asking.asked import Asked, Source
from probes.asking.forward import run_streams
from probes.replacement.controls import Replace, random_centroid, random_direction
from tccd import CentroidBank, fit_bank
from tccd.centroids.replacement import Centroids
from tccd.decoder import find_decoder
from tccd.decoding.references import (
    blank_image,
    centroid_erasure,
    early_exit,
    mean_vision,
    no_vision,
    noised_image,
)
from tccd.engine import EMBEDDINGS, Reference
from tccd.inputs import encode

LAYERS, KS, KEPT = (0, 1, 2, 3, 4), (4, 16), (0.0, 0.4)
"""What centroids are tried: the layers that they stand after, their number, and `alpha_interp`."""
VISION_LAYERS, VISION_K, CONTROL_K = (0, 2, 4), 16, 16
"""Vision centroids run nearly all rows, and controls say little more at another K."""
COLORS = {"grey": (128, 128, 128), "black": (0, 0, 0)}
STEPS = (500, 999)
#: Other words for the question, those that make sense in a vocabulary of 80: none, and the question after a "not",
#: which is a negative prompt as far as these models know any.
PROMPTS: Mapping[str, Callable[[str], str]] = {
    "none": lambda question: "",
    "not": lambda question: f"not {question}",
}
FITTED_QUESTIONS, FITTED_PICTURES = 800, 50
"""Of each source: train questions that centroids are fitted on, and train pictures that the mean image is."""
#: Raised where a group's streams are made in another way than before, so that kept ones are made anew.
VERSION: Mapping[str, int] = {"mean-vision": 2}
BLIND = ("no-vision", "mean-vision", "blank-image", "text-only", "marginal")
BATCH = 100

#: Logits of a batch's next tokens, each of shape (batch, vocabulary), in the order of the group's streams.
Run = Callable[[Asked], list[Tensor]]


@dataclass(frozen=True)
class Group:
    """Streams that are run together.

    Attributes:
        name: of the file that they are kept in.
        streams: their names.
        run: their logits for a batch.
        blind: they depend on the question alone: each wording is asked once. True of these data, whose pictures
            are all of one size.
    """

    name: str
    streams: tuple[str, ...]
    run: Run
    blind: bool = False


class Model:
    """One default model with all its streams.

    Args:
        name: one of `eval.zoo.NAMES`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.model, self.processor = zoo.load(name)

    @cached_property
    def banks(self) -> dict[int, CentroidBank]:
        """Centroids of both modalities after every layer, by K."""
        data = training(FITTED_QUESTIONS)
        return fit_banks(self.model, self.processor, data, KS, data="easy-vqa and digits train")

    @cached_property
    def mean(self) -> CentroidBank:
        """The mean image."""
        data = training(FITTED_PICTURES, one_a_picture=True)
        return fit_bank(self.model, self.processor, data, layers=None, images=None, prompt=None, batch_size=50)

    def groups(self) -> list[Group]:
        """Every group, the clean stream first."""
        references: dict[str, Callable[[], dict[str, Source]]] = {
            "no-vision": lambda: {"no-vision": no_vision()},
            "mean-vision": lambda: {"mean-vision": mean_vision(self.mean)},
            "early-exit": exits,
            "text-centroid": lambda: self._erasures("text", LAYERS, KS, KEPT),
            "vision-centroid": lambda: self._erasures("vision", VISION_LAYERS, (VISION_K,), KEPT[:1]),
            "controls": self._controls,
            "blank-image": lambda: {f"blank-{name}": _blank(color) for name, color in COLORS.items()},
            "noised-image": lambda: {f"noised-{step}": _noised(step) for step in STEPS},
        }
        found = [Group("clean", ("clean",), lambda asked: [outside.whole(asked)])]
        for name, made in references.items():
            found.append(Group(name, names(name), self._references(made), name in BLIND))
        found.append(Group("prompt", names("prompt"), _other_words))
        more = outside.groups(self.model, self.processor)
        return found + [Group(name, made, run, name in BLIND) for name, made, run in more]

    def _references(self, make: Callable[[], Mapping[str, Source]]) -> Run:
        made: dict[str, Source] = {}

        def run(asked: Asked) -> list[Tensor]:
            if not made:
                made.update(make())
            sources = [asked.reference(source) for source in made.values()]
            return run_streams(find_decoder(asked.model), asked.inputs, sources).others

        return run

    def _erasures(self, modality: Any, *axes: Sequence[Any]) -> dict[str, Source]:
        return {
            f"{modality}-{layer}-{k}-{alpha}": centroid_erasure(self.banks[k], layer, alpha, modality)
            for layer, k, alpha in itertools.product(*axes)
        }

    def _controls(self) -> dict[str, Source]:
        makes: dict[str, Callable[[Centroids, float, int], Replace]]
        makes = {"direction": random_direction, "centroid": random_centroid}
        found: dict[str, Source] = {}
        for (name, make), layer, alpha in itertools.product(makes.items(), LAYERS, KEPT[:1]):
            erasure = centroid_erasure(self.banks[CONTROL_K], layer, alpha)
            drawn = make(self.banks[CONTROL_K].centroids("text", layer), alpha, 42)
            found[f"{name}-{layer}-{CONTROL_K}-{alpha}"] = replace(erasure, replace=drawn)
        return found


def names(group: str) -> tuple[str, ...]:
    """The streams of a group of references, in their order."""
    grids: dict[str, tuple[Sequence[Any], ...]] = {
        "text-centroid": (("text",), LAYERS, KS, KEPT),
        "vision-centroid": (("vision",), VISION_LAYERS, (VISION_K,), KEPT[:1]),
        "controls": (("direction", "centroid"), LAYERS, (CONTROL_K,), KEPT[:1]),
    }
    if group in grids:
        return tuple("-".join(map(str, one)) for one in itertools.product(*grids[group]))
    several = {
        "early-exit": tuple(exits()),
        "blank-image": tuple(f"blank-{name}" for name in COLORS),
        "noised-image": tuple(f"noised-{step}" for step in STEPS),
        "prompt": tuple(f"prompt-{name}" for name in PROMPTS),
    }
    return several.get(group, (group,))


def exits() -> dict[str, Source]:
    """Early exits: DoLa's choice among the lower and the upper layers, and each single layer."""
    found: dict[str, Source] = {f"exit-{half}": early_exit(half) for half in ("low", "high")}
    return found | {f"exit-{layer}": early_exit(layer) for layer in (EMBEDDINGS, *LAYERS)}


def _blank(color: tuple[int, int, int]) -> Source:
    def make(asked: Asked) -> Reference:
        prompts = [sample.prompt for sample in asked.samples]
        return blank_image(asked.processor, [[image] for image in asked.images], prompts, color)

    return make


def _noised(step: int) -> Source:
    return lambda asked: noised_image(asked.inputs, step)


def _other_words(asked: Asked) -> list[Tensor]:
    images = [[image] for image in asked.images]
    found = []
    for change in PROMPTS.values():
        words = [change(sample.prompt) for sample in asked.samples]
        found.append(outside.whole(asked, dict(encode(asked.processor, images, words))))
    return found


@torch.no_grad()
def logits(one: Model, asked: Questions, folder: Folder, tick: Callable[[str, int], None]) -> dict[str, Tensor]:
    """Every stream's next-token logits, each of shape (n, vocabulary).

    Args:
        one: the model.
        asked: the questions.
        folder: keeps them.
        tick: told of the group at work and how many of its questions are done.
    """
    found: dict[str, Tensor] = {}
    for group in one.groups():
        first = {s.prompt: i for i, s in reversed(list(enumerate(asked.samples)))}
        numbers = sorted(first.values()) if group.blind else list(range(len(asked.samples)))

        def run(group: Group = group, numbers: Sequence[int] = numbers) -> dict[str, Tensor]:
            rows = []
            for start in range(0, len(numbers), BATCH):
                samples = [asked.samples[i] for i in numbers[start : start + BATCH]]
                batch = Asked(one.model, one.processor, samples, [s.image for s in samples])
                rows.append([each.float() for each in group.run(batch)])
                tick(group.name, start + len(samples))
            return dict(zip(group.streams, map(torch.cat, zip(*rows, strict=True)), strict=True))

        made_by = f"{group.streams} {FITTED_QUESTIONS} {FITTED_PICTURES} {VERSION.get(group.name, 1)}"
        rows = folder.get(group.name, made_by, run)
        at = {number: i for i, number in enumerate(numbers)}
        where = [at[first[s.prompt]] if group.blind else i for i, s in enumerate(asked.samples)]
        found |= {name: each[where] for name, each in rows.items()}
    return found
