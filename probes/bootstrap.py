"""Intervals where several items share an image: bootstraps that draw whole clusters of items."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probes.statistics import checked_level, checked_outcomes, difference_interval, paired_counts
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
    clusters: ArrayLike | None = None,
    n_resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Ratio:
    """Asymmetry ratio, text cost / vision cost, with a percentile interval of the paired bootstrap.

    Items (or whole clusters of them) are drawn with replacement, all three outcomes of an item together.
    Where the bootstrap interval of the vision cost reaches zero the ratio has no finite interval, and where
    it lies below zero "times as much" means nothing: both are reported as not estimable.

    Args:
        baseline_correct, text_correct, vision_correct: (n,) booleans of the same items: clean, text erased,
            vision erased.
        clusters: (n,) labels, such as the image of each item; None draws single items.
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
    # The ratio of sums is the ratio of mean costs, whatever the sizes of the clusters drawn.
    draws = _draws(losses, clusters, n_resamples, seed)
    vision_low, vision_high = np.quantile(draws[:, 1], [tail, 1 - tail])
    text_sum, vision_sum = losses.sum(axis=0)
    if vision_low <= 0:
        what = "lies below zero" if vision_high < 0 else "reaches zero"
        bounds = f"{100 * vision_low / len(baseline):+.1f} to {100 * vision_high / len(baseline):+.1f} points"
        return Ratio(None, None, None, f"not estimable: the interval of the vision cost ({bounds}) {what}")
    # A draw at or below zero in the excluded tail stands for a ratio without bound.
    ratios = np.full(n_resamples, math.inf)
    np.divide(draws[:, 0], draws[:, 1], out=ratios, where=draws[:, 1] > 0)
    low, high = np.quantile(ratios, [tail, 1 - tail], method="inverted_cdf")
    if not math.isfinite(high):
        return Ratio(None, None, None, "not estimable: the interval of the vision cost reaches zero")
    return Ratio(float(text_sum / vision_sum), float(low), float(high))


def clustered_interval(
    before: ArrayLike,
    after: ArrayLike,
    clusters: ArrayLike,
    *,
    n_resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Interval of a paired gain, accuracy of `after` less that of `before`, where items come in clusters.

    The wider, at each end, of two: the percentile interval of the bootstrap that draws whole clusters (Field
    and Welsh, JRSS B 69:369, 2007) and the score interval of `difference_interval`. The first knows that
    questions about one image go together and is too narrow where few items change; the second the reverse.

    Args:
        before, after: (n,) booleans, right or wrong, of the same items.
        clusters: (n,) labels, such as the image of each item.
        n_resamples: bootstrap draws.
        seed: of numpy's default generator.
        level: confidence.

    Raises:
        DataError: as `mcnemar`; clusters of another length.
        ConfigError: a level outside (0, 1), or fewer than 100 draws.
    """
    _, harmed, helped, n = paired_counts(before, after)
    score = difference_interval(helped, harmed, n, level)
    gains = checked_outcomes(after, "after").astype(int) - checked_outcomes(before, "before")
    draws = _draws(np.stack([gains, np.ones_like(gains)], axis=1), clusters, n_resamples, seed)
    tail = (1 - checked_level(level)) / 2
    low, high = np.quantile(draws[:, 0] / draws[:, 1], [tail, 1 - tail])
    return min(score[0], float(low)), max(score[1], float(high))


def _draws(values: NDArray[np.int_], clusters: ArrayLike | None, n_resamples: int, seed: int) -> NDArray[np.int_]:
    """Sums of columns over bootstrap draws of whole clusters; None for a cluster an item. Draws x columns."""
    if n_resamples < 100:
        raise ConfigError(f"n_resamples = {n_resamples}; expected at least 100")
    if clusters is not None:
        labels = np.asarray(clusters)
        if labels.shape != (len(values),):
            raise DataError(
                f"clusters of shape {labels.shape} for {len(values)} items; expected one label an item"
            )
        _, which = np.unique(labels, return_inverse=True)
        sums = np.zeros((which.max() + 1, values.shape[1]), dtype=int)
        np.add.at(sums, which, values)
        values = sums
    # Few kinds of unit exist, and drawing units is drawing counts of kinds.
    kinds, counts = np.unique(values, axis=0, return_counts=True)
    return np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=n_resamples) @ kinds
