"""Packed masks against a loop that asks, for every query and every key, whether it may be seen."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tccd.engine.masks import Columns, causal, packed
from tccd.engine.stand_ins import MeanColumn
from tccd.engine.streams import NEVER, ErasedLayer, Stream
from tccd.engine.twins import Withheld


def by_loop(clean, streams, past, kv_offset):
    """For every row, query and key of the packed layout: may it be seen?"""
    n, kv = clean.shape[-2:]
    now = past + n
    batch = max([len(clean), *(len(columns.start) for columns, _ in streams)])
    clean = clean.expand(batch, -1, -1, -1)

    def twin_sees(row: int, query: int, column: int) -> bool:
        key = column - kv_offset
        return 0 <= key < kv and bool(clean[row, 0, query, key])

    queries = [(None, i) for i in range(n)]
    keys = [(None, kv_offset + j) for j in range(kv)]
    for s, (columns, count) in enumerate(streams):
        queries += [(s, i) for i in range(n - count, n)]
        keys += [(s, column) for column in range(columns.first, now)]

    out = torch.zeros(batch, 1, len(queries), len(keys), dtype=torch.bool)
    for row in range(batch):
        for q, (stream, query) in enumerate(queries):
            for k, (owner, column) in enumerate(keys):
                if stream is None:
                    may = owner is None
                else:
                    erased = column >= int(streams[stream][0].start[row])
                    may = owner == (stream if erased else None)
                out[row, 0, q, k] = may and twin_sees(row, query, column)
    return out


@st.composite
def layouts(draw):
    """A forward of `n` columns after `past`, a cache that may have passed some, and up to two streams."""
    past, n = draw(st.integers(0, 6)), draw(st.integers(1, 6))
    now = past + n
    kv_offset = draw(st.integers(0, past))
    spare = draw(st.integers(0, 3)) if kv_offset == 0 else 0  # columns a static cache has yet to fill
    batch = draw(st.integers(1, 3))
    streams = []
    for _ in range(draw(st.integers(0, 2))):
        starts = draw(
            st.lists(st.sampled_from([*range(now + 1), NEVER]), min_size=batch, max_size=batch).filter(
                lambda s: min(s) <= now
            )
        )
        columns = Columns(torch.tensor(starts), min(starts))
        streams.append((columns, min(n, now - columns.first)))
    return batch, past, n, kv_offset, now - kv_offset + spare, streams


@settings(deadline=None)
@given(layouts(), st.booleans(), st.integers(0, 2**16))
def test_packed_is_the_loop_for_any_clean_mask(layout, shared, seed):
    batch, past, n, kv_offset, kv, streams = layout
    generator = torch.Generator().manual_seed(seed)
    clean = torch.rand(1 if shared else batch, 1, n, kv, generator=generator) < 0.7
    got, _ = packed(clean, streams, past, kv_offset)
    expected = by_loop(clean, streams, past, kv_offset)
    assert got.dtype == torch.bool
    assert got.shape == expected.shape
    assert torch.equal(got, expected)


@settings(deadline=None)
@given(layouts())
def test_an_erased_query_sees_each_column_its_twin_sees_once(layout):
    _, past, n, kv_offset, kv, streams = layout
    clean = causal(n, past, kv, kv_offset, torch.device("cpu"))
    got, _ = packed(clean, streams, past, kv_offset)
    seen = clean.sum(-1).flatten()
    expected = torch.cat([seen, *(seen[n - queries :] for _, queries in streams)])
    assert torch.equal(got.sum(-1)[:, 0], expected.expand(len(got), -1))


def test_a_row_that_the_stream_leaves_alone_sees_clean_keys_only():
    clean = causal(4, 0, 4, 0, torch.device("cpu"))
    columns = Columns(torch.tensor([2, NEVER]), 2)
    got, _ = packed(clean, [(columns, 2)], 0, 0)
    assert torch.equal(got[1, 0, 4:, :4], clean[0, 0, 2:])
    assert not got[1, 0, 4:, 4:].any()
    assert got[0, 0, 4:].int().tolist() == [[1, 1, 0, 0, 1, 0], [1, 1, 0, 0, 1, 1]]


def test_without_streams_the_clean_mask_comes_back():
    clean = causal(3, 2, 5, 0, torch.device("cpu"))
    assert torch.equal(packed(clean, [], 2, 0)[0], clean)


def test_own_keys_that_a_sliding_window_has_passed_are_hidden():
    # Columns 0..6, the window keeps 4..6; the stream owns 2..6 and keeps all of its keys.
    clean = torch.ones(1, 1, 1, 3, dtype=torch.bool)
    got, _ = packed(clean, [(Columns(torch.tensor([2]), 2), 1)], 6, 4)
    assert got[0, 0, 1].int().tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("past", [0, 1, 4])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("kv_offset", [0, 1])
@pytest.mark.parametrize("spare", [0, 2])
def test_causal_is_the_loop(past, n, kv_offset, spare):
    length = past + n - kv_offset + spare
    got = causal(n, past, length, kv_offset, torch.device("cpu"))
    assert got.shape == (1, 1, n, length)
    for i in range(n):
        for j in range(length):
            assert bool(got[0, 0, i, j]) == (kv_offset + j <= past + i)


def test_a_crop_leaves_stand_ins_and_takes_the_last_columns():
    at = MeanColumn(torch.zeros(2, 4), torch.tensor([[False, True, True, False]]), torch.tensor([1]))
    stream = Stream(Withheld(), Columns(torch.tensor([3]), 3, stand_ins=at))
    for crop in (-2, 4):  # so many columns less; the legacy form, the length to keep
        layer = ErasedLayer(None, 0, 0, stream)
        keys = torch.arange(4.0).view(1, 1, 4, 1)  # the stand-in, columns 3 to 5
        layer.update(keys, keys)
        assert layer.get_mask_sizes(1) == (7, 0)
        layer.crop(crop)
        assert layer.keys.flatten().tolist() == [0, 1]
