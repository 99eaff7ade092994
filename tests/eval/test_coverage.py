"""The coverage benchmarks measure what they say, on little."""

from __future__ import annotations

from collections import Counter

import pytest

from eval.coverage.known import scenes, taken
from eval.coverage.scale import ROWS, measure
from eval.zoo.data import attributes, by_image
from tccd.data import load_samples
from tests.probes.coverage.sets import drawn, store


@pytest.mark.parametrize(("source", "kinds"), [("easy-vqa", 24), ("digits", 10)])
def test_each_kind_has_as_many_images(source, kinds):
    samples, found = scenes(source, 5)
    assert Counter(found) == dict.fromkeys(range(kinds), 5)
    assert len({sample.image_id for sample in samples}) == len(samples)


def test_a_kind_is_what_the_questions_say():
    samples, found = scenes("easy-vqa", 2)
    groups = by_image(load_samples("easy-vqa", split="train"))
    for sample, kind in zip(samples, found, strict=True):
        assert divmod(kind, 8) == attributes(groups[sample.image_id])


def test_a_part_of_a_store_is_a_store():
    whole = store(drawn(9))
    part = taken(whole, [i % 2 == 0 for i in range(9)])
    assert [record.text.tolist() for record in part] == [r.text.tolist() for r in list(whole)[::2]]
    assert part.digests.tolist() == whole.digests[::2].tolist()


def test_a_size_is_measured():
    told = measure(64, 20)
    assert told["images"] == 64
    assert told["peak_mib"] > 0
    assert set(ROWS) == {"text", "vision"}
