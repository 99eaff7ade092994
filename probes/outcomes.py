"""Outcomes of paired items -> the blocks of a report: a cost or a gain with its interval and exact test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from probes.statistics import difference_interval, mcnemar, paired_difference, wilson

SHOWN, OTHERS = 20, "(other answers)"


def accuracy(correct: np.ndarray) -> dict[str, Any]:
    """Accuracy with its Wilson interval.

    Args:
        correct: boolean, shape (n,).
    """
    n, right = len(correct), int(correct.sum())
    return {"n": n, "correct": right, "accuracy": right / n, "ci95": list(wilson(right, n))}


def cost(clean: np.ndarray, erased: np.ndarray, tasks: Sequence[str]) -> dict[str, Any]:
    """Centroid cost: clean accuracy less that of the erased stream, with its interval, and by task.

    Args:
        clean, erased: right or not, boolean, shape (n,).
        tasks: each item's task.
    """
    return _cost(clean, erased) | {
        "p_value": mcnemar(clean, erased).p_value,
        "by_task": [{"task": task} | _cost(clean[at], erased[at]) for task, at in by_task(tasks)],
    }


def gain(plain: np.ndarray, contrasted: np.ndarray, tasks: Sequence[str] = ()) -> dict[str, Any]:
    """What contrast gained: its accuracy less plain decoding's, with its interval, and by task where given.

    Args:
        plain, contrasted: right or not, boolean, shape (n,).
        tasks: each item's task; none for no table by task.
    """
    test = mcnemar(plain, contrasted)
    block = _gain(plain, contrasted) | {"p_value": test.p_value, "helped": test.c, "harmed": test.b}
    if len(tasks):
        block["by_task"] = [{"task": task} | _gain(plain[at], contrasted[at]) for task, at in by_task(tasks)]
    return block


def labels(answers: Sequence[str]) -> dict[str, Any]:
    """How often each answer was given, the most frequent first, and the entropy of that in bits: 0 where a
    collapse leaves one answer.

    Of open answers the `SHOWN` most frequent are named; the others are counted together.

    Example:
        >>> labels(["yes", "no", "yes", "no"])
        {'counts': {'no': 2, 'yes': 2}, 'entropy': 1.0}
    """
    counts = Counter(answers)
    share = np.array(sorted(counts.values())) / len(answers)
    entropy = float(-(share * np.log2(share)).sum())
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ordered[SHOWN:])
    return {"counts": dict(ordered[:SHOWN]) | ({OTHERS: rest} if rest else {}), "entropy": abs(entropy)}


def bits(right: np.ndarray) -> str:
    """Outcomes as a string of 0 and 1.

    Args:
        right: boolean, shape (n,).
    """
    return "".join("1" if one else "0" for one in right.tolist())


def outcomes_of(right: str) -> np.ndarray:
    """A report's string of 0 and 1 as booleans, shape (n,)."""
    return np.frombuffer(right.encode(), dtype=np.uint8) == ord("1")


def by_task(tasks: Sequence[str]) -> list[tuple[str, np.ndarray]]:
    """Each task and which items are its, boolean of shape (n,); in the order of the alphabet."""
    names = np.array(tasks)
    return [(task, names == task) for task in sorted(set(names.tolist()))]


def _cost(clean: np.ndarray, erased: np.ndarray) -> dict[str, Any]:
    d = paired_difference(clean, erased)
    return {"n": d.n, "baseline": d.baseline, "accuracy": d.other, "cost": d.cost, "ci95": [d.low, d.high]}


def _gain(plain: np.ndarray, contrasted: np.ndarray) -> dict[str, Any]:
    n, helped, harmed = len(plain), int((~plain & contrasted).sum()), int((plain & ~contrasted).sum())
    return {
        "n": n,
        "baseline": float(plain.mean()),
        "accuracy": float(contrasted.mean()),
        "delta": float(contrasted.mean() - plain.mean()),
        "ci95": list(difference_interval(helped, harmed, n)),
    }
