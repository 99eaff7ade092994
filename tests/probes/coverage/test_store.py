"""Codes on disk come back as they were, and by picture, whatever the order of its samples."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from probes.coverage.store import Store, pairs
from tests.probes.coverage.sets import drawn, record, store

CODES = st.lists(st.integers(0, 9), max_size=4)


@given(st.lists(st.tuples(CODES, CODES, st.integers(0, 3)), max_size=12))
def test_samples_are_put_together_by_picture(given_):
    records = [record(text, vision) for text, vision, _ in given_]
    made = store(records, [picture for *_, picture in given_])
    found = {picture.samples: picture for picture in made.pictures()}
    wanted: dict[int, list[int]] = {}
    for number, (*_, picture) in enumerate(given_):
        wanted.setdefault(picture, []).append(number)
    assert {tuple(samples) for samples in wanted.values()} == set(found)
    for samples, picture in found.items():
        for name in ("text", "vision"):
            union = sorted(set().union(*(getattr(records[i], name).tolist() for i in samples)))
            assert getattr(picture, name).tolist() == union
        assert picture.tokens == sum(records[i].tokens for i in samples)
    assert sorted(picture.number for picture in found.values()) == list(range(len(wanted)))


def test_records_come_back_as_they_were_more_than_once():
    records = drawn(7)
    made = store(records[:4])
    made.add(records[4:], ["f" * 16] * 3)
    for _ in range(2):
        for before, after in zip(records, made, strict=True):
            assert (before.text == after.text).all()
            assert (before.vision == after.vision).all()
            assert (before.tokens, before.home, before.spread) == (after.tokens, after.home, after.spread)
    assert made.digests[-1] == 2**64 - 1
    assert len(Store()) == 0


def test_a_pair_has_its_own_number():
    every = pairs(np.arange(3), np.arange(4), 4)
    assert sorted(every.tolist()) == list(range(12))
    assert pairs(np.array([2]), np.array([1]), 4).tolist() == [9]
