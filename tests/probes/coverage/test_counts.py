"""The algebra of counts against brute force: every subset of pictures, every picture left out."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.coverage.counts import (
    added,
    covered,
    expected_covered,
    growth,
    hill,
    hit_chance,
    novelty,
    redundancy,
    sizes,
    unseen,
)
from tccd.errors import ConfigError


@st.composite
def sets(draw, most=6, codes=5):
    """Which codes each picture hits, shape (pictures, codes)."""
    n = draw(st.integers(1, most))
    bits = draw(st.lists(st.booleans(), min_size=n * codes, max_size=n * codes))
    return np.array(bits).reshape(n, codes)


def counts(hits):
    return hits.sum(0)


def subsets(hits, size):
    return [hits[list(chosen)] for chosen in combinations(range(len(hits)), size)]


@given(sets(), st.data())
def test_rarefaction_is_the_mean_over_all_subsets(hits, data):
    size, least = data.draw(st.integers(0, len(hits))), data.draw(st.integers(1, 3))
    brute = np.mean([(part.sum(0) >= least).sum() for part in subsets(hits, size)])
    assert expected_covered(counts(hits), len(hits), size, least) == pytest.approx(brute)


@given(sets(), st.data())
def test_each_code_has_its_own_chance(hits, data):
    size = data.draw(st.integers(0, len(hits)))
    brute = np.mean([part.any(0) for part in subsets(hits, size)], axis=0)
    np.testing.assert_allclose(hit_chance(counts(hits), len(hits), size), brute, atol=1e-12)


@given(sets())
def test_all_pictures_cover_what_was_hit(hits):
    n = len(hits)
    for least in (1, 2):
        assert expected_covered(counts(hits), n, n, least) == pytest.approx(covered(counts(hits), least))


@given(sets())
def test_good_turing_is_what_each_picture_alone_hits(hits):
    alone = [(hits[i] & ~np.delete(hits, i, 0).any(0)).sum() for i in range(len(hits))]
    total = hits.sum()
    assert unseen(counts(hits)) == pytest.approx(sum(alone) / total if total else 1)


@given(sets(), st.data())
def test_redundancy_is_what_the_others_of_a_draw_hit_too(hits, data):
    size = data.draw(st.integers(1, len(hits)))
    if not hits.any():
        assert redundancy(counts(hits), len(hits), size) == 0
        return
    alone = [(part[i] & ~np.delete(part, i, 0).any(0)).sum() for part in subsets(hits, size) for i in range(size)]
    brute = 1 - np.mean(alone) / hits.sum(1).mean()
    assert redundancy(counts(hits), len(hits), size) == pytest.approx(brute)
    assert redundancy(counts(hits), len(hits), len(hits)) == pytest.approx(1 - unseen(counts(hits)))


@given(sets(most=4), sets(most=4), st.data())
def test_novelty_is_that_of_all_pairs_of_draws(hits, given_, data):
    size = data.draw(st.integers(1, min(len(hits), len(given_))))
    pairs = [(a.any(0), b.any(0)) for a in subsets(hits, size) for b in subsets(given_, size)]
    mine, new = sum(a.sum() for a, _ in pairs), sum((a & ~b).sum() for a, b in pairs)
    found = novelty(counts(hits), len(hits), counts(given_), len(given_), size)
    assert found == pytest.approx(new / mine if mine else 0)


@given(sets(), sets())
def test_added_codes_are_hit_here_and_not_there(hits, given_):
    assert added(counts(hits), counts(given_)) == (hits.any(0) & ~given_.any(0)).sum()


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12))
def test_hill_numbers(values):
    found = np.array(values)
    held = int((found > 0).sum())
    assert hill(found, 0) == pytest.approx(held)
    assert hill(found) == pytest.approx(hill(3 * found))
    assert hill(found) == pytest.approx(hill(found, 1 + 1e-7), rel=1e-4)
    assert held + 1e-9 >= hill(found) >= hill(found, 2) - 1e-9
    assert hill(found) >= (1 - 1e-9 if held else 0)


@given(st.integers(1, 40), st.integers(1, 9))
def test_codes_hit_equally_often_all_count(codes, often):
    assert hill(np.full(codes, often)) == pytest.approx(codes)


@given(sets())
def test_growth_rises_and_slows_down(hits):
    at = list(range(len(hits) + 1))
    values = growth(counts(hits), len(hits), at)
    steps = np.diff(values)
    assert (steps >= -1e-9).all()
    assert (np.diff(steps) <= 1e-9).all()


@given(st.integers(1, 10**7))
def test_a_curve_goes_from_one_picture_to_all(n):
    at = sizes(n)
    assert at[0] == 1
    assert at[-1] == n
    assert at == sorted(set(at))


def test_large_sets_lose_no_digits():
    found = hit_chance(np.array([0, 1, 10**6, 5 * 10**6]), 10**7, 10**6)
    np.testing.assert_allclose(found[:2], [0, 0.1], rtol=1e-6)
    assert found[2:] == pytest.approx(1)


@pytest.mark.parametrize("size", [-1, 4])
def test_more_than_there_are_cant_be_drawn(size):
    with pytest.raises(ConfigError, match=rf"{size} pictures can't be drawn from 3"):
        expected_covered(np.array([1, 2]), 3, size)
