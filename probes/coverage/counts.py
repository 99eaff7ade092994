"""Pure functions of counts: in how many pictures of a set was each code hit?

A *code* is one centroid of a codebook, or a pair of them, or a fact. All that is measured of a set follows from
its *counts*: of shape (codes,), the number of distinct pictures that hit each code, out of `n` pictures. Pictures
are what is sampled, so rows of one picture never count as independent.

Sources: Good, Biometrika 40:237 (1953), on what is unseen; Hill, Ecology 54:427 (1973); rarefaction of incidence
counts as in Colwell et al., Journal of Plant Ecology 5:3 (2012).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tccd.errors import ConfigError, require

Counts = NDArray[Any]


def covered(counts: Counts, least: int = 1) -> int:
    """How many codes at least `least` pictures hit.

    Args:
        counts: shape (codes,).
        least: pictures that make a code covered; 2 or 3 leave out what one odd picture hit.
    """
    return int((counts >= least).sum())


def hit_chance(counts: Counts, n: int, size: int, least: int = 1) -> NDArray[np.float64]:
    """The chance that each code is covered by `size` pictures drawn from the `n` without replacement.

    Args:
        counts: shape (codes,), each at most `n`.
        n: pictures of the set.
        size: pictures drawn, at most `n`.
        least: as for `covered`.

    Returns:
        Shape (codes,): hypergeometric tails.

    Raises:
        ConfigError: `size` is not between 0 and `n`.
    """
    if not 0 <= size <= n:
        raise ConfigError(f"{size} pictures can't be drawn from {n}; expected a size of 0 to {n}")
    values, where = np.unique(counts, return_inverse=True)
    missed = np.zeros(len(values))
    for hits in range(least):
        missed += np.exp(_log_chance(values, n, size, hits))
    return np.clip(1 - missed, 0, 1)[where.reshape(-1)]


def expected_covered(counts: Counts, n: int, size: int, least: int = 1) -> float:
    """How many codes `size` pictures of the set cover on average: rarefaction.

    Sets of unequal size are compared at an equal one, since a larger set covers more by its size alone.

    Args:
        counts: as for `hit_chance`; so are the others.
        n: pictures of the set.
        size: pictures drawn.
        least: as for `covered`.

    Raises:
        ConfigError: as `hit_chance`.
    """
    return growth(counts, n, [size], least)[0]


def hidden_variance(counts: Counts, n: int, size: int) -> float:
    """What codes that no picture has hit yet add to the variance of `expected_covered`.

    Draws of the pictures at hand know nothing of them, so an interval of draws alone is too narrow. Their number
    is Chao's lower bound (Chao2, bias-corrected; Biometrics 43:783, 1987), at most what the codebook has left;
    together they have the mass that Good and Turing give them, each alike.

    Args:
        counts: as for `hit_chance`.
        n: pictures of the set.
        size: pictures drawn.
    """
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    hidden = min((n - 1) / n * once * (once - 1) / (2 * (twice + 1)), float((counts == 0).sum()))
    if hidden <= 0:
        return 0.0
    hit = 1 - (1 - min(1.0, once / n / hidden)) ** size
    return hidden * hit * (1 - hit)


def hill(counts: Counts, order: float = 1.0) -> float:
    """The effective number of codes: so many codes, hit equally often, would be as diverse.

    Args:
        counts: shape (codes,).
        order: q. 0 counts every code that was hit; 1, the usual one, is exp of Shannon's entropy; 2 weighs common
            codes more.

    Returns:
        0 where no code was hit.
    """
    held = counts[counts > 0]
    if not len(held):
        return 0.0
    shares = held / held.sum(dtype=float)
    if order == 1:
        return float(np.exp(-(shares * np.log(shares)).sum()))
    return float((shares**order).sum() ** (1 / (1 - order)))


def unseen(counts: Counts) -> float:
    """Good-Turing: of the codes that one more picture hits, the share that no picture has hit so far.

    That is singletons over all hits. Leaving each picture out in turn and looking at what only it hit gives
    exactly the same.

    Args:
        counts: shape (codes,).

    Returns:
        A share; 1 where nothing was hit, for then all is unseen.
    """
    total = float(counts.sum(dtype=float))
    return float((counts == 1).sum()) / total if total else 1.0


def redundancy(counts: Counts, n: int, size: int) -> float:
    """Of the codes of a picture, the share that the other `size` - 1 pictures hit too, on average.

    At `size` = `n` it is 1 - `unseen`. Sets are compared at an equal size.

    Args:
        counts: as for `hit_chance`.
        n: pictures of the set.
        size: pictures drawn, at least 1.

    Returns:
        A share; 0 where nothing was hit.

    Raises:
        ConfigError: as `hit_chance`.
    """
    total = float(counts.sum(dtype=float))
    if not total:
        return 0.0
    alone = expected_covered(counts, n, size) - expected_covered(counts, n, size - 1)
    return float(np.clip(1 - alone / (total / n), 0, 1))


def novelty(counts: Counts, n: int, given: Counts, given_n: int, size: int) -> float:
    """Of the codes that `size` pictures of a set hit, the share that as many pictures of another set do not.

    Args:
        counts: of the set, shape (codes,).
        n: its pictures.
        given: counts of the other set, over the same codes.
        given_n: its pictures.
        size: pictures drawn from each, independently.

    Returns:
        A share; 0 where the set hits nothing.

    Raises:
        ConfigError: as `hit_chance`.
    """
    mine = hit_chance(counts, n, size)
    total = float(mine.sum())
    return float((mine * (1 - hit_chance(given, given_n, size))).sum()) / total if total else 0.0


def added(counts: Counts, given: Counts, least: int = 1) -> int:
    """How many codes a set covers that another does not, each as large as it is.

    Args:
        counts: of the set.
        given: of the other.
        least: as for `covered`.
    """
    return int(((counts >= least) & (given < least)).sum())


def sizes(n: int, points: int = 16) -> list[int]:
    """Numbers of pictures at which a growth curve is drawn: from 1 to `n`, evenly on a logarithmic scale.

    Args:
        n: pictures of the set.
        points: of the curve, at most.
    """
    return sorted({round(n ** (i / (points - 1))) for i in range(points)} | {1, n})


def growth(counts: Counts, n: int, at: Sequence[int], least: int = 1) -> list[float]:
    """Codes covered on average by each number of pictures.

    Args:
        counts: as for `hit_chance`.
        n: pictures of the set.
        at: numbers of pictures.
        least: as for `covered`.

    Raises:
        ConfigError: as `hit_chance`.
    """
    values, often = np.unique(counts, return_counts=True)
    return [float((hit_chance(values, n, size, least) * often).sum()) for size in at]


def _log_chance(values: Counts, n: int, size: int, hits: int) -> NDArray[np.float64]:
    """log of the hypergeometric chance of exactly `hits` among `size` drawn."""
    values = values.astype(float)
    possible = (values >= hits) & (n - values >= size - hits) & (size >= hits)
    held = np.where(possible, values, 0.0)
    k, rest = float(hits), float(size - hits)
    if hits > size:
        return np.full(len(values), -math.inf)
    found = (
        _log_choose(np.where(possible, held, k), k)
        + _log_choose(np.where(possible, n - held, rest), rest)
        - _log_choose(np.float64(n), float(size))
    )
    return np.where(possible, found, -math.inf)


def _log_choose(n: Any, k: float) -> Any:
    gammaln = require("scipy.special", "report").gammaln
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
