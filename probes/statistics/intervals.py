"""Intervals and paired tests: pure functions of counts and outcomes, no model in sight.

Accuracies and costs are fractions, not points. An interval or test here takes items as independent; where
items share a picture or a question string, `probes.statistics.clusters` widens them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tccd.errors import ConfigError, DataError, require

SIGNIFICANT = 0.05
"""A p-value below it counts as a finding."""


@dataclass(frozen=True)
class McNemar:
    """A paired test. `b`: right before, wrong after (harmed). `c`: wrong before, right after (helped)."""

    b: int
    c: int
    p_value: float
    test: str


@dataclass(frozen=True)
class Asymmetry:
    """Unweighted means over tasks; `ratio` keeps its sign and is None where the vision cost is zero."""

    text_cost: float
    vision_cost: float
    ratio: float | None


def wilson(correct: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson, JASA 22:209, 1927).

    Args:
        correct: right answers, 0 to n.
        n: items, at least 1.
        level: confidence, between 0 and 1.

    Raises:
        DataError: no items, or a count outside 0 to n.
        ConfigError: a level outside (0, 1).

    Example:
        >>> low, high = wilson(63, 132)
        >>> round(low, 3), round(high, 3)
        (0.394, 0.562)
    """
    correct, n = _count(correct, "correct"), _count(n, "n")
    if n == 0:
        raise DataError("an interval needs at least one item; n = 0")
    if correct > n:
        raise DataError(f"{correct} right answers out of {n} items; expected at most {n}")
    return wilson_interval(correct, n, critical(level))


def wilson_interval(correct: int, n: int, z: float) -> tuple[float, float]:
    """Wilson's interval with a critical value `z` instead of a confidence; n at least 1."""
    if math.isinf(z):
        return 0.0, 1.0
    middle = correct + z * z / 2
    half = z * math.sqrt(correct * (n - correct) / n + z * z / 4)
    low, high = (middle - half) / (n + z * z), (middle + half) / (n + z * z)
    # The formula gives 0 and 1 at the ends but for rounding.
    return (0.0 if correct == 0 else max(low, 0.0)), (1.0 if correct == n else min(high, 1.0))


def mcnemar(before: ArrayLike, after: ArrayLike) -> McNemar:
    """Exact McNemar test of two runs over the same items (two-sided binomial on the discordant pairs).

    Args:
        before: (n,) booleans, right or wrong in the first run.
        after: (n,) booleans of the second run, same order.

    Raises:
        DataError: no items, other lengths, or values that aren't true or false.

    Example:
        >>> mcnemar([True, True, False, True], [True, False, False, True])
        McNemar(b=1, c=0, p_value=1.0, test='exact')
    """
    _, b, c, _ = paired_counts(before, after)
    return mcnemar_counts(b, c)


def mcnemar_counts(b: int, c: int, test: Literal["exact", "chi2"] = "exact") -> McNemar:
    """McNemar test from the two discordant counts.

    Args:
        b: items right before and wrong after.
        c: items wrong before and right after.
        test: `exact`, the binomial test; `chi2`, the asymptotic test without continuity correction, which the
            published tables use and which is too small for few discordant pairs: for comparison only.

    Raises:
        DataError: a count is negative or no whole number.
        ConfigError: another test.
    """
    b, c = _count(b, "b"), _count(c, "c")
    if test not in ("exact", "chi2"):
        raise ConfigError(f"test = {test!r}; expected 'exact' or 'chi2'")
    if b + c == 0:
        return McNemar(b, c, 1.0, test)  # nothing differs; the chi-square statistic would be 0 / 0
    tables = require("statsmodels.stats.contingency_tables", "report")
    result = tables.mcnemar([[0, b], [c, 0]], exact=test == "exact", correction=False)
    return McNemar(b, c, min(1.0, float(result.pvalue)), test)


