"""Subsets of easy-VQA that tell perception from the language prior; they work for any samples with answers.

Two thirds of easy-VQA's answers can be guessed from the question alone: the whole test split says little
about seeing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from tccd.data import Sample


def majority_answers(samples: Sequence[Sample]) -> dict[str, str]:
    """Each question string's most frequent answer: the best guess without the image.

    Args:
        samples: the train split's, so that the table knows nothing of the images it is held against.

    Returns:
        Prompt -> answer; of equally frequent answers the first in the alphabet.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in samples:
        if sample.answer is not None:
            counts[sample.prompt][sample.answer] += 1
    return {prompt: max(sorted(table), key=table.__getitem__) for prompt, table in counts.items()}


def balanced(samples: Sequence[Sample]) -> list[Sample]:
    """Yes/no questions with as many "yes" as "no" for each question string, where guessing gives 50 %.

    Of the more frequent answer, samples are taken evenly over the order given: the same ones every time, from
    all over the split. 2,492 samples of the test split.
    """
    groups: dict[str, dict[str, list[int]]] = defaultdict(lambda: {"yes": [], "no": []})
    for index, sample in enumerate(samples):
        if sample.answer in ("yes", "no"):
            groups[sample.prompt][sample.answer].append(index)
    kept: list[int] = []
    for group in groups.values():
        n = min(map(len, group.values()))
        for indices in group.values():
            kept += [indices[i * len(indices) // n] for i in range(n)]
    return [samples[i] for i in sorted(kept)]


def minority(samples: Sequence[Sample], majority: Mapping[str, str]) -> list[Sample]:
    """The samples whose answer is not their question's majority answer: those the prior gets wrong.

    Args:
        samples: questions with answers.
        majority: prompt -> answer, from `majority_answers`. A question it doesn't know has no prior, and is
            left out.
    """
    return [s for s in samples if s.answer is not None and majority.get(s.prompt, s.answer) != s.answer]


def halves(samples: Sequence[Sample], seed: int) -> tuple[list[Sample], list[Sample]]:
    """Two halves that share no picture, copies under other names included: one to choose settings on, one to
    report. Their question strings are the same.
    """
    digests = [s.picture_digest for s in samples]
    pictures = sorted(set(digests))
    order = np.random.default_rng(seed).permutation(len(pictures))
    first = {pictures[i] for i in order[: len(pictures) // 2]}
    sides: tuple[list[Sample], list[Sample]] = ([], [])
    for one, digest in zip(samples, digests, strict=True):
        sides[digest not in first].append(one)
    return sides


def sample(samples: Sequence[Sample], n: int, seed: int) -> list[Sample]:
    """A seeded sample in the samples' order; all where there are no more than n."""
    if n >= len(samples):
        return list(samples)
    picked = np.random.default_rng(seed).choice(len(samples), n, replace=False)
    return [samples[i] for i in sorted(picked.tolist())]
