"""The plan of a step against a position-by-position simulation of the two caches."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tccd.decoding.config import TCCDConfig
from tccd.decoding.vllm.batch import Chunk, Tail, plan
from tccd.decoding.vllm.settings import Settings

BLOCK = 4


@dataclass
class Simulated:
    """A request whose erased cache says of each position whose state it holds: "clean", "erased" or nothing."""

    tail: int
    prompt: int
    total: int
    computed: int
    kept: Tail
    erased: dict[int, str] = field(default_factory=dict)

    @property
    def whole_blocks(self) -> int:
        return -(-self.total // BLOCK)


@st.composite
def requests(draw: st.DrawFn) -> Simulated:
    prompt = draw(st.integers(2, 30))
    tail = draw(st.integers(1, prompt - 1))
    cached = draw(st.integers(0, (prompt - 1) // BLOCK)) * BLOCK
    config = TCCDConfig(layer=2, tokens=draw(st.sampled_from(["all", "first"])))
    kept = Tail(Settings(config, "default"), tail, prompt)
    simulated = Simulated(tail, prompt, prompt + draw(st.integers(1, 9)), cached, kept)
    # A prefix-cache hit: blocks with a tail position come from a request that erased the same; others from
    # anybody, whose erased copies may hold nothing.
    for block in range(cached // BLOCK):
        if (block + 1) * BLOCK > tail:
            for position in range(block * BLOCK, (block + 1) * BLOCK):
                simulated.erased[position] = "clean" if position < tail else "erased"
    return simulated


@given(batch=st.lists(requests(), min_size=1, max_size=4), data=st.data())
def test_every_erased_row_finds_its_whole_past(batch: list[Simulated], data: st.DataObject) -> None:
    while any(s.computed < s.total for s in batch):
        chunks, start = [], 0
        for index, s in enumerate(batch):
            left = s.total - s.computed
            if not left:
                continue
            most = left if s.computed < s.prompt else 1
            count = min(data.draw(st.integers(1, 12)), most)
            chunks.append(Chunk(s.kept, index, start, count, s.computed))
            start += count
        found = plan(chunks, BLOCK)
        erased_rows = set() if found is None else set(found.rows.tolist())
        if found is not None:
            for index, blocks in found.copies:
                for position in range(blocks * BLOCK):
                    batch[index].erased[position] = "clean"
        for chunk in chunks:
            s = batch[chunk.index]
            for i in range(chunk.count):
                position = chunk.computed + i
                assert (chunk.start + i in erased_rows) == (position >= s.tail)
                if position >= s.tail:
                    s.erased[position] = "erased"
            if chunk.end > s.tail:
                expected = {p: "clean" if p < s.tail else "erased" for p in range(chunk.end)}
                assert {p: s.erased.get(p) for p in range(chunk.end)} == expected
                chunk.tail.started = True
            s.computed = chunk.end
        if found is not None:
            assert (np.diff(found.offsets) > 0).all()
            assert found.offsets[-1] == len(found.rows)
            ends = [c.end for c in chunks if c.end > batch[c.index].tail]
            assert found.lengths.tolist() == ends
            lasts = [c.start + c.count - 1 for c in chunks if c.end > batch[c.index].tail]
            assert found.rows[found.last].tolist() == lasts


@given(s=requests())
def test_the_first_token_alone_is_contrasted_where_asked(s: Simulated) -> None:
    first = Chunk(s.kept, 0, 0, s.prompt - s.computed, s.computed)
    later = Chunk(s.kept, 0, 0, 1, s.prompt)
    only_first = s.kept.settings.config.tokens == "first"
    assert first.contrasts
    assert later.contrasts == (not only_first)
    assert first.strength == 1.0
    assert later.strength == (0.0 if only_first else 1.0)


def test_a_step_before_the_tail_has_no_plan() -> None:
    tail = Tail(Settings(TCCDConfig(layer=2), "default"), start=10, prompt=20)
    assert plan([Chunk(tail, 0, 0, 8, 0)], BLOCK) is None
    assert plan([Chunk(tail, 0, 0, 2, 8)], BLOCK) is None
    assert plan([Chunk(tail, 0, 0, 3, 8)], BLOCK) is not None
