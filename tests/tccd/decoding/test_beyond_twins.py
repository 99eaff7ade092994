"""Other words and early exits on families whose layers can't run a twin: against whole uncached forwards."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tccd.decoding.huggingface import Contrast
from tccd.decoding.references import early_exit, no_vision
from tccd.engine import OtherPrompt
from tccd.errors import UnsupportedModelError
from tests import oracle
from tests.census.architectures import architecture, mapping
from tests.census.pictures import batch_of
from tests.tccd.decoding.common import generate, new_tokens
from tests.tccd.decoding.test_modes import assert_nothing_left
from tests.tiny import TEXT_IDS, Row

NAMES = ["qwen3_5", "lfm2_vl:convolutions", "gemma4:shared keys", "minimax_m3_vl:sparse attention"]
#: The lowest release of transformers has fewer.
NAMES = [name for name in NAMES if name.split(":")[0] in mapping()]
ROWS = [Row(before=3, after=5), Row(after=8)]
OTHERS = [Row(before=9, after=2), Row(images=0, before=1)]


@lru_cache
def model_of(name: str) -> Any:
    return architecture(name).build()


def assert_like(model: Any, batch: dict[str, Any], contrast: Contrast, reference: Any) -> None:
    """Logits of words within 1e-4 of two whole forwards, for the tokens that were drawn."""
    ours = generate(model, batch, 4, contrast)
    said = new_tokens(ours, batch)[0]
    words = slice(TEXT_IDS.start, TEXT_IDS.stop)
    for column, logits in enumerate(ours.logits):
        longer = batch
        for token in said[:, :column].T:
            longer = oracle.extend(longer, token)
        clean, other = oracle.full_logits(model, longer)[:, -1], reference(said[:, :column], longer)[:, -1]
        torch.testing.assert_close(logits[:, words], (2 * clean - other)[:, words], rtol=0, atol=1e-4)
    assert_nothing_left(model)


@pytest.mark.parametrize("name", NAMES)
def test_other_words(name):
    model = model_of(name)
    batch, other = batch_of(architecture(name), model, ROWS), batch_of(architecture(name), model, OTHERS)

    def reference(said: Tensor, longer: dict[str, Any]) -> Tensor:
        answered = other
        for token in said.T:
            answered = oracle.extend(answered, token)
        return oracle.full_logits(model, answered)

    assert_like(model, batch, Contrast(model, OtherPrompt(other), alpha_cd=1.0), reference)


@pytest.mark.parametrize(
    "name", [name for name in NAMES if "lfm2" not in name]
)  # whose final norm has another name
def test_early_exit(name):
    model = model_of(name)
    batch = batch_of(architecture(name), model, ROWS)
    contrast = Contrast(model, early_exit(1), alpha_cd=1.0)
    assert_like(model, batch, contrast, lambda said, longer: oracle.exit_logits(model, longer, [1]))


@pytest.mark.parametrize("name", NAMES)
def test_twins_are_refused_there(name):
    with pytest.raises(UnsupportedModelError, match="decoder layers"):
        Contrast(model_of(name), no_vision())


@pytest.mark.skipif("glm5_next" not in mapping(), reason="not in this release of transformers")
def test_an_early_exit_where_layers_hand_on_several_states_a_token():
    name = "glm5_next"
    model = model_of(name)
    with pytest.raises(UnsupportedModelError, match=r"layer 1 gives states of shape \(2, 17, 4, 64\)"):
        generate(model, batch_of(architecture(name), model, ROWS), 2, Contrast(model, early_exit(1)))
    assert_nothing_left(model)
