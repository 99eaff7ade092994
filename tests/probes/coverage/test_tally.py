"""Counting in a stream gives what counting in memory gives, and intervals hold what they should."""

from __future__ import annotations

import numpy as np
import pytest

from probes.coverage.counts import expected_covered, hidden_variance
from probes.coverage.measure import gather, rows
from probes.coverage.store import pairs
from probes.coverage.tally import Sums, Tally, Weights, difference, draws_for, estimate
from tests.probes.coverage.sets import drawn, record, store

K = {"text": 6, "vision": 8, "pairs": 48}


def incidence(records, name):
    hits = np.zeros((len(records), K[name]), bool)
    for row, one in enumerate(records):
        codes = pairs(one.text, one.vision, K["vision"]) if name == "pairs" else getattr(one, name)
        hits[row, codes] = True
    return hits


def test_weights_are_a_multinomial_draw():
    found = np.array(list(Weights(50, 400, 0)))
    assert found.shape == (50, 400)
    assert (found.sum(0) == 50).all()
    assert found.mean(1) == pytest.approx(1, abs=0.25)
    assert found.var() == pytest.approx(1 - 1 / 50, rel=0.05)
    assert (found == np.array(list(Weights(50, 400, 0)))).all()


@pytest.mark.parametrize("name", ["text", "vision", "pairs"])
def test_a_stream_counts_as_a_matrix_does(name):
    records = drawn(40)
    found = gather(store(records), K, draws=30, seed=1).codebooks()[name]
    hits = incidence(records, name)
    weights = np.array(list(Weights(40, 30, 1)))
    assert (found.counts == hits.sum(0)).all()
    assert (found.drawn == hits.T.astype(int) @ weights).all()
    for code in range(K[name]):
        first = np.flatnonzero(hits[:, code])[: Tally.SHOWN]
        assert found.shown[code][found.shown[code] >= 0].tolist() == first.tolist()


def test_copies_and_samples_of_one_picture_are_one_picture():
    records = [record([0, 1], [3]), record([2], [3, 4]), record([5], [7])]
    once = gather(store(records, [9, 9, 4]), K, draws=0)
    twice = gather(store([*records, records[0], records[2]], [9, 9, 4, 9, 4]), K, draws=0)
    for found in (once, twice):
        assert found.pictures == 2
        assert found.text.counts.tolist() == [1, 1, 1, 0, 0, 1]
        assert found.vision.counts.tolist() == [0, 0, 0, 1, 1, 0, 0, 1]
        assert found.pairs.counts.sum() == 3 * 2 + 1
    assert (once.samples, twice.samples) == (3, 5)


def test_more_questions_raise_the_density_of_text_alone():
    one = [record([0, 1], [3, 4]), record([1], [5])]
    more = [*one, record([2, 3], [3, 4]), record([0, 4], [5])]
    few, many = gather(store(one), K, draws=0), gather(store(more, [0, 1, 0, 1]), K, draws=0)
    assert many.density["text"].estimate().value > few.density["text"].estimate().value
    assert many.density["vision"].estimate().value == few.density["vision"].estimate().value


def test_facts_have_numbers_that_all_sets_share():
    from probes.coverage.probe import tally

    facts = {"a": [(("circle",), ("circle", "red"))] * 2, "b": [(("circle",),), (("square",),)]}
    stores = {name: store([record([0], [0]), record([1], [1])]) for name in facts}
    found = tally(stores, K, {name: one.__getitem__ for name, one in facts.items()}, draws=0)
    assert found["a"].facts.counts.tolist() == [2, 2, 0]
    assert found["b"].facts.counts.tolist() == [1, 0, 1]
    told = rows(found)
    density = {(row["set"], row["measure"]): row["value"] for row in told["density"]}
    assert density["a", "facts"] == 2
    assert density["b", "facts_samples"] == 1
    assert [row["added"] for row in told["between"] if row["codebook"] == "facts"] == [1, 1]


def test_a_ratio_of_sums_is_weighted():
    sums = Sums(3)
    for above, below, weights in ((2, 4, [1, 0, 2]), (3, 1, [1, 2, 0])):
        sums.add(above, below, np.array(weights))
    assert sums.estimate().value == 1
    np.testing.assert_allclose(sums._above / sums._below, [1, 3, 0.5])


def test_intervals_hold_the_truth():
    """95 % intervals of coverage, over 150 drawn sets: the expectation under the chances that they came from."""
    chances = np.random.default_rng(1).beta(0.2, 20, 256)
    n, held = 300, 0
    truth = (1 - (1 - chances) ** n).sum()
    for seed in range(150):
        hits = np.random.default_rng(seed).random((n, len(chances))) < chances
        tally = Tally(len(chances), 100)
        tally.n, tally.counts = n, hits.sum(0)
        tally.drawn = hits.T.astype(int) @ np.array(list(Weights(n, 100, seed)))
        more = hidden_variance(tally.counts, n, n)
        found = estimate(tally, lambda counts: expected_covered(counts, n, n), variance=more)
        held += found.low <= truth <= found.high
    assert held >= 0.9 * 150  # 0.86 without the variance of codes that are hidden


def test_a_difference_is_as_unsure_as_both():
    tallies = [gather(store(drawn(30, seed=seed)), K, draws=50, seed=seed).vision for seed in (0, 1)]
    one, other = (estimate(tally, lambda counts: expected_covered(counts, 30, 10)) for tally in tallies)
    found = difference(one, other)
    assert found.value == pytest.approx(one.value - other.value)
    assert found.error == pytest.approx(np.hypot(one.error, other.error))


def test_room_limits_the_draws_of_large_codebooks():
    assert draws_for(256 * 256) == 200
    assert 20 <= draws_for(1024 * 1024) < 200
    assert draws_for(4096 * 4096) == 0
    told = rows({"a": gather(store(drawn(5)), K, draws=0)})
    assert all(row["rarefied"]["ci95"] is None for row in told["coverage"])
