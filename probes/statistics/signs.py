"""Is the best of many settings better than plain decoding? A test that knows that it was the best of many."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probes.statistics.clusters import Clusters, Codes
from tccd.errors import DataError

DRAWS = 4999
"""Turns of signs: the smallest p-value is 1 / 5000."""
BOUND, PASSES = 0.025, 0.02
"""How often, at most, a setting is taken for better where none is; and the largest p-value that passes. Turned
signs are exact where changes are symmetric, and nearly so elsewhere: the difference pays for "nearly"."""
GAINS = (0.01, 0.02, 0.04)
"""True gains, as fractions, that power is told for."""


@dataclass(frozen=True, eq=False)
class Gains:
    """What turning signs says of each setting.

    Attributes:
        p_values: one-sided and adjusted for all settings, shape (settings,).
        power: by setting, the chance that a true gain of each of `GAINS` would have been found, shape
            (settings, gains).
    """

    p_values: NDArray[np.float64]
    power: NDArray[np.float64]


def gains_of_many(
    plain: ArrayLike, settings: ArrayLike, clusters: Clusters, *, draws: int = DRAWS, seed: int = 0
) -> Gains:
    """Which settings are right more often than plain decoding, though they are many.

    Where a setting changes nothing on average, a cluster's change is as likely with its sign turned. So the
    signs of whole clusters are turned at random, those of all settings together, and the largest studentised
    gain of any setting is noted. A p-value is how often that is as large as the setting's own gain (max-T;
    Westfall and Young, Resampling-Based Multiple Testing, Wiley 1993). The chance that any setting without a
    gain has a p-value up to a bound is that bound at most, however many others do gain. Settings that answer
    alike cost next to nothing.

    Pictures and question strings are turned one after the other, and the larger p-value stands. A gain is
    studentised by the largest of its variances: by item, by picture, by question string, and over both (see
    `probes.statistics.clusters.clustered`). Power is had from the same turns, each moved by the gain.

    Args:
        plain: right or not, shape (n,).
        settings: the same by setting, shape (settings, n).
        clusters: of the items.
        draws: turns of signs; the smallest p-value is 1 / (draws + 1).
        seed: of numpy's default generator.

    Raises:
        DataError: shapes that don't fit, or no setting.
    """
    right, base = np.asarray(settings, dtype=bool), np.asarray(plain, dtype=bool)
    if right.ndim != 2 or not len(right) or right.shape[1:] != base.shape or len(clusters) != len(base):
        raise DataError(
            f"outcomes of shape {right.shape} by setting and {base.shape} plain, clusters of {len(clusters)} "
            "items; expected (settings, n), (n,) and n with at least one setting"
        )
    changes = right.astype(np.int8) - base.astype(np.int8)
    sums = [_sums(changes.astype(int), codes) for codes in clusters.sampled().values()]
    spread = _spread(changes, sums, clusters)
    moved = np.flatnonzero(spread)
    p_values, power = np.ones(len(right)), np.zeros((len(right), len(GAINS)))
    if len(moved):
        total = changes.sum(axis=1, dtype=int)[moved] / spread[moved]
        shift = _shift(changes[moved].mean(axis=1), spread[moved], clusters)
        found = [_judged(of[:, moved], total, shift, draws, seed) for of in sums]
        p_values[moved] = np.max([p for p, _ in found], axis=0)
        power[moved] = np.min([of for _, of in found], axis=0)
    return Gains(p_values, power)


def _judged(
    sums: NDArray[Any], total: NDArray[np.floating], shift: NDArray[np.floating], draws: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """p-values and power from turns of one clustering's signs."""
    scale = np.sqrt((sums.astype(float) ** 2).sum(axis=0))
    weights = np.divide(sums, scale, out=np.zeros(sums.shape), where=scale > 0).astype(np.float32)
    generator = np.random.default_rng(seed)
    signs = generator.integers(0, 2, (draws, len(sums)), dtype=np.int8).astype(np.float32) * 2 - 1
    turned = signs @ weights
    largest = np.sort(turned.max(axis=1))
    # Single precision: what equals a turn counts as reached by it.
    reached = draws - np.searchsorted(largest, total - 1e-4)
    p_values = np.where(total > 0, (1 + reached) / (1 + draws), 1.0)
    needed = largest[min(math.ceil((1 - PASSES) * (draws + 1)), draws) - 1]
    power = [(turned + by > needed).mean(axis=0) for by in shift.T.astype(np.float32)]
    return p_values, np.stack(power, axis=1)


def _shift(gain: NDArray[np.floating], spread: NDArray[np.floating], clusters: Clusters) -> NDArray[np.floating]:
    """By how much each of `GAINS` moves a studentised gain, shape (settings, gains).

    A gain is questions put right, each of which adds to the spread, and it adds to every cluster's sum. So the
    spread at another gain than the one at hand is another, but never less than that of the questions put right.
    """
    n, true = len(clusters), np.array(GAINS)
    together = max(float((np.bincount(codes).astype(float) ** 2).sum()) for codes in clusters.sampled().values())
    squared = spread[:, None] ** 2 + n * (true - gain[:, None]) + together * (true**2 - gain[:, None] ** 2)
    return n * true / np.sqrt(np.maximum(squared, n * true))


def _spread(changes: NDArray[np.int8], sums: list[NDArray[np.int_]], clusters: Clusters) -> NDArray[np.float64]:
    """The largest standard deviation of each setting's total change, shape (settings,)."""
    found = [(changes.astype(float) ** 2).sum(axis=1)]
    found += [(of.astype(float) ** 2).sum(axis=0) for of in sums]
    if len(sums) > 1 and clusters.both is not None:
        both = _sums(changes.astype(float), clusters.both)
        found.append(found[1] + found[2] - (both**2).sum(axis=0))
    return np.sqrt(np.max(found, axis=0))


def _sums(changes: NDArray[Any], codes: Codes) -> NDArray[Any]:
    """Change by cluster, shape (clusters, settings)."""
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    return np.add.reduceat(changes[:, order], starts, axis=1).T
