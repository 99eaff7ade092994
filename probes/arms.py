"""Many erased streams and settings over one data set, the clean stream computed once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probes.scoring import Scorer, Target, targets
from tccd.data import Sample
from tccd.decoder import find_decoder
from tccd.decoding.config import TCCDConfig
from tccd.decoding.contrast import contrast
from tccd.decoding.streams import Erasure
from tccd.decoding.twin import Session, Step
from tccd.inputs import encode

#: Streams of one forward hold at most about this many columns for each clean one; attention pays their square.
COLUMNS = 4.0


@dataclass(frozen=True)
class Arm:
    """One way to answer: from the erased stream alone, or from the contrast of clean and erased.

    Attributes:
        erasure: the erased stream; arms that share it (the same object) share its computation.
        config: settings of the contrast; None answers from the erased stream.
    """

    erasure: Erasure
    config: TCCDConfig | None = None


@dataclass(frozen=True)
class Answers:
    """Token ids answered, and what would be right.

    Attributes:
        samples: the samples, in the order of the columns below.
        scorer: token id -> word.
        answer: right token ids, shape (n,).
        clean: answers of the clean stream, shape (n,).
        arms: answers by arm, shape (arms, n).
    """

    samples: list[Sample]
    scorer: Scorer
    answer: np.ndarray
    clean: np.ndarray
    arms: np.ndarray

    @property
    def clean_correct(self) -> np.ndarray:
        """Boolean, shape (n,)."""
        return self.clean == self.answer

    @property
    def arms_correct(self) -> np.ndarray:
        """Boolean, shape (arms, n)."""
        return self.arms == self.answer


class _Collector(Session):
    """Keeps the next-token logits of every stream."""

    clean: Tensor
    erased: list[Tensor]

    def combine_logits(self, step: Step, clean: Tensor, erased: list[Tensor]) -> Tensor:
        self.clean = clean[:, -1]
        # A stream that owns no column of the longest row is the clean one.
        self.erased = [e[:, -1] if e.shape[1] else clean[:, -1] for e in erased]
        return clean


@torch.no_grad()
def answer(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    arms: Sequence[Arm],
    *,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> Answers:
    """Answer every sample cleanly and by every arm, from the next token after the prompt.

    Args:
        model: a vision-language model in eval mode.
        processor: its processor.
        samples: questions with answers.
        arms: what to compare with the clean stream.
        batch_size: samples a forward.
        progress: called with (samples done, samples in all).

    Raises:
        DataError: no sample, or one that can't be scored.
        UnsupportedModelError: the engine is not exact for this model.
    """
    scorer, wanted = targets(processor, samples)
    decoder = find_decoder(model)
    erasures = list({id(arm.erasure): arm.erasure for arm in arms}.values())
    clean = np.zeros(len(samples), dtype=np.int64)
    picked = np.zeros((len(arms), len(samples)), dtype=np.int64)
    for start in range(0, len(samples), batch_size):
        rows = slice(start, min(start + batch_size, len(samples)))
        chunk, goals = samples[rows], wanted[rows]
        inputs = encode(processor, [[s.image] for s in chunk], [s.prompt for s in chunk]).to(model.device)
        inputs = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        for group in _groups(erasures) or [[]]:
            session = _Collector(decoder, tuple(group))
            if group:
                with session.active():
                    model(**inputs, use_cache=False, logits_to_keep=1)
                plain = session.clean
            else:
                plain = model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
            clean[rows] = _pick(plain, goals)
            for i, arm in enumerate(arms):
                at = next((j for j, erasure in enumerate(group) if erasure is arm.erasure), None)
                if at is not None:
                    erased = session.erased[at]
                    logits = erased if arm.config is None else contrast(plain, erased, arm.config)[0]
                    picked[i, rows] = _pick(logits, goals)
        if progress is not None:
            progress(rows.stop, len(samples))
    return Answers(list(samples), scorer, np.array([g.answer for g in wanted]), clean, picked)


def _pick(logits: Tensor, goals: Sequence[Target]) -> list[int]:
    logits = logits.float().cpu()
    if all(goal.choices is None for goal in goals):
        return logits.argmax(-1).tolist()
    return [goal.pick(row) for goal, row in zip(goals, logits, strict=True)]


def _groups(erasures: Sequence[Erasure]) -> list[list[Erasure]]:
    """Erasures that share a forward: a text stream has few columns, a vision stream nearly all of them."""
    groups: list[list[Erasure]] = []
    room = 0.0
    for erasure in sorted(erasures, key=lambda e: (e.modality, e.layer)):
        columns = 0.15 if erasure.modality == "text" and erasure.segment != "system" else 1.0
        if columns > room:
            groups.append([])
            room = COLUMNS
        groups[-1].append(erasure)
        room -= columns
    return groups
