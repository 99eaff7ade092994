"""What can be had without the image: the floor beside every accuracy."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from tccd.data import Sample

#: How the image is withheld, in words for a report. The prompt, its length and every vision token's place stay
#: as they were: what is gone is what the picture shows.
BLIND = "the image replaced by a neutral grey one of its size"
MAJORITY = "each question's most frequent answer in this very data; its task's, for a question asked once"


def majority(samples: Sequence[Sample]) -> np.ndarray:
    """Whether each sample's answer is its question's most frequent one, shape (n,).

    Chosen on the very samples it is measured on. A question that is asked once has one answer, which says
    nothing: such questions share their task's most frequent answer.
    """
    asked = Counter(sample.prompt for sample in samples)
    groups = [("task", s.task) if asked[s.prompt] == 1 else ("question", s.prompt) for s in samples]
    counts: dict[tuple[str, str | None], Counter[str | None]] = defaultdict(Counter)
    for group, sample in zip(groups, samples, strict=True):
        counts[group][sample.answer] += 1
    best = {group: max(sorted(table, key=str), key=table.__getitem__) for group, table in counts.items()}
    return np.array([best[g] == s.answer for g, s in zip(groups, samples, strict=True)])
