"""Attention of a packed call by stream, and the self-test of prefix equality once a model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from tccd import TCCD, Contrast, no_vision, text_centroid
from tccd.engine import attention, masks, session
from tccd.modality import modality_map, vision_token_ids
from tests.tccd.decoding.common import RAGGED, SINGLE, generate, new_tokens, text_bank
from tests.tiny import Row, inputs, tiny

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("additive", [False, True])
def test_grouped_attention_is_that_of_repeated_keys(groups: int, additive: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(2, 2 * groups, 5, 8, generator=draw)
    keys, values = (torch.randn(2, 2, 7, 8, generator=draw) for _ in range(2))
    seen = torch.rand(2, 1, 5, 7, generator=draw) > 0.5
    seen[..., 0] = True
    mask = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf) if additive else seen
    found = attention.grouped_attention(query, keys, values, mask, 0.2)
    repeated = (one.repeat_interleave(groups, 1) for one in (keys, values))
    torch.testing.assert_close(found, sdpa(query, *repeated, attn_mask=mask, scale=0.2).transpose(1, 2))


def count_calls(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[None]:
    calls: list[None] = []
    original = getattr(module, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, counted)
    return calls


def queries_and_keys(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, bool]]:
    """Of every attention call in a language model from now on: queries, keys, and whether it has a mask."""
    calls: list[tuple[int, int, bool]] = []

    def ours(query: Any, keys: Any, values: Any, attn_mask: Any = None, **kwargs: Any) -> Any:
        calls.append((query.shape[2], keys.shape[2], attn_mask is not None))
        return sdpa(query, keys, values, attn_mask=attn_mask, **kwargs)

    def theirs(query: Any, keys: Any, values: Any, **kwargs: Any) -> Any:
        if kwargs["is_causal"]:  # not so in a vision tower
            calls.append((query.shape[2], keys.shape[2], kwargs["attn_mask"] is not None))
        return sdpa(query, keys, values, **kwargs)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", ours)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", theirs)
    return calls


def test_each_stream_runs_over_the_keys_that_it_may_see(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny("llava"), inputs("llava", SINGLE)
    where = modality_map(batch["input_ids"], vision_token_ids(model.config))
    n, tail, image = batch["input_ids"].shape[1], int(where.tail.sum()), int(where.vision.sum())
    contrast = Contrast(model, no_vision())
    generate(model, batch, 1, contrast)  # the model is known from now on
    calls = queries_and_keys(monkeypatch)
    generate(model, batch, 2, contrast)
    layers, group = model.config.text_config.num_hidden_layers, 2
    prefill, decode = calls[: 2 * layers], calls[2 * layers :]
    assert prefill == [(n, n, False), (group * tail, n - image, True)] * layers
    assert decode == [(group, n + 1, False), (group, n + 1 - image, True)] * layers


@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("before", [2, 3, 4, 5])
def test_a_short_twin_that_begins_later_takes_no_padding_for_its_states(before: int, after: int) -> None:
    model, batch = tiny("llava"), inputs("llava", [Row(before=before, after=after)])
    bank = text_bank(model, 2)
    both = Contrast(model, [no_vision(), text_centroid(bank)], weights=[1, 1], alpha_cd=1.0)
    _, found = new_tokens(generate(model, batch, 1, both), batch)
    alone = [
        new_tokens(generate(model, batch, 1, Contrast(model, one, alpha_cd=1.0)), batch)[1]
        for one in both.references
    ]
    plain = new_tokens(generate(model, batch, 1), batch)[1]
    torch.testing.assert_close(found, sum(alone) - plain, rtol=0, atol=1e-4)


def test_nothing_is_left_in_the_table_of_attention_functions() -> None:
    code = (
        "from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as table\n"
        "from tccd import Contrast, no_vision\n"
        "from tests.tiny import tiny\n"
        "models, before = [tiny('llava'), tiny('llava')], dict(table)\n"
        "with Contrast(models[0], no_vision()):\n"
        "    held = table['sdpa']\n"
        "    assert held is not before['sdpa']\n"
        "    with Contrast(models[1], no_vision()):\n"
        "        assert table['sdpa'] is held\n"
        "    assert table['sdpa'] is held\n"
        "assert dict(table) == before and not table._local_mapping\n"
    )
    # In a process of its own: no other test's session is on.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr


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
    assert masks.sees_ahead(torch.ones(1, 5, 5), start)
    assert not masks.sees_ahead(torch.ones(1, 5), start)  # flash attention's