def difference_interval(b: int, c: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Score interval of a paired difference of proportions, (b - c) / n.

    Tango (Statistics in Medicine 17:891, 1998): the differences which the score test, with the nuisance
    probability at its restricted maximum likelihood, doesn't reject. It extends McNemar's test as Wilson's
    extends the test of one proportion: it excludes zero exactly where the uncorrected chi-square test
    rejects, and it holds its coverage where few items change (Fagerland, Lydersen, Laake, ibid. 33:2850,
    2014), the usual case here. Unlike a Wald interval it has a width when nothing changes: z^2 / (n + z^2)
    to either side.

    Args:
        b: items right in the first run only.
        c: items right in the second run only.
        n: all items, at least 1.
        level: confidence.

    Raises:
        DataError: no items, or more discordant items than items.
        ConfigError: a level outside (0, 1).
    """
    b, c, n = _count(b, "b"), _count(c, "c"), _count(n, "n")
    if n == 0:
        raise DataError("an interval needs at least one item; n = 0")
    if b + c > n:
        raise DataError(f"{b} + {c} discordant items out of {n}; expected at most {n}")
    return score_interval(b, c, n, critical(level))


def score_interval(b: int, c: int, n: int, z: float) -> tuple[float, float]:
    """`difference_interval` with a critical value `z` instead of a confidence; b + c at most n, n at least 1."""
    if math.isinf(z):
        return -1.0, 1.0
    root = require("scipy.optimize", "report").brentq

    def excess(delta: float) -> float:
        # score^2 - z^2, multiplied out so that it stays finite where the variance vanishes. `q` is the larger
        # root of 2n q^2 + linear q + product, in the form that doesn't cancel.
        linear = -b - c + (2 * n - b + c) * delta
        product = -c * delta * (1 - delta)
        swing = math.sqrt(max(linear * linear - 8 * n * product, 0.0))
        q = -2 * product / (swing + linear) if linear > 0 else (swing - linear) / (4 * n)
        return (b - c - n * delta) ** 2 - z * z * n * (2 * q + delta * (1 - delta))

    estimate = (b - c) / n
    # The score is monotone in delta, so each side of the estimate holds one root. The estimate itself is a
    # false one where the variance vanishes there, hence the step away from it.
    low = -1.0 if c == n else root(excess, -1.0, estimate - 1e-12, xtol=1e-14)
    high = 1.0 if b == n else root(excess, estimate + 1e-12, 1.0, xtol=1e-14)
    return float(low), float(high)


def asymmetry(text_costs: Mapping[str, float], vision_costs: Mapping[str, float]) -> Asymmetry:
    """Mean text cost, mean vision cost, and their ratio, each task with the same weight.

    The published `asymmetry_ratio` is the absolute value of this ratio; where vision erasure raised accuracy
    the sign tells.

    Raises:
        DataError: no tasks, or other tasks in one than in the other.
    """
    if not text_costs or set(text_costs) != set(vision_costs):
        raise DataError(
            f"text costs of tasks {sorted(text_costs)}, vision costs of {sorted(vision_costs)}; "
            "expected the same tasks, at least one"
        )
    text, vision = fmean(text_costs.values()), fmean(vision_costs.values())
    return Asymmetry(text, vision, None if vision == 0 else text / vision)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's step-down adjustment for several tests (Scandinavian Journal of Statistics 6:65, 1979).

    Args:
        p_values: (m,) p-values in [0, 1]; m may be 0.

    Returns:
        (m,) adjusted p-values, in the given order.

    Raises:
        DataError: not one-dimensional, or a value outside [0, 1].
    """
    values = np.asarray(p_values, dtype=float)
    if values.ndim != 1:
        raise DataError(f"p-values of shape {values.shape}; expected one dimension")
    if not np.all((values >= 0) & (values <= 1)):
        raise DataError("a p-value is outside [0, 1] or not a number")
    # statsmodels' `multipletests` (the tests hold this against it) collects garbage: a second beside a model.
    order = np.argsort(values)
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def critical(level: float) -> float:
    """The two-sided critical value of the normal distribution.

    Raises:
        ConfigError: a level outside (0, 1).
    """
    return float(require("scipy.stats", "report").norm.ppf((1 + checked_level(level)) / 2))


def checked_level(level: float) -> float:
    """A confidence as it came.

    Raises:
        ConfigError: it is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ConfigError(f"level = {level!r}; expected a confidence between 0 and 1, such as 0.95")
    return level


def _count(value: int, name: str) -> int:
    whole = int(value)
    if whole != value or whole < 0:
        raise DataError(f"{name} = {value!r}; expected a whole number of items, 0 or more")
    return whole


def checked_outcomes(values: ArrayLike | Sequence[bool], name: str) -> NDArray[np.bool_]:
    """Outcomes as booleans, shape (n,).

    Raises:
        DataError: no items, more than one dimension, or values that aren't true or false; `name` names them.
    """
    array = np.asarray(values)
    if array.ndim != 1 or not len(array):
        raise DataError(f"{name} has shape {array.shape}; expected one outcome an item, at least one item")
    if array.dtype != bool and not np.isin(array, (0, 1)).all():
        raise DataError(f"{name} holds values other than true and false; compare answers with the truth first")
    return array.astype(bool)


def paired_outcomes(before: ArrayLike, after: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Both as booleans of the same shape (n,).

    Raises:
        DataError: as `mcnemar`.
    """
    first, second = checked_outcomes(before, "before"), checked_outcomes(after, "after")
    if len(first) != len(second):
        raise DataError(f"outcomes of {len(first)} and {len(second)} items; expected the same items in both")
    return first, second


def paired_counts(before: ArrayLike, after: ArrayLike) -> tuple[int, int, int, int]:
    """Items right in both runs, in `before` only, in `after` only, and all items.

    Raises:
        DataError: as `mcnemar`.
    """
    first, second = paired_outcomes(before, after)
    return (
        int((first & second).sum()),
        int((first & ~second).sum()),
        int((~first & second).sum()),
        len(first),
    )
