"""The ratio of two costs, whose interval is had by drawing whole clusters of questions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probes.statistics.clusters import Clusters, Codes
from probes.statistics.intervals import checked_level, checked_outcomes
from tccd.errors import ConfigError, DataError


@dataclass(frozen=True)
class Ratio:
    """Text cost / vision cost with its interval, or None for all three and the `reason` why not."""

    value: float | None
    low: float | None
    high: float | None
    reason: str | None = None


def paired_bootstrap_ratio(
    baseline_correct: ArrayLike,
    text_correct: ArrayLike,
    vision_correct: ArrayLike,
    *,
    clusters: Clusters | None = None,
    n_resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Ratio:
    """Asymmetry ratio, text cost / vision cost, with a percentile interval of the paired bootstrap.

    Whole clusters of items are drawn with replacement, all three outcomes of an item together: once by picture
    and once by question string. The interval is the wider of the two at each end.
    Where the bootstrap interval of the vision cost reaches zero the ratio has no finite interval, and where
    it lies below zero "times as much" means nothing: both are reported as not estimable.

    Args:
        baseline_correct, text_correct, vision_correct: (n,) booleans of the same items: clean, text erased,
            vision erased.
        clusters: of the items; None draws single items.
        n_resamples: bootstrap draws.
        seed: of numpy's default generator.
        level: confidence.

    Raises:
        DataError: as `mcnemar`; clusters of another length.
        ConfigError: a level outside (0, 1), or fewer than 100 draws.
    """
    baseline, text, vision = (
        checked_outcomes(values, name)
        for values, name in (
            (baseline_correct, "baseline_correct"),
            (text_correct, "text_correct"),
            (vision_correct, "vision_correct"),
        )
    )
    if not len(baseline) == len(text) == len(vision):
        raise DataError(
            f"outcomes of {len(baseline)}, {len(text)} and {len(vision)} items; expected the same items"
        )
    tail = (1 - checked_level(level)) / 2
    losses = np.stack([baseline.astype(int) - text, baseline.astype(int) - vision], axis=1)
    if clusters is not None and len(clusters) != len(losses):
        raise DataError(f"clusters of {len(clusters)} items for {len(losses)} items; expected one label an item")
    ways = [None] if clusters is None else list(clusters.sampled().values())
    found = [_bounds(_draws(losses, codes, n_resamples, seed), len(losses), tail) for codes in ways]
    for bounds in found:
        if isinstance(bounds, str):
            return Ratio(None, None, None, f"not estimable: {bounds}")
    lows, highs = zip(*found, strict=True)
    text_sum, vision_sum = losses.sum(axis=0)
    return Ratio(float(text_sum / vision_sum), min(lows), max(highs))


def _bounds(draws: NDArray[np.int_], n: int, tail: float) -> tuple[float, float] | str:
    """Percentiles of the ratio of sums (that of mean costs, whatever the sizes drawn), or why there are none."""
    low, high = np.quantile(draws[:, 1], [tail, 1 - tail])
    if low <= 0:
        what = "lies below zero" if high < 0 else "reaches zero"
        return f"the interval of the vision cost ({100 * low / n:+.1f} to {100 * high / n:+.1f} points) {what}"
    # A draw at or below zero in the excluded tail stands for a ratio without bound.
    ratios = np.full(len(draws), math.inf)
    np.divide(draws[:, 0], draws[:, 1], out=ratios, where=draws[:, 1] > 0)
    low, high = np.quantile(ratios, [tail, 1 - tail], method="inverted_cdf")
    return (float(low), float(high)) if math.isfinite(high) else "the interval of the vision cost reaches zero"


def _draws(values: NDArray[np.int_], codes: Codes | None, n_resamples: int, seed: int) -> NDArray[np.int_]:
    """Sums of columns over bootstrap draws of whole clusters; None for a cluster an item. Draws x columns."""
    if n_resamples < 100:
        raise ConfigError(f"n_resamples = {n_resamples}; expected at least 100")
    if codes is not None:
        _, which = np.unique(codes, return_inverse=True)
        sums = np.zeros((which.max() + 1, values.shape[1]), dtype=int)
        np.add.at(sums, which, values)
        values = sums
    # Few kinds of unit exist, and drawing units is drawing counts of kinds.
    kinds, counts = np.unique(values, axis=0, return_counts=True)
    return np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=n_resamples) @ kinds
