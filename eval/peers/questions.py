"""What is asked: the test questions of easy-VQA and digits, in two halves that share no picture."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.datasets.easy_vqa import halves, sample
from probes.statistics.clusters import Clusters, clusters_of_samples
from tccd.data import Sample, load_samples

SOURCES = ("easy-vqa", "digits")
SEED = 42


@dataclass(frozen=True, eq=False)
class Questions:
    """The questions, in the order of every array of the harness.

    Attributes:
        samples: n questions, those of the choosing half first.
        choosing: which of them settings are chosen on, boolean, shape (n,).
        source: index of each one's source in `SOURCES`, shape (n,).
        clusters: which share a picture, and which a question string.
    """

    samples: list[Sample]
    choosing: np.ndarray
    source: np.ndarray
    clusters: Clusters

    @property
    def strings(self) -> list[str]:
        """Every question string once."""
        return list(dict.fromkeys(s.prompt for s in self.samples))

    def digest(self) -> str:
        """16 hexadecimal digits that stand for these questions and their pictures."""
        asked = [(s.id, s.prompt, s.answer, s.picture_digest) for s in self.samples]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def questions(choosing: int = 2400, held_out: int = 3000) -> Questions:
    """Test questions of both sources, of each as large a part as of all test questions there are.

    Args:
        choosing: questions that settings are chosen on.
        held_out: questions that are reported.
    """
    every = [halves(list(load_samples(name, split="test")), SEED) for name in SOURCES]
    found: list[tuple[Sample, bool, int]] = []
    for part, wanted in enumerate((choosing, held_out)):
        total = sum(len(sides[part]) for sides in every)
        for number, sides in enumerate(every):
            drawn = sample(sides[part], round(wanted * len(sides[part]) / total), SEED)
            found += [(one, part == 0, number) for one in drawn]
    samples = [one for one, _, _ in found]
    masks = np.array([chosen for _, chosen, _ in found]), np.array([number for *_, number in found])
    return Questions(samples, *masks, clusters_of_samples(samples))


def training(each: int, *, one_a_picture: bool = False) -> list[Sample]:
    """Train questions of both sources, as many of each.

    Args:
        each: of each source.
        one_a_picture: whether no two may show the same picture.
    """
    found: list[Sample] = []
    for name in SOURCES:
        every: Sequence[Sample] = list(load_samples(name, split="train"))
        if one_a_picture:
            every = list({s.image_id: s for s in every}.values())
        found += sample(every, each, SEED)
    return found
