"""Counts of a set, gathered one picture at a time, and the same under bootstrap draws of whole pictures.

Memory does not grow with the pictures: of each draw only the counts are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Bootstrap draws; their standard deviation is known to about 5 %.
DRAWS = 200
#: Draws without which no interval is given.
FEWEST = 20
#: Numbers of codes x draws that one tally keeps at most: 128 MiB of 4 bytes.
ROOM = 2**25


def draws_for(codes: int, wanted: int = DRAWS) -> int:
    """How many draws there is room for; 0 where they would be too few for an interval.

    Args:
        codes: of the codebook.
        wanted: draws at most.
    """
    found = min(wanted, ROOM // max(codes, 1))
    return found if found >= FEWEST else 0


@dataclass
class Weights:
    """How often each picture, in turn, stands in each bootstrap draw of as many pictures: exactly multinomial.

    Args:
        n: pictures in all.
        draws: number of draws.
        seed: of the draws.
    """

    n: int
    draws: int
    seed: int
    _left: NDArray[np.int64] = field(init=False)
    _chance: np.random.Generator = field(init=False)
    _seen: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._left = np.full(self.draws, self.n, dtype=np.int64)
        self._chance = np.random.default_rng(self.seed)

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        while self._seen < self.n:
            found = self._chance.binomial(self._left, 1 / (self.n - self._seen))
            self._left -= found
            self._seen += 1
            yield found


class Tally:
    """Counts of one codebook over one set.

    Args:
        codes: of the codebook.
        draws: bootstrap draws to count along.

    Attributes:
        n: pictures so far.
        counts: shape (codes,): pictures that hit each code.
        drawn: shape (codes, draws): the same in each draw.
        shown: shape (codes, SHOWN): the first pictures that hit each code, by number; -1 where there are fewer.
    """

    SHOWN = 3

    def __init__(self, codes: int, draws: int = DRAWS) -> None:
        self.n = 0
        self.counts = np.zeros(codes, dtype=np.int64)
        self.drawn = np.zeros((codes, draws), dtype=np.int32)
        self.shown = np.full((codes, self.SHOWN), -1, dtype=np.int64)

    @property
    def draws(self) -> int:
        """Bootstrap draws."""
        return self.drawn.shape[1]

    def add(self, codes: NDArray[np.int64], weights: NDArray[np.int64]) -> None:
        """Count one picture.

        Args:
            codes: that it hits, each once.
            weights: how often it stands in each draw; those of the first `draws` are used.
        """
        seen = self.counts[codes]
        for place in np.unique(seen[seen < self.SHOWN]):
            self.shown[codes[seen == place], place] = self.n
        self.counts[codes] += 1
        if self.draws:
            self.drawn[codes] += weights[: self.draws].astype(np.int32)
        self.n += 1

    def grow(self, codes: int) -> None:
        """Make room for more codes: of an open codebook, such as facts."""
        more = codes - len(self.counts)
        if more > 0:
            more = max(more, len(self.counts))  # so that a long set does not copy at every picture
            self.counts = np.concatenate([self.counts, np.zeros(more, np.int64)])
            self.drawn = np.concatenate([self.drawn, np.zeros((more, self.draws), np.int32)])
            self.shown = np.concatenate([self.shown, np.full((more, self.SHOWN), -1, np.int64)])


@dataclass
class Sums:
    """A ratio of sums over pictures, such as codes over tokens, and the same under each draw."""

    draws: int
    above: float = 0.0
    below: float = 0.0
    _above: NDArray[np.float64] = field(init=False)
    _below: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self._above, self._below = np.zeros(self.draws), np.zeros(self.draws)

    def add(self, above: float, below: float, weights: NDArray[np.int64]) -> None:
        """Add one picture's share."""
        self.above += above
        self.below += below
        self._above += above * weights
        self._below += below * weights

    def estimate(self, scale: float = 1.0) -> Estimate:
        """The ratio with its interval."""
        if not self.below:
            return Estimate(0.0, 0.0, 0.0, 0.0)
        found = np.divide(self._above, self._below, out=np.zeros(self.draws), where=self._below > 0)
        return around(scale * self.above / self.below, scale * found)


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; no interval (None) where there were no draws.

    Attributes:
        value: the estimate.
        low, high: its interval.
        error: standard error, over draws of pictures.
    """

    value: float
    low: float | None
    high: float | None
    error: float | None

    def told(self) -> dict[str, float | list[float] | None]:
        """As a report holds it."""
        bounds = None if self.low is None or self.high is None else [self.low, self.high]
        return {"value": self.value, "ci95": bounds}


def around(value: float, drawn: NDArray[Any], top: float | None = None, variance: float = 0.0) -> Estimate:
    """An estimate whose interval is 1.96 standard deviations of the draws to each side.

    The draws' own percentiles would lie too low: a draw repeats pictures, and so covers less than the set.

    Args:
        value: the estimate.
        drawn: the same of each draw.
        top: largest possible value.
        variance: what the draws can't know of (`probes.coverage.counts.hidden_variance`).
    """
    if len(drawn) < FEWEST:
        return Estimate(value, None, None, None)
    error = math.hypot(float(drawn.std(ddof=1)), math.sqrt(variance))
    high = value + 1.96 * error
    return Estimate(value, max(0.0, value - 1.96 * error), high if top is None else min(top, high), error)


def estimate(
    tally: Tally,
    measure: Callable[[NDArray[Any]], float],
    scale: float = 1.0,
    top: float | None = None,
    variance: float = 0.0,
) -> Estimate:
    """A function of counts with its interval.

    Args:
        tally: of a set.
        measure: of counts.
        scale: multiplies it.
        top: largest possible value, once scaled.
        variance: as for `around`, before it is scaled.
    """
    found = np.array([measure(column) for column in tally.drawn.T])
    return around(scale * measure(tally.counts), scale * found, top, scale**2 * variance)


def difference(one: Estimate, other: Estimate) -> Estimate:
    """How much more the first is than the second, as if no picture were in both sets.

    Where some are, the interval is wider than it need be.
    """
    value = one.value - other.value
    if one.error is None or other.error is None:
        return Estimate(value, None, None, None)
    error = float(np.hypot(one.error, other.error))
    return Estimate(value, value - 1.96 * error, value + 1.96 * error, error)
