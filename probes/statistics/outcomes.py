"""Outcomes of paired items -> the blocks of a report: a cost or a gain with its interval and tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from probes.statistics.clusters import Clusters, Difference, clustered, clustered_wilson
from probes.statistics.intervals import mcnemar

SHOWN, OTHERS = 20, "(other answers)"


def accuracy(correct: np.ndarray, clusters: Clusters | None = None) -> dict[str, Any]:
    """Accuracy with its Wilson interval, widened by what questions share, and how many pictures and question
    strings there are.

    Args:
        correct: boolean, shape (n,).
        clusters: of the items; None where each is its own.
    """
    n, right = len(correct), int(correct.sum())
    block = {"n": n, "correct": right, "accuracy": right / n, "ci95": list(clustered_wilson(correct, clusters))}
    return block | ({} if clusters is None else clusters.counts())


def cost(
    clean: np.ndarray, erased: np.ndarray, tasks: Sequence[str], clusters: Clusters | None = None
) -> dict[str, Any]:
    """Centroid cost: clean accuracy less that of the erased stream, with its interval, and by task.

    `ci95` and `p_value` are those of `probes.statistics.clusters.clustered`, `clustered_by` says what the width
    comes from, and `p_independent` is the exact McNemar test of items taken as independent.

    Args:
        clean, erased: right or not, boolean, shape (n,).
        tasks: each item's task.
        clusters: of the items; None where each is its own.
    """
    block = _tested(_cost, clean, erased, clusters)
    return block | {"by_task": _by_task(_cost, clean, erased, tasks, clusters)}


def gain(
    plain: np.ndarray, contrasted: np.ndarray, tasks: Sequence[str] = (), clusters: Clusters | None = None
) -> dict[str, Any]:
    """What contrast gained: its accuracy less plain decoding's, with interval and tests as in `cost`, how many
    pictures and question strings there are, and by task where given.

    Args:
        plain, contrasted: right or not, boolean, shape (n,).
        tasks: each item's task; none for no table by task.
        clusters: of the items; None where each is its own.
    """
    test = mcnemar(plain, contrasted)
    block = _tested(_gain, plain, contrasted, clusters) | {"helped": test.c, "harmed": test.b}
    block |= {} if clusters is None else clusters.counts()
    return block | ({"by_task": _by_task(_gain, plain, contrasted, tasks, clusters)} if len(tasks) else {})


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


Told = Callable[[np.ndarray, np.ndarray, Difference], dict[str, Any]]


def _tested(told: Told, first: np.ndarray, second: np.ndarray, clusters: Clusters | None) -> dict[str, Any]:
    found = clustered(first, second, clusters)
    return told(first, second, found) | {
        "p_value": found.p_value,
        "p_independent": mcnemar(first, second).p_value,
        "clustered_by": found.by,
    }


def _by_task(
    told: Told, first: np.ndarray, second: np.ndarray, tasks: Sequence[str], clusters: Clusters | None
) -> list[dict[str, Any]]:
    rows = []
    for task, at in by_task(tasks):
        found = clustered(first[at], second[at], None if clusters is None else clusters[at])
        rows.append({"task": task} | told(first[at], second[at], found) | {"clustered_by": found.by})
    return rows


def _cost(clean: np.ndarray, erased: np.ndarray, found: Difference) -> dict[str, Any]:
    figures = {"n": len(clean), "baseline": float(clean.mean()), "accuracy": float(erased.mean())}
    return figures | {"cost": -found.value or 0.0, "ci95": [-found.high, -found.low]}


def _gain(plain: np.ndarray, contrasted: np.ndarray, found: Difference) -> dict[str, Any]:
    figures = {"n": len(plain), "baseline": float(plain.mean()), "accuracy": float(contrasted.mean())}
    return figures | {"delta": found.value, "ci95": [found.low, found.high]}
