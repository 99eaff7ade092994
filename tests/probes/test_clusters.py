"""Questions that share a picture or a wording: intervals that cover, and tests at their level."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from probes.statistics.clusters import (
    FEWEST,
    Clusters,
    clustered,
    clustered_wilson,
    clusters_of,
    mean_difference,
    turned_signs,
)
from probes.statistics.intervals import difference_interval, mcnemar, wilson
from tccd.errors import ConfigError, DataError

outcomes = st.integers(1, 60).flatmap(lambda n: st.tuples(*[st.lists(st.booleans(), min_size=n, max_size=n)] * 2))
shared = st.integers(2, 60).flatmap(
    lambda n: st.tuples(
        *[st.lists(st.booleans(), min_size=n, max_size=n)] * 2,
        *[st.lists(st.integers(0, 9), min_size=n, max_size=n)] * 2,
    )
)


def drawn(generator, *, images=120, each=8, strings=60, by_image=0.2, by_string=0.2, right=0.75, harm=0.06):
    """Outcomes without a true difference, whose changes go together by image and by question string."""
    picture = np.repeat(np.arange(images), each)
    question = np.random.default_rng(strings).integers(0, strings, images * each)
    value = np.sqrt(by_image) * generator.standard_normal(images)[picture]
    value += np.sqrt(by_string) * generator.standard_normal(strings)[question]
    value += np.sqrt(1 - by_image - by_string) * generator.standard_normal(len(picture))
    before = generator.random(len(picture)) < right
    turned = norm.ppf(harm), norm.isf(right * harm / (1 - right))
    return before, np.where(before, value > turned[0], value > turned[1]), Clusters.of(picture, question)


@pytest.mark.parametrize("which", [{"by_string": 0.0}, {"by_image": 0.0}, {}])
def test_the_interval_covers_and_one_of_independent_questions_does_not(which):
    generator = np.random.default_rng(7)
    sets, covered, believed, found, trusted = 1000, 0, 0, 0, 0
    for _ in range(sets):
        before, after, clusters = drawn(generator, **which)
        clustered_one, test = clustered(before, after, clusters), mcnemar(before, after)
        low, high = difference_interval(test.c, test.b, len(before))
        covered += clustered_one.low <= 0 <= clustered_one.high
        believed += low <= 0 <= high
        found += clustered_one.p_value < 0.05
        trusted += test.p_value < 0.05
    assert covered / sets >= 0.935
    assert found / sets <= 0.05
    assert believed / sets < 0.92
    assert trusted / sets > 0.07


@given(shared)
@settings(max_examples=60, deadline=None)
def test_it_is_no_narrower_than_that_of_independent_items_and_mirrors(case):
    before, after, picture, question = case
    clusters = Clusters.of(picture, question)
    test, found = mcnemar(before, after), clustered(before, after, clusters)
    low, high = difference_interval(test.c, test.b, len(before))
    assert -1 <= found.low <= low + 1e-12
    assert high - 1e-12 <= found.high <= 1
    assert found.p_value >= test.p_value - 1e-12
    mirrored = clustered(after, before, clusters)
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low), abs=1e-9)
    assert mirrored.p_value == pytest.approx(found.p_value)


@given(shared, st.randoms())
@settings(max_examples=30, deadline=None)
def test_neither_order_nor_names_of_clusters_make_a_difference(case, random):
    before, after, picture, question = case
    order = list(range(len(before)))
    random.shuffle(order)
    turned = [[column[i] for i in order] for column in (before, after)]
    names = Clusters.of([f"p{9 - picture[i]}" for i in order], [f"q{question[i]}" for i in order])
    found, again = clustered(before, after, Clusters.of(picture, question)), clustered(*turned, names)
    assert (again.low, again.high, again.p_value) == pytest.approx((found.low, found.high, found.p_value))


def test_the_wider_of_picture_and_question_stands_and_is_named():
    before = np.zeros(400, bool)
    after = np.arange(400) % 40 < 10  # ten whole clusters of forty were put right
    clusters = np.arange(400) % 40
    alone = clustered(before, after)
    by_picture = clustered(before, after, Clusters.of(clusters, np.arange(400)))
    by_string = clustered(before, after, Clusters.of(np.arange(400), clusters))
    assert (alone.low, alone.high) == pytest.approx((0.21, 0.29), abs=0.01)
    assert (by_picture.low, by_picture.high) == pytest.approx((0.13, 0.42), abs=0.03)
    assert (by_string.low, by_string.high) == pytest.approx((by_picture.low, by_picture.high), abs=0.02)
    assert alone.by == "item"
    assert "picture" in by_picture.by
    assert "question" in by_string.by
    assert alone.p_value < 1e-20
    assert by_picture.p_value == pytest.approx(2 / 2**10), "ten clusters changed, all for the better"


def test_where_nothing_differs_the_interval_keeps_a_width():
    right = np.ones(100, bool)
    found = clustered(right, right, Clusters.of(np.arange(100) // 4, np.arange(100) % 20))
    assert found.low < -0.03 < 0.03 < found.high
    assert found.p_value == 1.0


def test_one_picture_says_nothing_of_others():
    found = clustered([False] * 20, [True] * 20, Clusters.of(["same"] * 20))
    assert (found.low, found.high, found.p_value) == (-1.0, 1.0, 1.0)
    assert clustered_wilson([True, False], Clusters.of(["same"] * 2)) == (0.0, 1.0)


def test_few_question_strings_are_no_sample_of_wordings():
    generator = np.random.default_rng(0)
    before, after, clusters = drawn(generator, strings=FEWEST - 1)
    pictures = Clusters(clusters.picture)
    assert clustered(before, after, clusters) == clustered(before, after, pictures)
    assert clusters.counts() == {"pictures": 120, "question_strings": FEWEST - 1}
    assert pictures.counts() == {"pictures": 120}


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=11))
def test_turned_signs_are_all_turned(sums):
    ways = [
        abs(sum(s * x for s, x in zip(signs, sums, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(sums))
    ]
    assert turned_signs(sums) == pytest.approx(np.mean([way >= abs(sum(sums)) for way in ways]))


@given(outcomes)
@settings(deadline=None)
def test_single_items_turned_are_mcnemar(pair):
    before, after = pair
    assert turned_signs(np.array(after, int) - np.array(before)) == pytest.approx(mcnemar(before, after).p_value)


def test_a_tiny_p_value_is_no_smaller_than_the_exact_one():
    assert 2.0**-199 <= turned_signs([1] * 200) <= 1e-10


@given(st.lists(st.booleans(), min_size=1, max_size=80))
def test_an_accuracy_of_own_clusters_is_wilson_and_shared_ones_widen_it(right):
    plain = wilson(sum(right), len(right))
    assert clustered_wilson(right) == pytest.approx(plain)
    low, high = clustered_wilson(right, Clusters.of([i // 4 for i in range(len(right))]))
    assert low <= plain[0] + 1e-12
    assert high >= plain[1] - 1e-12


def test_a_difference_of_differences_covers():
    generator = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        one, other, clusters = drawn(generator)
        third, fourth, _ = drawn(generator)
        values = one.astype(int) - other - (third.astype(int) - fourth)
        found = mean_difference(values, clusters)
        covered += found.low <= 0 <= found.high
    assert covered >= 186
    assert mean_difference([2, -2] * 10).value == 0


def test_a_report_is_clustered_by_picture_or_image_id():
    old = {"image_id": ["a", "a", "b"]}
    assert clusters_of(old).counts() == {"pictures": 2}
    new = old | {"picture": ["x", "x", "x"], "prompt": ["p", "q", "q"]}
    assert clusters_of(new).counts() == {"pictures": 1, "question_strings": 2}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Clusters.of([]), DataError, "one label an item"),
        (lambda: Clusters.of([[1, 2]]), DataError, "one label an item"),
        (lambda: Clusters.of([1, 2], [1]), DataError, "each of 2 items"),
        (lambda: clustered([True], [True], Clusters.of([1, 2])), DataError, "clusters of 2 items for 1"),
        (lambda: mean_difference([]), DataError, "at least one item"),
        (lambda: clustered([True, False], [True, True], None, 95), ConfigError, "between 0 and 1"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
