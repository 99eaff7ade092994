"""Intervals and tests where questions share a picture or a question string.

Questions about one picture are right or wrong together, and so are questions of one wording. An interval that
takes them as independent is too narrow. Here every paired difference is looked at three ways: by picture, by
question string, and by both at once; the widest interval and the largest p-value stand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probes.statistics.intervals import (
    checked_outcomes,
    critical,
    paired_outcomes,
    score_interval,
    wilson_interval,
)
from tccd.data import Sample
from tccd.errors import DataError, require

FEWEST = 6
"""Question strings from which on they count as a sample of wordings: with five the smallest p-value of a test
that turns signs is 2 / 2^5 = 0.06. With fewer, an interval is for these very wordings."""

_SURE = 1e-10
"""Below it a Fourier sum has lost its digits, and Hoeffding's bound stands for the p-value."""

Codes = NDArray[np.int_]


@dataclass(frozen=True, eq=False)
class Clusters:
    """Which items go together: whole numbers of shape (n,), equal for items of one cluster.

    Attributes:
        picture: by what the picture shows.
        question: by the question's wording; None where it isn't known.
        both: by picture and wording; None as `question`.
    """

    picture: Codes
    question: Codes | None = None
    both: Codes | None = None

    @classmethod
    def of(cls, picture: ArrayLike | Sequence[str], question: ArrayLike | Sequence[str] | None = None) -> Clusters:
        """From labels.

        Args:
            picture: (n,) labels, equal for equal pictures.
            question: (n,) the question's wording; None where it isn't known.

        Raises:
            DataError: labels that are not one an item.
        """
        pictures = _codes(picture, None)
        if question is None:
            return cls(pictures)
        questions = _codes(question, len(pictures))
        both = np.unique(pictures * (int(questions.max()) + 1) + questions, return_inverse=True)[1]
        return cls(pictures, questions, both.reshape(-1))

    def __len__(self) -> int:
        return len(self.picture)

    def __getitem__(self, at: NDArray[Any]) -> Clusters:
        """The clusters of some items, by a mask or by numbers."""
        return Clusters(
            self.picture[at],
            None if self.question is None else self.question[at],
            None if self.both is None else self.both[at],
        )

    @property
    def pictures(self) -> int:
        """How many pictures there are."""
        return _number(self.picture)

    @property
    def questions(self) -> int | None:
        """How many wordings there are."""
        return None if self.question is None else _number(self.question)

    def counts(self) -> dict[str, int]:
        """`{"pictures", "question_strings"}`, the second where it is known."""
        strings = self.questions
        return {"pictures": self.pictures} | ({} if strings is None else {"question_strings": strings})

    def sampled(self) -> dict[str, Codes]:
        """The clusterings that an interval must hold over: `picture`, and `question` with `FEWEST` or more."""
        found = {"picture": self.picture}
        if self.question is not None and _number(self.question) >= FEWEST:
            found["question"] = self.question
        return found


@dataclass(frozen=True)
class Difference:
    """A mean paired difference with its interval and test.

    Attributes:
        value, low, high: the mean and its interval, fractions.
        p_value: of no difference, two-sided.
        by: what the interval's width comes from: `picture`, `question`, `picture and question` or `item`.
    """

    value: float
    low: float
    high: float
    p_value: float
    by: str


def clusters_of(questions: Mapping[str, Any]) -> Clusters:
    """The clusters of a report's `questions[model]`: pictures by digest (by `image_id` in older reports), and
    wordings where the report has them.
    """
    return Clusters.of(questions.get("picture") or questions["image_id"], questions.get("prompt"))


def clusters_of_samples(samples: Sequence[Sample]) -> Clusters:
    """Which samples show the same picture, and which ask in the same words."""
    return Clusters.of([s.picture_digest for s in samples], [s.prompt for s in samples])


