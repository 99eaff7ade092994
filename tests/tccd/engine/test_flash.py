"""Models with flash attention: no package for it runs on a CPU, so another function stands under its name.

It reads what flash attention reads (which keys are padding, the window, where queries stand) and nothing else,
fails on what flash attention would not take, and says what it was called with.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tccd import Contrast, no_vision, text_centroid
from tccd.errors import UnsupportedModelError
from tests import oracle
from tests.tccd.decoding.common import RAGGED, SINGLE, generate, new_tokens, text_bank
from tests.tiny import inputs, tiny

NAME = "flash_attention_2"
FAMILIES = ["llava", "qwen2_5_vl", "smolvlm"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Queries and keys of every call."""
    found: list[tuple[int, int]] = []

    def flash(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        queries, keys = query.shape[2], key.shape[2]
        found.append((queries, keys))
        positions = kwargs.get("position_ids")
        assert positions is None or positions.shape[-1] == queries
        at = torch.arange(keys - queries, keys)[:, None]
        seen = (torch.arange(keys) <= at)[None, None]
        if kwargs.get("sliding_window"):
            seen = seen & (torch.arange(keys) > at - kwargs["sliding_window"])
        if attention_mask is not None:
            assert attention_mask.ndim == 2, "flash attention takes padding, and no mask of queries and keys"
            seen = seen & pad(attention_mask.bool(), (keys - attention_mask.shape[1], 0))[:, None, None]
        group = query.shape[1] // key.shape[1]
        key, value = (one.repeat_interleave(group, 1) for one in (key, value))
        out = scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=kwargs["scaling"])
        return out.nan_to_num().transpose(1, 2), None  # padding sees nothing

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, NAME, flash)
    return found


def flashing(model: Any) -> Any:
    """The model with its language model's attention under flash attention's name."""
    model.config.get_text_config()._attn_implementation = NAME
    return model


@pytest.mark.parametrize("rows", [SINGLE, RAGGED], ids=["single", "ragged"])
@pytest.mark.parametrize("family", FAMILIES)
def test_references_beside_flash_attention(family: str, rows: Any, calls: list[tuple[int, int]]) -> None:
    model, batch = tiny(family), inputs(family, rows)
    bank = text_bank(model, 1)
    tokens, logits = oracle.greedy_with(model, batch, [lambda b: oracle.withheld_logits(model, b)], [1.0], 5)
    flashing(model)
    ours = new_tokens(generate(model, batch, 5, Contrast(model, no_vision(), alpha_cd=1.0)), batch)
    assert ours[0].tolist() == tokens.tolist()
    torch.testing.assert_close(ours[1].float(), logits, rtol=0, atol=1e-4)
    n = batch["input_ids"].shape[1]
    assert {(n, n), (1, n + 1)} <= set(calls)  # the clean stream's alone
    assert all(queries in (n, 1) for queries, _ in calls)

    both = Contrast(model, [no_vision(), text_centroid(bank)], alpha_cd=1.0)
    found = new_tokens(generate(model, batch, 5, both), batch)
    model.config.get_text_config()._attn_implementation = "sdpa"
    expected = new_tokens(generate(model, batch, 5, both), batch)
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-4)


def test_a_sliding_window_that_no_mask_tells_of(calls: list[tuple[int, int]]) -> None:
    model = flashing(tiny("llava"))
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        attention.forward = _windowed(attention.forward)
    batch = inputs("llava", SINGLE)
    contrast = Contrast(model, no_vision(), alpha_cd=1.0)
    cached = new_tokens(generate(model, batch, 5, contrast), batch)
    whole = new_tokens(generate(model, batch, 5, contrast, use_cache=False), batch)
    torch.testing.assert_close(cached[1], whole[1], rtol=0, atol=1e-4)

    masked = tiny("llava")
    for layer in masked.model.language_model.layers:
        layer.register_forward_pre_hook(_within_window, with_kwargs=True)
    tokens, logits = oracle.greedy_with(masked, batch, [lambda b: oracle.withheld_logits(masked, b)], [1.0], 5)
    assert cached[0].tolist() == tokens.tolist()
    torch.testing.assert_close(cached[1].float(), logits, rtol=0, atol=1e-4)
    wide = tiny("llava")
    assert not torch.allclose(
        cached[1], new_tokens(generate(wide, batch, 5, Contrast(wide, no_vision())), batch)[1]
    )


def _within_window(layer: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    n = (args[0] if args else kwargs["hidden_states"]).shape[1]
    mask = torch.ones(n, n, dtype=torch.bool).tril().triu(1 - 4)
    return args, kwargs | {"attention_mask": mask[None, None]}


def _windowed(forward: Any) -> Any:
    return lambda *args, **kwargs: forward(*args, **kwargs, sliding_window=4)


def test_what_an_erased_stream_can_not_take_is_refused(calls: list[tuple[int, int]]) -> None:
    model = flashing(tiny("llava"))
    attention = model.model.language_model.layers[2].self_attn
    forward = attention.forward
    attention.forward = lambda *args, **kwargs: forward(*args, **kwargs, softcap=30.0)
    with pytest.raises(UnsupportedModelError, match=r"softcap.*eager"):
        generate(model, inputs("llava", SINGLE), 1, Contrast(model, no_vision()))


def test_attention_that_does_not_go_through_the_table_is_refused(calls: list[tuple[int, int]]) -> None:
    model = flashing(tiny("llava"))
    attention = model.model.language_model.layers[2].self_attn
    attention.forward = lambda hidden_states, **kwargs: (torch.zeros_like(hidden_states), None)
    with pytest.raises(UnsupportedModelError, match=r"layer 2 did not run its attention \(flash_attention_2\)"):
        generate(model, inputs("llava", SINGLE), 1, Contrast(model, no_vision()))
