from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from probes.statistics.intervals import (
    asymmetry,
    difference_interval,
    holm,
    mcnemar,
    mcnemar_counts,
    wilson,
)
from tccd.errors import ConfigError, DataError

counts = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
discordant = st.integers(1, 300).flatmap(
    lambda n: st.integers(0, n).flatmap(lambda b: st.tuples(st.just(b), st.integers(0, n - b), st.just(n)))
)
outcomes = st.integers(1, 60).flatmap(lambda n: st.tuples(*[st.lists(st.booleans(), min_size=n, max_size=n)] * 2))


@given(counts)
def test_wilson_brackets_the_proportion_and_equals_statsmodels(case):
    correct, n = case
    low, high = wilson(correct, n)
    assert 0 <= low <= correct / n <= high <= 1
    assert low < high
    assert (low, high) == pytest.approx(proportion_confint(correct, n, method="wilson"), abs=1e-12)


@given(counts)
def test_wilson_is_symmetric_and_wider_at_a_higher_level(case):
    correct, n = case
    low, high = wilson(correct, n)
    mirrored_low, mirrored_high = wilson(n - correct, n)
    assert (low, high) == pytest.approx((1 - mirrored_high, 1 - mirrored_low), abs=1e-12)
    assert wilson(correct, n, 0.99)[1] - wilson(correct, n, 0.99)[0] > high - low


def test_wilson_at_the_ends_is_exact():
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0


@given(outcomes)
def test_mcnemar_counts_the_discordant_pairs_and_is_symmetric(pair):
    before, after = pair
    test = mcnemar(before, after)
    assert test.b == sum(x and not y for x, y in zip(before, after, strict=True))
    assert test.c == sum(y and not x for x, y in zip(before, after, strict=True))
    assert 0 < test.p_value <= 1
    assert mcnemar(after, before).p_value == test.p_value
    table = [[0, test.b], [test.c, 0]]
    assert test.p_value == pytest.approx(min(1.0, reference_mcnemar(table, exact=True).pvalue))


def test_mcnemar_without_discordant_pairs_finds_nothing():
    assert mcnemar([True, False], [True, False]).p_value == 1.0
    assert mcnemar_counts(0, 0, "chi2").p_value == 1.0


def test_a_tiny_p_value_stays_above_zero():
    assert 0 < mcnemar_counts(2, 900).p_value < 1e-200


@given(discordant)
@settings(max_examples=200)
def test_difference_interval_brackets_the_estimate_and_is_antisymmetric(case):
    b, c, n = case
    low, high = difference_interval(b, c, n)
    assert -1 <= low <= (b - c) / n <= high <= 1
    assert low < high
    assert difference_interval(c, b, n) == pytest.approx((-high, -low), abs=1e-9)


@given(discordant)
@settings(max_examples=200)
def test_difference_interval_excludes_zero_where_the_score_test_rejects(case):
    b, c, n = case
    low, high = difference_interval(b, c, n)
    p_value = mcnemar_counts(b, c, "chi2").p_value
    if abs(p_value - 0.05) > 1e-9:
        assert (low > 0 or high < 0) == (p_value < 0.05)


def test_difference_interval_of_published_examples():
    # Airway reactivity, 1 + 7 discordant of 21: Fagerland, Lydersen, Laake 2014, table of intervals.
    assert difference_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)
    # Nothing changed: z^2 / (n + z^2).
    z2 = norm.ppf(0.975) ** 2
    assert difference_interval(0, 0, 50) == pytest.approx((-z2 / (50 + z2), z2 / (50 + z2)), abs=1e-9)


@pytest.mark.parametrize(
    ("n", "only_first", "only_second"),
    [(130, 0.02, 0.02), (130, 0.2, 0.05), (1000, 0.004, 0.001), (1000, 0.1, 0.03), (4800, 0.05, 0.11)],
)
def test_difference_interval_covers_at_its_level(n, only_first, only_second):
    generator = np.random.default_rng(7)
    draws = generator.multinomial(n, [only_first, only_second, 1 - only_first - only_second], size=1500)
    true = only_first - only_second
    covered = 0
    for b, c, _ in draws:
        low, high = difference_interval(b, c, n)
        covered += low <= true <= high
    # 1,500 draws: a coverage of 0.95 is seen as 0.95 +- 0.011 (two standard errors). Above it is allowed.
    assert covered / 1500 > 0.93


@given(st.lists(st.floats(0, 1), max_size=40))
@settings(max_examples=8, deadline=None)  # statsmodels collects garbage on each call
def test_holm_equals_statsmodels_and_keeps_the_order(p_values):
    adjusted = holm(p_values)
    if p_values:
        assert adjusted == pytest.approx(multipletests(p_values, method="holm")[1])
    assert len(adjusted) == len(p_values)
    assert np.all(adjusted >= np.asarray(p_values))
    assert np.all(adjusted <= 1)
    order = np.argsort(p_values, kind="stable")
    assert np.all(np.diff(adjusted[order]) >= 0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.randoms())
@settings(max_examples=15)
def test_holm_follows_a_permutation(p_values, random):
    order = list(range(len(p_values)))
    random.shuffle(order)
    assert holm([p_values[i] for i in order]) == pytest.approx(holm(p_values)[order])


def test_asymmetry_keeps_its_sign():
    result = asymmetry({"a": 0.2, "b": 0.4}, {"a": -0.1, "b": -0.1})
    assert result.text_cost == pytest.approx(0.3)
    assert result.ratio == pytest.approx(-3.0)
    assert asymmetry({"a": 0.2}, {"a": 0.0}).ratio is None


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: wilson(0, 0), DataError, "at least one item"),
        (lambda: wilson(5, 4), DataError, "5 right answers out of 4"),
        (lambda: wilson(-1, 4), DataError, "0 or more"),
        (lambda: wilson(1.5, 4), DataError, "whole number"),
        (lambda: wilson(1, 4, 95), ConfigError, "between 0 and 1"),
        (lambda: mcnemar([], []), DataError, "at least one item"),
        (lambda: mcnemar([True], [True, False]), DataError, "1 and 2 items"),
        (lambda: mcnemar([0.2], [1.0]), DataError, "true and false"),
        (lambda: mcnemar(["yes"], ["no"]), DataError, "true and false"),
        (lambda: mcnemar([[True]], [[True]]), DataError, "shape"),
        (lambda: mcnemar_counts(1, 2, "mid-p"), ConfigError, "'exact' or 'chi2'"),
        (lambda: difference_interval(3, 3, 5), DataError, "3 \\+ 3 discordant"),
        (lambda: difference_interval(0, 0, 0), DataError, "at least one item"),
        (lambda: holm([0.1, math.nan]), DataError, "not a number"),
        (lambda: holm([[0.1]]), DataError, "one dimension"),
        (lambda: asymmetry({"a": 0.1}, {"b": 0.1}), DataError, "the same tasks"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
