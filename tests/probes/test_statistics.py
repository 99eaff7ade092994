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

from probes.statistics import (
    asymmetry,
    best,
    clustered_interval,
    cv,
    difference_interval,
    fixed,
    holm,
    leave_one_model_out,
    mcnemar,
    mcnemar_counts,
    paired_bootstrap_ratio,
    paired_difference,
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


@given(outcomes)
def test_paired_difference_is_the_difference_of_accuracies(pair):
    first, second = pair
    result = paired_difference(first, second)
    assert result.n == len(first)
    assert result.baseline == pytest.approx(np.mean(first))
    assert result.other == pytest.approx(np.mean(second))
    assert result.cost == pytest.approx(result.baseline - result.other, abs=1e-12)
    assert result.low <= result.cost <= result.high


def erased(seed, n=3000, text=0.25, vision=0.06):
    generator = np.random.default_rng(seed)
    clean = generator.random(n) < 0.95
    return clean, clean & (generator.random(n) > text), clean & (generator.random(n) > vision)


def test_bootstrap_ratio_is_the_ratio_of_costs_and_repeats():
    clean, text, vision = erased(0)
    result = paired_bootstrap_ratio(clean, text, vision, seed=3)
    assert result.value == pytest.approx((clean.mean() - text.mean()) / (clean.mean() - vision.mean()), rel=1e-12)
    assert result.low < result.value < result.high
    assert result.reason is None
    assert paired_bootstrap_ratio(clean, text, vision, seed=3) == result


def test_bootstrap_ratio_covers_at_its_level():
    covered = 0
    for seed in range(200):
        result = paired_bootstrap_ratio(*erased(seed), n_resamples=1000)
        covered += result.low <= 0.25 / 0.06 <= result.high
    assert covered / 200 > 0.91


def test_bootstrap_over_images_is_wider_where_items_of_an_image_agree():
    clean, text, vision = (np.repeat(x, 10) for x in erased(1, n=400))
    images = np.repeat([f"image-{i}" for i in range(400)], 10)
    items = paired_bootstrap_ratio(clean, text, vision)
    clustered = paired_bootstrap_ratio(clean, text, vision, clusters=images)
    assert clustered.value == items.value
    assert clustered.high - clustered.low > 2 * (items.high - items.low)


def test_bootstrap_of_single_item_clusters_is_the_bootstrap_of_items():
    data = erased(2)
    assert paired_bootstrap_ratio(*data, clusters=np.arange(3000)) == paired_bootstrap_ratio(*data)


@pytest.mark.parametrize("which", ["nothing", "noise", "gain"])
def test_ratio_without_a_vision_cost_is_not_estimable(which):
    clean, text, vision = erased(4)
    vision = clean.copy()
    if which == "noise":
        vision[np.flatnonzero(clean)[:2]] = False
    baseline = text if which == "gain" else clean
    result = paired_bootstrap_ratio(baseline, text, vision)
    assert (result.value, result.low, result.high) == (None, None, None)
    assert "not estimable" in result.reason
    assert ("lies below zero" if which == "gain" else "reaches zero") in result.reason


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


alphas = (0.0, 0.2, 0.4, 0.8)
tables = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.fixed_dictionaries({a: st.floats(-1, 1) for a in alphas}),
    min_size=2,
    max_size=6,
)


@given(tables)
def test_no_protocol_beats_the_oracle(table):
    oracle = best(table)
    assert oracle.oracle
    for protocol in (cv(table), *(fixed(table, alpha) for alpha in alphas)):
        assert not protocol.oracle
        assert protocol.mean <= oracle.mean + 1e-12
        assert all(table[task][a] == protocol.values[task] for task, a in protocol.chosen.items())


@given(tables)
def test_a_task_has_no_say_in_its_own_alpha(table):
    task = next(iter(table))
    changed = {**table, task: {a: -value for a, value in table[task].items()}}
    assert cv(changed).chosen[task] == cv(table).chosen[task]
    models = {"one": table, "two": {"t": {a: -a for a in alphas}}}
    changed_models = {**models, "one": {t: {a: 5.0 * a for a in alphas} for t in table}}
    chosen, changed_chosen = (leave_one_model_out(m).chosen for m in (models, changed_models))
    assert chosen["one"] == changed_chosen["one"] == 0.0


