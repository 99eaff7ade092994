"""Intervals, paired tests and alpha protocols: pure functions of counts and outcomes, no model in sight.

Accuracies and costs are fractions, not points. An interval or test here takes items as independent; where
several items share an image, `paired_bootstrap_ratio` resamples images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tccd.errors import ConfigError, DataError, require

Table = Mapping[str, Mapping[float, float]]
"""`{task: {alpha: value}}`: deltas or accuracies, higher is better, the same alphas for every task."""


@dataclass(frozen=True)
class McNemar:
    """A paired test. `b`: right before, wrong after (harmed). `c`: wrong before, right after (helped)."""

    b: int
    c: int
    p_value: float
    test: str


@dataclass(frozen=True)
class PairedDifference:
    """Accuracies of two runs over the same `n` items; `cost` = baseline - other, with its interval."""

    n: int
    baseline: float
    other: float
    cost: float
    low: float
    high: float


@dataclass(frozen=True)
class Ratio:
    """Text cost / vision cost with its interval, or None for all three and the `reason` why not."""

    value: float | None
    low: float | None
    high: float | None
    reason: str | None = None


@dataclass(frozen=True)
class Asymmetry:
    """Unweighted means over tasks; `ratio` keeps its sign and is None where the vision cost is zero."""

    text_cost: float
    vision_cost: float
    ratio: float | None


@dataclass(frozen=True)
class Protocol:
    """What an alpha protocol chose, and what that gave: one alpha and one value a task (or a model).

    `oracle` is true where alpha was chosen on the very outcomes that are reported: an upper bound, never a
    result that a user can expect.
    """

    name: str
    chosen: Mapping[str, float]
    values: Mapping[str, float]
    oracle: bool = False

    @property
    def mean(self) -> float:
        """Unweighted mean of `values`."""
        return _mean(self.values.values())

    @property
    def n_positive(self) -> int:
        """How many values lie above zero (meaningful for deltas)."""
        return sum(value > 0 for value in self.values.values())


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
    proportion = require("statsmodels.stats.proportion", "report")
    low, high = proportion.proportion_confint(correct, n, alpha=1 - _level(level), method="wilson")
    # The formula gives 0 and 1 at the ends but for rounding.
    return (0.0 if correct == 0 else max(float(low), 0.0)), (1.0 if correct == n else min(float(high), 1.0))


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
    _, b, c, _ = _paired(before, after)
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


def paired_difference(
    baseline_correct: ArrayLike, other_correct: ArrayLike, level: float = 0.95
) -> PairedDifference:
    """Cost of a second run over the same items, with `difference_interval`.

    Args:
        baseline_correct: (n,) booleans of the baseline.
        other_correct: (n,) booleans of the other run, same order.
        level: confidence.

    Raises:
        DataError: as `mcnemar`.
        ConfigError: a level outside (0, 1).
    """
    both, b, c, n = _paired(baseline_correct, other_correct)
    low, high = difference_interval(b, c, n, level)
    return PairedDifference(n, (both + b) / n, (both + c) / n, (b - c) / n, low, high)


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
    z = float(require("scipy.stats", "report").norm.ppf((1 + _level(level)) / 2))
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
        _outcomes(values, name)
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
    tail = (1 - _level(level)) / 2
    losses = np.stack([baseline.astype(int) - text, baseline.astype(int) - vision], axis=1)
    # The ratio of sums is the ratio of mean costs, whatever the sizes of the clusters drawn.
    draws = _draw_clusters(losses, clusters, n_resamples, seed)
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
    _, harmed, helped, n = _paired(before, after)
    score = difference_interval(helped, harmed, n, level)
    gains = _outcomes(after, "after").astype(int) - _outcomes(before, "before")
    draws = _draw_clusters(np.stack([gains, np.ones_like(gains)], axis=1), clusters, n_resamples, seed)
    tail = (1 - _level(level)) / 2
    low, high = np.quantile(draws[:, 0] / draws[:, 1], [tail, 1 - tail])
    return min(score[0], float(low)), max(score[1], float(high))


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
    text, vision = _mean(text_costs.values()), _mean(vision_costs.values())
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


def fixed(table: Table, alpha: float) -> Protocol:
    """The value of every task at one alpha, fixed in advance.

    Raises:
        DataError: an empty or ragged table.
        ConfigError: an alpha that the table doesn't hold.
    """
    alphas = _alphas({"": table})
    if alpha not in alphas:
        raise ConfigError(f"alpha = {alpha!r} is not in the table; it holds {alphas}")
    return Protocol("fixed", dict.fromkeys(table, alpha), {task: row[alpha] for task, row in table.items()})


def cv(table: Table) -> Protocol:
    """Leave one task out: each task's value at the alpha with the best mean over the other tasks.

    Ties go to the smallest alpha, as in the published tables.

    Raises:
        DataError: an empty or ragged table, or fewer than two tasks.
    """
    alphas = _alphas({"": table})
    if len(table) < 2:
        raise DataError("leaving one task out needs at least two tasks; the table holds one")
    chosen = {}
    for task in table:
        others = [row for name, row in table.items() if name != task]
        chosen[task] = _best_alpha({alpha: _mean(row[alpha] for row in others) for alpha in alphas})
    return Protocol("cv", chosen, {task: table[task][alpha] for task, alpha in chosen.items()})


def best(table: Table) -> Protocol:
    """Each task's best alpha, chosen on the outcomes reported: an oracle upper bound, not a result.

    Ties go to the smallest alpha.

    Raises:
        DataError: an empty or ragged table.
    """
    _alphas({"": table})
    chosen = {task: _best_alpha(row) for task, row in table.items()}
    return Protocol("best", chosen, {task: table[task][a] for task, a in chosen.items()}, oracle=True)


def leave_one_model_out(tables: Mapping[str, Table]) -> Protocol:
    """Each model's mean over its tasks, at the alpha with the best mean over the other models.

    A model weighs the same whatever its number of tasks. Ties go to the smallest alpha.

    Args:
        tables: `{model: {task: {alpha: value}}}`, the same alphas everywhere.

    Raises:
        DataError: an empty or ragged table, or fewer than two models.
    """
    alphas = _alphas(tables)
    if len(tables) < 2:
        raise DataError("leaving one model out needs at least two models")
    means = {m: {a: _mean(row[a] for row in table.values()) for a in alphas} for m, table in tables.items()}
    chosen = {}
    for model in means:
        others = [row for name, row in means.items() if name != model]
        chosen[model] = _best_alpha({alpha: _mean(row[alpha] for row in others) for alpha in alphas})
    return Protocol("leave-one-model-out", chosen, {model: means[model][a] for model, a in chosen.items()})


def _draw_clusters(
    values: NDArray[np.int_], clusters: ArrayLike | None, n_resamples: int, seed: int
) -> NDArray[np.int_]:
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


def _best_alpha(scores: Mapping[float, float]) -> float:
    # A mean of equal deltas differs in its last bits with the order of its terms; ties must not.
    top = max(scores.values())
    return min(alpha for alpha, score in scores.items() if score >= top - 1e-12)


def _alphas(tables: Mapping[str, Table]) -> list[float]:
    rows = [(f"{model} {task}".strip(), row) for model, table in tables.items() for task, row in table.items()]
    if not rows or not rows[0][1] or not all(tables.values()):
        raise DataError("the table is empty; expected {task: {alpha: value}} with at least one of each")
    expected = sorted(rows[0][1])
    for name, row in rows:
        if sorted(row) != expected:
            raise DataError(f"task {name} holds alphas {sorted(row)}; expected {expected} as in {rows[0][0]}")
        if not all(math.isfinite(value) for value in row.values()):
            raise DataError(f"task {name} holds a value that is not finite")
    return expected


def _mean(values) -> float:
    values = list(values)
    return math.fsum(values) / len(values)


def _level(level: float) -> float:
    if not 0 < level < 1:
        raise ConfigError(f"level = {level!r}; expected a confidence between 0 and 1, such as 0.95")
    return level


def _count(value: int, name: str) -> int:
    whole = int(value)
    if whole != value or whole < 0:
        raise DataError(f"{name} = {value!r}; expected a whole number of items, 0 or more")
    return whole


def _outcomes(values: ArrayLike | Sequence[bool], name: str) -> NDArray[np.bool_]:
    array = np.asarray(values)
    if array.ndim != 1 or not len(array):
        raise DataError(f"{name} has shape {array.shape}; expected one outcome an item, at least one item")
    if array.dtype != bool and not np.isin(array, (0, 1)).all():
        raise DataError(f"{name} holds values other than true and false; compare answers with the truth first")
    return array.astype(bool)


def _paired(before: ArrayLike, after: ArrayLike) -> tuple[int, int, int, int]:
    """Both right, only `before` right, only `after` right, and all items."""
    first, second = _outcomes(before, "before"), _outcomes(after, "after")
    if len(first) != len(second):
        raise DataError(f"outcomes of {len(first)} and {len(second)} items; expected the same items in both")
    return (
        int((first & second).sum()),
        int((first & ~second).sum()),
        int((~first & second).sum()),
        len(first),
    )