def clustered(
    before: ArrayLike, after: ArrayLike, clusters: Clusters | None = None, level: float = 0.95
) -> Difference:
    """How much more often `after` is right than `before`, over the same items, where items share clusters.

    The interval is Tango's score interval (see `difference_interval`) with its squared critical value
    multiplied by the design effect: how much larger the variance of the mean difference is by clusters than
    by items (Yang, Sun and Hardin, Pharmaceutical Statistics 11:386, 2012, make score intervals of clustered
    McNemar tests alike). Variances are jackknifed over clusters (CV3), quantiles are Student's with clusters - 1
    degrees of freedom (MacKinnon, Nielsen and Webb, Journal of Econometrics 232:272, 2023). Over both
    clusterings at once the variance is that by picture plus that by wording less that by both (Cameron, Gelbach
    and Miller, JBES 29:238, 2011). The largest of these and of no effect at all is taken, so it is never
    narrower than the interval of independent items and keeps a width where nothing changes.

    The p-value is the largest of: exact McNemar; the exact test that turns the signs of whole clusters (Canay,
    Romano and Shaikh, Econometrica 85:1013, 2017; McNemar's is its case of one item a cluster); and, where there
    are two clusterings, the t test with the variance over both.

    Args:
        before, after: (n,) booleans, right or wrong, of the same items.
        clusters: of the items; None where each is its own.
        level: confidence.

    Raises:
        DataError: as `mcnemar`; clusters of other items.
        ConfigError: a level outside (0, 1).
    """
    first, second = paired_outcomes(before, after)
    return mean_difference(second.astype(int) - first, clusters, level)


def mean_difference(values: ArrayLike, clusters: Clusters | None = None, level: float = 0.95) -> Difference:
    """The mean of whole numbers, such as the difference of two models' costs, as `clustered` gives it.

    Where values lie beyond -1 to 1, for which there is no score interval, a t interval with the same variances
    stands for it, with the width of an unchanged item added so that it never closes.

    Args:
        values: (n,) whole numbers.
        clusters: of the items; None where each is its own.
        level: confidence.

    Raises:
        DataError: no items, or clusters of other items.
        ConfigError: a level outside (0, 1).
    """
    d = np.asarray(values, dtype=int)
    clusters = _fitting(clusters, len(d))
    effect, by = _inflation(d, clusters, level)
    z = critical(level) * math.sqrt(effect)
    helped, harmed, n = int((d == 1).sum()), int((d == -1).sum()), len(d)
    mean = float(d.mean())
    if helped + harmed == int((d != 0).sum()):
        low, high = score_interval(helped, harmed, n, z)
    else:
        half = math.hypot(z * math.sqrt(float(d.var(ddof=1)) / n), z * z / (n + z * z))
        low, high = mean - half, mean + half
    return Difference(mean, low, high, _p_value(d, clusters), by)


def clustered_wilson(
    correct: ArrayLike, clusters: Clusters | None = None, level: float = 0.95
) -> tuple[float, float]:
    """Wilson's interval of an accuracy, widened by the design effect as `clustered` does.

    Args:
        correct: (n,) booleans.
        clusters: of the items; None where each is its own.
        level: confidence.

    Raises:
        DataError: as `mcnemar`; clusters of other items.
        ConfigError: a level outside (0, 1).
    """
    right = checked_outcomes(correct, "correct")
    effect, _ = _inflation(right.astype(int), _fitting(clusters, len(right)), level)
    return wilson_interval(int(right.sum()), len(right), critical(level) * math.sqrt(effect))


def _squares(values: NDArray[np.int_], codes: Codes) -> tuple[float, int]:
    """Sum of the squared sums over clusters, and how many clusters there are."""
    sums = np.bincount(codes, weights=values)
    return float(sums @ sums), _number(codes)


def _number(codes: Codes) -> int:
    return int(np.count_nonzero(np.bincount(codes)))


def _codes(labels: ArrayLike | Sequence[str], n: int | None) -> Codes:
    array = np.asarray(labels)
    if array.ndim != 1 or not len(array) or n not in (None, len(array)):
        expected = "one label an item" if n is None else f"one label for each of {n} items"
        raise DataError(f"clusters of shape {array.shape}; expected {expected}")
    return np.unique(array, return_inverse=True)[1].reshape(-1)