@given(tables)
def test_protocols_do_not_depend_on_the_order_of_tasks_or_alphas(table):
    turned = {t: dict(reversed(row.items())) for t, row in reversed(table.items())}
    assert cv(turned).chosen == cv(table).chosen
    assert best(turned).chosen == best(table).chosen


def test_ties_go_to_the_smallest_alpha():
    flat = {task: {0.8: 0.1, 0.2: 0.1, 0.4: 0.1} for task in "xyz"}
    assert set(cv(flat).chosen.values()) == set(best(flat).chosen.values()) == {0.2}
    assert set(leave_one_model_out({"a": flat, "b": flat}).chosen.values()) == {0.2}
    # The same ten deltas, summed from either end: equal means whose last bits may differ.
    crossed = {str(i): {0.0: 0.1 * i, 1.0: 0.1 * (9 - i)} for i in range(10)}
    assert cv({**crossed, "last": {0.0: 0.0, 1.0: 0.0}}).chosen["last"] == 0.0


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
        (lambda: paired_bootstrap_ratio([True], [True], [True, True]), DataError, "the same items"),
        (lambda: paired_bootstrap_ratio([1], [1], [0], clusters=[1, 2]), DataError, "one label an item"),
        (lambda: paired_bootstrap_ratio([1], [1], [0], n_resamples=1), ConfigError, "at least 100"),
        (lambda: holm([0.1, math.nan]), DataError, "not a number"),
        (lambda: holm([[0.1]]), DataError, "one dimension"),
        (lambda: fixed({"a": {0.4: 0.1}}, 0.5), ConfigError, "not in the table"),
        (lambda: cv({"a": {0.4: 0.1}}), DataError, "two tasks"),
        (lambda: best({}), DataError, "empty"),
        (lambda: best({"a": {}}), DataError, "empty"),
        (lambda: best({"a": {0.1: 0.0}, "b": {0.2: 0.0}}), DataError, "task b holds alphas"),
        (lambda: best({"a": {0.1: math.nan}}), DataError, "not finite"),
        (lambda: leave_one_model_out({"m": {"a": {0.1: 0.0}}}), DataError, "two models"),
        (lambda: asymmetry({"a": 0.1}, {"b": 0.1}), DataError, "the same tasks"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@given(outcomes, st.integers(0, 3))
@settings(max_examples=40)
def test_a_clustered_interval_holds_the_score_interval_and_mirrors(pair, seed):
    before, after = pair
    test = mcnemar(before, after)
    low, high = clustered_interval(before, after, range(len(before)), n_resamples=500, seed=seed)
    score = difference_interval(test.c, test.b, len(before))
    assert -1 <= low <= score[0] <= score[1] <= high <= 1
    mirrored = clustered_interval(after, before, range(len(before)), n_resamples=500, seed=seed)
    # Percentiles of other draws: alike, not equal.
    assert mirrored == pytest.approx((-high, -low), abs=0.1)


def test_items_that_go_together_widen_the_interval():
    before = np.zeros(400, bool)
    after = np.arange(400) % 40 < 10  # ten whole images of forty were put right
    images = np.arange(400) % 40
    alone = clustered_interval(before, after, range(400))
    together = clustered_interval(before, after, images)
    assert alone == pytest.approx((0.21, 0.29), abs=0.01)
    assert together == pytest.approx((0.125, 0.4), abs=0.03)


def test_a_clustered_interval_covers_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        # 80 images with 5 questions each; an image's questions change together half of the time.
        change = np.repeat(generator.random(80), 5)
        own = generator.random(400)
        value = np.where(np.repeat(generator.random(80) < 0.5, 5), change, own)
        helped, harmed = value < 0.15, value > 0.95
        before = (~helped & generator.integers(0, 2, 400).astype(bool)) | harmed
        after = (before & ~harmed) | helped
        low, high = clustered_interval(before, after, np.repeat(np.arange(80), 5), n_resamples=300)
        covered += low <= 0.10 <= high
    assert covered >= 180


@pytest.mark.parametrize("bad", [[1, 2], [[1, 2, 3]]])
def test_clusters_that_do_not_fit_are_refused(bad):
    with pytest.raises(DataError, match="one label an item"):
        clustered_interval([True, False, True], [True, True, True], bad)
