"""Subsets: the lazy greedy choice is the plain one, and every way gives what was asked for."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from probes.coverage.assigning import Codebooks
from probes.coverage.store import pairs
from probes.coverage.subset import WAYS, _quotas, choose, compare, covers, greedy
from tccd.centroids.bank import CentroidBank
from tccd.decoder import ModelIdentity
from tccd.errors import ConfigError
from tests.probes.coverage.sets import drawn, store

MODEL = ModelIdentity("drawn", None, "llava", 4, 3, None)


def codebooks(text=6, vision=8):
    draw = torch.Generator().manual_seed(0)
    arrays = {
        ("text", 1): torch.randn(text, 4, generator=draw),
        ("vision", 1): torch.randn(vision, 4, generator=draw),
    }
    return Codebooks.of(CentroidBank.from_arrays(MODEL, arrays), {})


def plain_greedy(records, k, count):
    """Every gain computed anew at every step."""
    hits = np.zeros(k["text"] + k["vision"] + k["pairs"])
    chosen = []
    codes = [
        [*r.text, *(r.vision + k["text"]), *(pairs(r.text, r.vision, k["vision"]) + k["text"] + k["vision"])]
        for r in records
    ]
    for _ in range(count):
        left = [i for i in range(len(records)) if i not in chosen]
        best = max(left, key=lambda i: ((hits[codes[i]] == 0).sum(), (1 / (1 + hits[codes[i]])).sum(), -i))
        chosen.append(best)
        hits[codes[best]] += 1
    return sorted(chosen)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [1, 7, 20])
def test_lazy_greedy_is_greedy(seed, count):
    records, k = drawn(20, seed=seed), codebooks().k
    assert greedy(records, k, count) == plain_greedy(records, k, count)


def test_greedy_covers_more_than_chance():
    made, books = store(drawn(60)), codebooks()
    rows = {row["how"]: row for row in compare("a", made, books, 8)}
    assert set(rows) == set(WAYS)
    assert rows["greedy"]["pairs"] > rows["random"]["pairs"]
    assert rows["greedy"] == {"set": "a", "how": "greedy", "samples": 8} | covers(
        made, books.k, choose("greedy", made, books, 8)
    )


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("count", [1, 9, 30])
def test_as_many_as_asked_for_each_once(how, count):
    chosen = choose(how, store(drawn(30)), codebooks(), count, seed=3)
    assert len(set(chosen)) == count
    assert chosen == sorted(chosen)
    assert set(chosen) <= set(range(30))


@pytest.mark.parametrize("count", [0, 31])
def test_more_than_there_are_is_refused(count):
    with pytest.raises(ConfigError, match=f"subset of {count} samples; the set has 30"):
        choose("greedy", store(drawn(30)), codebooks(), count)


def test_quotas_are_whole_and_within_sizes():
    draw = np.random.default_rng(0)
    for _ in range(50):
        share = draw.dirichlet(np.full(6, 0.2))
        size = draw.integers(1, 9, 6)
        count = int(draw.integers(1, size.sum() + 1))
        quota = np.array(_quotas(share, size, count))
        assert quota.sum() == count
        assert (quota <= size).all()
        assert (quota >= 0).all()


def test_denser_clusters_give_fewer():
    """Of two clusters that are as near to each other, the one whose samples are alike gives fewer."""
    records = [replace(r, home=(0, i % 2), spread=(1.0, [0.2, 3.0][i % 2])) for i, r in enumerate(drawn(60))]
    chosen = choose("coincide", store(records), codebooks(text=1, vision=3), 20)
    assert sum(records[i].home[1] == 1 for i in chosen) > 12


def test_json_of_rows_is_plain():
    json.dumps(compare("a", store(drawn(12)), codebooks(), 4))
