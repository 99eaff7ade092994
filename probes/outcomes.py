"""Outcomes of paired items -> the blocks of a report: a cost or a gain with its interval and exact test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from probes.statistics import difference_interval, mcnemar, paired_difference, wilson


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
        "by_task": [{"task": task} | _cost(clean[at], erased[at]) for task, at in _by_task(tasks)],
    }


def gain(plain: np.ndarray, contrasted: np.ndarray, tasks: Sequence[str] = ()) -> dict[str, Any]:
    """What contrast gained: its accuracy less plain decoding's, with its interval, and by task where given.

    Args:
        plain, contrasted: right or not, boolean, shape (n,).
        tasks: each item's task; none for no table by task.
    """
    n, helped, harmed = len(plain), int((~plain & contrasted).sum()), int((plain & ~contrasted).sum())
    block: dict[str, Any] = {
        "n": n,
        "baseline": float(plain.mean()),
        "accuracy": float(contrasted.mean()),
        "delta": float(contrasted.mean() - plain.mean()),
        "ci95": list(difference_interval(helped, harmed, n)),
        "p_value": mcnemar(plain, contrasted).p_value,
        "helped": helped,
        "harmed": harmed,
    }
    if len(tasks):
        block["by_task"] = [
            {"task": task, "n": int(at.sum()), "baseline": float(plain[at].mean())}
            | {"accuracy": float(contrasted[at].mean())}
            for task, at in _by_task(tasks)
        ]
    return block


def _cost(clean: np.ndarray, erased: np.ndarray) -> dict[str, Any]:
    d = paired_difference(clean, erased)
    return {"n": d.n, "baseline": d.baseline, "accuracy": d.other, "cost": d.cost, "ci95": [d.low, d.high]}


def _by_task(tasks: Sequence[str]) -> list[tuple[str, np.ndarray]]:
    names = np.array(tasks)
    return [(task, names == task) for task in sorted(set(names.tolist()))]