def _fitting(clusters: Clusters | None, n: int) -> Clusters | None:
    if not n:
        raise DataError("an interval needs at least one item; n = 0")
    if clusters is not None and len(clusters) != n:
        raise DataError(f"clusters of {len(clusters)} items for {n} items; expected one label an item")
    return clusters


def _inflation(d: NDArray[np.int_], clusters: Clusters | None, level: float) -> tuple[float, str]:
    """How much wider, squared, than the normal interval of independent items; and for which clustering."""
    z, n = critical(level), len(d)
    if clusters is None:
        return 1.0, "item"
    student = require("scipy.stats", "report").t
    alone = float(d.var(ddof=1)) / n if n > 1 else 0.0
    found = {"item": 1.0}
    variances, sizes = {}, {}
    for name, codes in clusters.sampled().items():
        variances[name], sizes[name] = _jackknife(d, codes)
    if "question" in variances and clusters.both is not None:
        name = "picture and question"
        variances[name] = sum(variances.values()) - _jackknife(d, clusters.both)[0]
        sizes[name] = min(sizes.values())
    for name, variance in variances.items():
        if sizes[name] < 2:
            return math.inf, name  # one cluster says nothing of another
        quantile = float(student.ppf((1 + level) / 2, sizes[name] - 1))
        effect = max(variance / alone, 1.0) if alone else 1.0
        found[name] = effect * (quantile / z) ** 2
    widest = max(found, key=found.__getitem__)
    return found[widest], widest


def _jackknife(d: NDArray[np.int_], codes: Codes) -> tuple[float, int]:
    """Variance of the mean by leaving out one cluster at a time, and how many clusters there are."""
    sizes = np.bincount(codes)
    sums = np.bincount(codes, weights=d)[sizes > 0]
    sizes = sizes[sizes > 0]
    if len(sizes) < 2:
        return math.inf, len(sizes)
    without = (sums.sum() - sums) / (len(d) - sizes)
    return float((len(sizes) - 1) / len(sizes) * ((without - d.mean()) ** 2).sum()), len(sizes)


def _p_value(d: NDArray[np.int_], clusters: Clusters | None) -> float:
    total = float(d.sum())
    if not total:
        return 1.0
    found = [turned_signs(d)]
    if clusters is None:
        return found[0]
    sampled = clusters.sampled()
    found += [turned_signs(np.bincount(codes, weights=d)) for codes in sampled.values()]
    if "question" in sampled and clusters.both is not None:
        (one, n_one), (other, n_other) = (_squares(d, codes) for codes in sampled.values())
        spread = one + other - _squares(d, clusters.both)[0]
        # Where it isn't the largest of the three the tests above say more.
        if spread > max(one, other):
            t = require("scipy.stats", "report").t
            found.append(2 * float(t.sf(abs(total) / math.sqrt(spread), min(n_one, n_other) - 1)))
    return max(found)


def turned_signs(sums: ArrayLike) -> float:
    """Exact two-sided test that sums are as likely of either sign: all ways of turning their signs.

    By the characteristic function of the sum of turned signs, a product of cosines. A p-value below 1e-10 is
    Hoeffding's bound, which is larger than the exact one.

    Args:
        sums: (G,) whole numbers, one a cluster.

    Example:
        >>> turned_signs([1, 1, 1, 1, 1, -1])
        0.21875
    """
    signed = np.rint(np.asarray(sums, dtype=float)).astype(int)
    sizes, counts = np.unique(np.abs(signed[signed != 0]), return_counts=True)
    total = abs(int(signed.sum()))
    if not total:
        return 1.0
    most = int(sizes @ counts)
    length = 2 * most + 2
    angles = 2 * math.pi * np.arange(length // 2 + 1) / length
    wave = np.ones_like(angles)
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        wave *= np.cos(size * angles) ** count
    chances = np.fft.irfft(wave, length)
    p = 2 * float(chances[total : most + 1].sum())
    if p < _SURE:
        return min(_SURE, 2 * math.exp(-(total**2) / (2 * float(sizes**2 @ counts))))
    return min(1.0, p)
