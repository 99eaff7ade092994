"""Many references and rules over one data set, the clean stream computed once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from probes.asking.asked import Asked, Source
from probes.asking.forward import run_streams
from probes.asking.generation import generate
from probes.asking.journal import Journal
from probes.asking.scoring import Scorer, Target, longest, targets
from tccd.data import Sample
from tccd.data.pictures import blank, picture_digest
from tccd.decoder import find_decoder
from tccd.decoding.config import Rule
from tccd.decoding.contrast import contrast_all
from tccd.errors import ConfigError


@dataclass(frozen=True)
class Arm:
    """One way to answer: from a reference alone, or from the contrast of the clean stream and some references.

    Attributes:
        references: each a reference, or what makes it for a batch; arms that share one (the same object) share its
            computation. May be given as one.
        rule: settings of the contrast; None answers from the only reference.
        weights: of each reference in the contrast, of either sign.

    Raises:
        ConfigError: not one weight a reference, or several references without a rule.
    """

    references: tuple[Source, ...]
    rule: Rule | None = None
    weights: tuple[float, ...] = (1.0,)

    def __init__(
        self,
        references: Source | Sequence[Source],
        rule: Rule | None = None,
        weights: Sequence[float] = (1.0,),
    ) -> None:
        several = tuple(references) if isinstance(references, Sequence) else (references,)
        if len(several) != len(weights) or (rule is None and len(several) > 1):
            raise ConfigError(
                f"{len(several)} references with {len(weights)} weights and rule {rule}; expected one weight a "
                "reference, and a rule for several"
            )
        for name, value in (("references", several), ("rule", rule), ("weights", tuple(weights))):
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Answers:
    """What was answered, as numbers of words, and what would be right.

    Attributes:
        samples: the samples, in the order of the columns below.
        goals: how each was scored.
        scorer: which tokens stood for which label.
        words: the answers by number.
        answer: right answers, shape (n,).
        clean: answers of the clean stream, shape (n,).
        arms: answers by arm, shape (arms, n).
        blind: answers of the clean stream to the withheld image, shape (n,); None where it was not asked.
        pictures: digest of the picture that each sample was asked with (`tccd.data.pictures`).
        displacement: by arm the mean norm of what its (first) reference, an erasure, moved a position's state by,
            shape (arms,); not a number for an arm that no position was erased for.
    """

    samples: list[Sample]
    goals: list[Target]
    scorer: Scorer
    words: list[str]
    answer: np.ndarray
    clean: np.ndarray
    arms: np.ndarray
    blind: np.ndarray | None
    pictures: list[str]
    displacement: np.ndarray

    @property
    def clean_correct(self) -> np.ndarray:
        """Boolean, shape (n,)."""
        return self.clean == self.answer

    @property
    def arms_correct(self) -> np.ndarray:
        """Boolean, shape (arms, n)."""
        return self.arms == self.answer

    def texts(self, numbers: np.ndarray) -> list[str]:
        """The words of some of the numbers above."""
        return [self.words[number] for number in numbers.tolist()]


@dataclass(frozen=True)
class _Asker:
    """What all chunks of one run share."""

    model: Any
    processor: Any
    scorer: Scorer
    arms: Sequence[Arm]
    sources: list[Source]
    blind: bool
    max_new_tokens: int

    def ask(self, samples: Sequence[Sample], goals: Sequence[Target]) -> dict[str, Any]:
        """One chunk as the journal keeps it: answers, pictures' digests, sums of displacements by reference."""
        decoder = find_decoder(self.model)
        images = [s.image for s in samples]
        asked = self._asked(samples, images)
        streams = run_streams(decoder, asked.inputs, [asked.reference(source) for source in self.sources])
        text = [i for i, goal in enumerate(goals) if goal.is_generated]
        token = [i for i, goal in enumerate(goals) if not goal.is_generated]

        def answers(logits: Tensor, shown: Asked | None, arm: Arm | None = None) -> list[str]:
            words = dict(zip(token, self.scorer.read([goals[i] for i in token], logits[token]), strict=True))
            if shown is not None:
                door = {} if arm is None else {"rule": arm.rule, "weights": arm.weights}
                made = [] if arm is None else [shown.reference(source) for source in arm.references]
                new = generate(self.processor, self.model, shown.inputs, self.max_new_tokens, made, **door)
                words |= dict(zip(text, new, strict=True))
            return [words[i] for i in range(len(goals))]

        def generated(pictures: Sequence[Image]) -> Asked | None:
            return self._asked([samples[i] for i in text], [pictures[i] for i in text]) if text else None

        opened = generated(images)
        chunk: dict[str, Any] = {"pictures": [picture_digest(image) for image in images]}
        chunk |= {"clean": answers(streams.clean, opened), "arms": []}
        index = {id(source): i for i, source in enumerate(self.sources)}
        for arm in self.arms:
            others = [streams.others[index[id(source)]] for source in arm.references]
            clean, rule = streams.clean, arm.rule
            logits = others[0] if rule is None else contrast_all(clean, others, rule, arm.weights)[0]
            chunk["arms"].append(answers(logits, opened, arm))
        if self.blind:
            grey = [blank(image) for image in images]
            clean = run_streams(decoder, self._asked(samples, grey).inputs, ()).clean
            chunk["blind"] = answers(clean, generated(grey))
        return chunk | {"moved": streams.moved, "replaced": streams.replaced}

    def _asked(self, samples: Sequence[Sample], images: Sequence[Image]) -> Asked:
        return Asked(self.model, self.processor, samples, images, self.max_new_tokens)


