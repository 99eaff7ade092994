"""Shadows: which of their blocks are hashed apart, which rows are moved, which prompts they get, what fits."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tccd.decoding.vllm.admission import Room
from tccd.decoding.vllm.pairs import MovedHasher
from tccd.decoding.vllm.prompts import with_images
from tccd.errors import ConfigError

BLOCK = 4


def plainly(request: Any) -> list[bytes]:
    """vLLM's chain: each block hashes its tokens and the hash before it."""
    known = list(request.block_hashes)
    new = []
    for i in range(len(known), len(request.all_token_ids) // BLOCK):
        before = (known + new)[-1] if known + new else b""
        new.append(hashlib.sha256(before + bytes(request.all_token_ids[i * BLOCK : (i + 1) * BLOCK])).digest())
    return new


def hashes(tokens: list[int], steps: list[int], hasher: Any) -> list[bytes]:
    """Of a request that grows by steps."""
    request = SimpleNamespace(all_token_ids=[], block_hashes=[])
    for end in sorted({*steps, len(tokens)}):
        request.all_token_ids = tokens[:end]
        request.block_hashes += hasher(request)
    return request.block_hashes


@given(
    tokens=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    moved=st.integers(1, 40),
    steps=st.lists(st.integers(0, 40), max_size=5),
    marks=st.lists(st.sampled_from(["a", "b"]), min_size=2, max_size=2),
)
def test_blocks_with_a_moved_position_hash_apart_and_the_others_alike(tokens, moved, steps, marks):
    plain = hashes(tokens, [], plainly)
    one = hashes(tokens, steps, MovedHasher(plainly, moved, marks[0], BLOCK))
    other = hashes(tokens, [], MovedHasher(plainly, moved, marks[1], BLOCK))
    for i, (p, a, b) in enumerate(zip(plain, one, other, strict=True)):
        apart = (i + 1) * BLOCK > moved
        assert (a != p) == apart
        assert (a != b) == (apart and marks[0] != marks[1])


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 12))
def test_rows_from_the_first_moved_position_on_are_moved(first, computed, count):
    pytest.importorskip("vllm")
    from tccd.decoding.vllm.worker import moved_rows

    found = moved_rows(first, None, computed, count).tolist()
    assert found == [i for i in range(count) if computed + i >= first]


@given(st.lists(st.booleans(), min_size=1, max_size=20), st.integers(0, 30), st.integers(1, 12))
def test_rows_of_a_mask_are_moved_and_generated_ones_are_not(mask, computed, count):
    pytest.importorskip("vllm")
    import numpy as np

    from tccd.decoding.vllm.worker import moved_rows

    found = moved_rows(0, np.array(mask), computed, count).tolist()
    assert found == [i for i in range(count) if computed + i < len(mask) and mask[computed + i]]


def test_images_take_the_place_of_their_marks():
    assert with_images([1, 9, 2, 9], (9,), [[9, 9], [8, 9, 8]]) == ([1, 9, 9, 2, 8, 9, 8], [1, 4])
    assert with_images([1, 2], (9,), [[9, 9]]) == ([1, 2], [])
    with pytest.raises(ConfigError, match="marks 1 images, and the request has 2"):
        with_images([1, 9], (9,), [[9], [9]])


@pytest.mark.parametrize(
    ("prompt", "other", "answer", "said"),
    [
        (10, 10, 54, None),
        (10, 11, 54, "the reference's prompt has 11 tokens, and max_tokens is 54: more than the 64"),
        (1, 10, 5, "two tokens of prompt; this one has 1, its reference 10"),
        (10, 0, 5, "its reference 0"),
        (40, 40, 8, None),
        (40, 40, 9, "may take 14 blocks of the KV cache, of 12: lower max_tokens, which is 9"),
    ],
)
def test_what_can_never_fit_is_refused(prompt, other, answer, said):
    found = Room(context=64, blocks=13 if prompt == 40 else 17, block=8).lacks(prompt, other, answer)
    assert (found is None) == (said is None)
    assert said is None or said in found
    if said and "blocks" in said:
        assert Room(context=64, blocks=None, block=8).lacks(prompt, other, answer) is None
