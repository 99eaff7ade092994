"""Attention of a packed prompt in two calls, and the self-test of prefix equality once a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from tccd import TCCD
from tccd.engine import masks, packing, session
from tests.tccd.decoding.common import RAGGED, SINGLE, generate, text_bank
from tests.tiny import inputs, tiny


def test_causal_first_is_attention_under_the_packed_mask() -> None:
    columns = masks.Columns(torch.tensor([4, 6]), 4)
    mask, _ = masks.packed(masks.causal(9, 0, 9, 0, torch.device("cpu")), [(columns, 5)], 0, 0)
    states = [torch.randn(2, 3, 14, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    whole = sdpa(*states, attn_mask=mask, scale=0.2)
    with packing.CausalFirst(9, mask):
        split = sdpa(*states, attn_mask=mask, scale=0.2)
        other = sdpa(*states, attn_mask=mask.clone(), scale=0.2)
    # Padding rows of a stream that owns no such column see nothing; nobody reads them.
    read = mask.any(-1).expand(-1, 3, -1)
    torch.testing.assert_close(split[read], whole[read])
    assert (other[read] == whole[read]).all()
    assert (split[:, :, :9] == sdpa(*(s[:, :, :9] for s in states), is_causal=True, scale=0.2)).all()


@pytest.mark.parametrize("padded", [False, True])
def test_streams_apart_are_attention_under_the_packed_mask(padded: bool) -> None:
    clean = masks.causal(9, 0, 9, 0, torch.device("cpu")).repeat(2, 1, 1, 1)
    if padded:
        clean[0, :, :, :2] = False
    columns = [(masks.Columns(torch.tensor(start), min(start)), 9 - min(start)) for start in ([4, 6], [3, 2**62])]
    mask, _ = masks.packed(clean, columns, 0, 0)
    states = [torch.randn(2, 3, 9 + 5 + 6, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    whole = sdpa(*states, attn_mask=mask)
    with packing.CausalFirst(9, mask, causal=not padded, streams=[(5, 5, 6), (6, 6, 9)]):
        split = sdpa(*states, attn_mask=mask)
    read = mask.any(-1).expand(-1, 3, -1)
    torch.testing.assert_close(split[read], whole[read])


def count_calls(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[None]:
    calls: list[None] = []
    original = getattr(module, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, counted)
    return calls


def test_prompt_without_padding_takes_the_two_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("qwen2_5_vl")
    tccd = TCCD(model, text_bank(model, 1))
    calls = count_calls(monkeypatch, session, "CausalFirst")
    generate(model, inputs("qwen2_5_vl", SINGLE), 3, tccd)
    assert len(calls) == 3  # the layers above the first two, at prefill alone
    generate(model, inputs("qwen2_5_vl", RAGGED), 3, tccd)
    assert len(calls) == 3


def test_prefix_equality_is_tested_once_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("qwen2_5_vl")
    calls = count_calls(monkeypatch, session, "check_prefix")
    for _ in range(2):
        generate(model, inputs("qwen2_5_vl", SINGLE), 1, TCCD(model, text_bank(model, 1)))
    assert len(calls) == 1
    generate(model, inputs("qwen2_5_vl", RAGGED), 1, TCCD(model, text_bank(model, 2)))
    assert len(calls) == 2  # the first time under a mask
    generate(model, inputs("qwen2_5_vl", RAGGED), 1, TCCD(model, text_bank(model, 2)))
    assert len(calls) == 2


@pytest.mark.parametrize("additive", [False, True])
def test_a_mask_that_sees_ahead(additive: bool) -> None:
    def form(mask: torch.Tensor) -> torch.Tensor:
        return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min) if additive else mask

    start = torch.tensor([3, 2**62])
    causal = masks.causal(5, 0, 5, 0, torch.device("cpu")).repeat(2, 1, 1, 1)
    assert not masks.sees_ahead(form(causal), start)
    inside = causal.clone()
    inside[0, 0, 0, 2] = inside[1, 0, 0, 4] = inside[0, 0, 3, 4] = (
        True  # prefix to prefix, untouched row, tail to tail
    )
    assert not masks.sees_ahead(form(inside), start)
    ahead = causal.clone()
    ahead[0, 0, 2, 3] = True
    assert masks.sees_ahead(form(ahead), start)


def test_no_mask_is_causal_and_an_unknown_one_is_asked_about() -> None:
    start = torch.tensor([3])
    assert not masks.sees_ahead(None, start)
    assert masks.sees_ahead(object(), start)
    assert masks.sees_ahead(torch.ones(1, 5), start)