@torch.no_grad()
def answer(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    arms: Sequence[Arm],
    *,
    batch_size: int = 32,
    blind: bool = False,
    scoring: tuple[Scorer, list[Target]] | None = None,
    journal: Journal | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Answers:
    """Answer every sample cleanly and by every arm.

    Args:
        model: a vision-language model in eval mode.
        processor: its processor.
        samples: questions with answers.
        arms: what to compare with the clean stream.
        batch_size: samples a forward.
        blind: whether the clean stream is asked with the image withheld too.
        scoring: of `probes.asking.scoring.targets`, where it is there already.
        journal: keeps what is done, and knows what was done before.
        progress: called with (samples done, samples in all).

    Raises:
        DataError: no sample, one that can't be scored, or an image that can't be read.
        UnsupportedModelError: the engine is not exact for this model.
    """
    scorer, goals = targets(processor, samples) if scoring is None else scoring
    sources = list({id(source): source for arm in arms for source in arm.references}.values())
    limit = longest(scorer, samples, goals)
    asker = _Asker(model, processor, scorer, arms, sources, blind, limit)
    numbers: dict[str, int] = {}
    # Words are kept as numbers: thousands of arms over thousands of samples are a few MB so.
    found = np.zeros((2 + len(arms), len(samples)), dtype=np.int32)
    sums = np.zeros((2, len(sources)))
    pictures: list[str] = []
    for start in range(0, len(samples), batch_size):
        rows = slice(start, min(start + batch_size, len(samples)))
        ask = partial(asker.ask, samples[rows], goals[rows])
        chunk = ask() if journal is None else journal.chunk(start, samples[rows], ask)
        spoken = (chunk["clean"], chunk.get("blind") or chunk["clean"], *chunk["arms"])
        for row, words in zip(found, spoken, strict=True):
            row[rows] = [numbers.setdefault(word, len(numbers)) for word in words]
        pictures += chunk["pictures"]
        sums += np.array([chunk["moved"], chunk["replaced"]])
        if progress is not None:
            progress(rows.stop, len(samples))
    right = np.array([numbers.setdefault(goal.answer, len(numbers)) for goal in goals], dtype=np.int32)
    with np.errstate(invalid="ignore"):
        mean = sums[0] / sums[1]
    at = {id(source): i for i, source in enumerate(sources)}
    return Answers(
        samples=list(samples),
        goals=goals,
        scorer=scorer,
        words=list(numbers),
        answer=right,
        clean=found[0],
        arms=found[2:],
        blind=found[1] if blind else None,
        pictures=pictures,
        displacement=np.array([mean[at[id(arm.references[0])]] for arm in arms]),
    )
