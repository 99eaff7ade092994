"""The store of kept keys and values: its bound, and what makes it compute them anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tccd import Contrast
from tccd.engine import KeptImage, Prefixes
from tccd.errors import ConfigError
from tests.tccd.decoding.common import RAGGED, SINGLE, generate
from tests.tccd.decoding.test_references import assert_like, blank, kept
from tests.tiny import Row, cached_tiny, inputs, tiny


def block(columns: int) -> Any:
    return {0: (torch.zeros(1, 1, columns, 1), torch.zeros(1, 1, columns, 1))}  # 8 bytes a column


def test_the_bound_drops_what_was_used_longest_ago() -> None:
    store, made = Prefixes(max_bytes=80), []

    def get(key: str, columns: int = 4) -> None:
        store.get(key, lambda: made.append(key) or block(columns))

    for key in ("a", "b", "a", "c", "a", "b"):  # c drops b, the second b drops c
        get(key)
    assert made == ["a", "b", "c", "b"]
    assert (len(store), store.bytes) == (2, 64)
    get("large", 11)
    assert (len(store), store.bytes) == (2, 64)  # larger than the bound: not kept, and nothing dropped for it
    store.clear()
    assert (len(store), store.bytes) == (0, 0)


def test_changed_weights_compute_it_anew() -> None:
    model, batch, asked = tiny("llava"), inputs("llava", SINGLE), []
    prefixes = Prefixes()
    for _ in range(2):
        contrast, slow = (
            Contrast(model, kept(batch, SINGLE, prefixes, asked), alpha_cd=1.0),
            blank(model, batch)[1],
        )
        assert_like(model, batch, contrast, slow)
        with torch.no_grad():
            model.get_decoder().layers[1].self_attn.k_proj.weight.mul_(1.5)
    assert len(asked) == 2


def test_a_call_without_positions_of_padded_rows_is_a_second_pass() -> None:
    model, batch, asked = cached_tiny("llava"), inputs("llava", RAGGED), []
    contrast = Contrast(model, kept(batch, RAGGED, Prefixes(), asked), alpha_cd=1.0)
    with torch.no_grad():
        clean, slow = model(**batch).logits, blank(model, batch)[1](batch)
        with contrast:
            ours = model(**batch).logits[:, -1]
    torch.testing.assert_close(ours, 2 * clean[:, -1] - slow[:, -1], rtol=0, atol=1e-4)
    assert asked == [(0, 1, 2)]


def test_other_prompts_are_refused() -> None:
    model, batch = cached_tiny("llava"), inputs("llava", SINGLE)
    other = inputs("llava", [Row(before=5)], seed=3)
    with pytest.raises(ConfigError, match="tokens up to the last picture differ"):
        generate(model, batch, 2, Contrast(model, kept(other, [Row(before=5)], Prefixes()), alpha_cd=1.0))
    two = KeptImage(lambda rows: batch, ["a", "b"], Prefixes())
    with pytest.raises(ConfigError, match="given for 2 prompts, but 1 are decoded"):
        generate(model, batch, 2, Contrast(model, two, alpha_cd=1.0))
