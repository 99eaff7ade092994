"""A model whose layers can't run an erased stream: one error with the layer and the cause, and nothing left."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from probes.asking.forward import run_streams
from tccd import TCCD
from tccd.decoder import find_decoder
from tccd.decoding.references import centroid_erasure
from tccd.engine.installation import is_installed
from tccd.errors import UnsupportedModelError
from tests.tccd.decoding.common import generate, text_bank
from tests.tiny import HIDDEN, IMAGE, VOCAB, Row, inputs, tiny

FAMILY, LAYER, WIDTH = "qwen2_5_vl", 1, 14
DOORS = ("custom_generate", "with", "processor", "streams")


class OwnPositions:
    """Mixed into a decoder layer: a table of positions of its own, as long as the prompts it was written for."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        return super().forward(hidden_states + torch.ones(1, WIDTH, 1), **kwargs)


class OwnIndex(OwnPositions):
    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        list(range(WIDTH))[hidden_states.shape[1] - 1]
        return super(OwnPositions, self).forward(hidden_states, **kwargs)


class OwnAssertion(OwnPositions):
    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        if hidden_states.shape[1] > WIDTH:
            raise AssertionError
        return super(OwnPositions, self).forward(hidden_states, **kwargs)


class OwnStep(OwnPositions):
    """Takes the whole prompt with an erased stream, and then one token a step alone."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        if hidden_states.shape[1] == 2:
            raise TypeError("one token\nat a time")
        return super(OwnPositions, self).forward(hidden_states, **kwargs)


class FullMemory(OwnPositions):
    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        if hidden_states.shape[1] > WIDTH:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super(OwnPositions, self).forward(hidden_states, **kwargs)


class FullMainMemory(OwnPositions):
    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        if hidden_states.shape[1] > WIDTH:
            torch.empty(2**61, dtype=torch.uint8)
        return super(OwnPositions, self).forward(hidden_states, **kwargs)


class Interrupted(OwnPositions):
    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        if hidden_states.shape[1] > WIDTH:
            raise KeyboardInterrupt
        return super(OwnPositions, self).forward(hidden_states, **kwargs)


class FewRows(OwnPositions):
    """Fails with and without TCCD."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        raise ValueError("at most no row at all")


def with_layer(mixin: type, index: int) -> Any:
    """A model of which one layer is a class of its own, as a repository's own code may have it."""
    model = tiny(FAMILY)
    layer = find_decoder(model).layers[index]
    layer.__class__ = type("OwnLayer", (mixin, type(layer)), {})
    return model


def state(model: Any) -> list[tuple]:
    """Everything an engine could leave: classes, attributes and hooks of every module."""
    gc.collect()
    assert not is_installed(model)
    kept = []
    for name, module in model.named_modules():
        hooks = [key for key in module.__dict__ if "hooks" in key]
        kept.append(
            (name, type(module), sorted(module.__dict__), [dict(module.__dict__[key] or {}) for key in hooks])
        )
    return kept


def call(model: Any, batch: dict[str, Any], door: str, **how: Any) -> None:
    """Run the model through one of the engine's doors."""
    bank = text_bank(model, LAYER)
    if door == "streams":
        run_streams(find_decoder(model), batch, [centroid_erasure(bank, LAYER, 0.4)])
        return
    tccd = TCCD(model, bank)
    if door == "custom_generate":
        generate(model, batch, 2, tccd, **how)
    elif door == "with":
        with tccd:
            generate(model, batch, 2, **how)
    else:
        generate(model, batch, 2, logits_processor=[tccd.logits_processor()], **how)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("mixin", "cause"),
    [
        (OwnPositions, "RuntimeError: The size of tensor"),
        (OwnIndex, "IndexError: list index out of range"),
        (OwnAssertion, "AssertionError: no reason given"),
    ],
)
def test_a_layer_that_fails_is_named(door, mixin, cause):
    model, batch = with_layer(mixin, 3), inputs(FAMILY, [Row()])
    assert batch["input_ids"].shape[1] == WIDTH
    before, cache = state(model), DynamicCache(config=model.config)
    how = {} if door == "streams" else {"past_key_values": cache}
    with pytest.raises(UnsupportedModelError) as caught:
        call(model, batch, door, **how)
    assert f"{type(model).__name__}: decoder layer 3 (OwnLayer)" in str(caught.value)
    assert cause in str(caught.value)
    # The traceback, and a processor in it, are still held here.
    assert state(model) == before
    assert len(cache.layers) == 5
    with torch.no_grad():
        assert model(**batch).logits.isfinite().all()


@pytest.mark.parametrize("door", DOORS[:3])
def test_a_layer_that_fails_at_a_later_token_is_named(door):
    model, batch = with_layer(OwnStep, 3), inputs(FAMILY, [Row()])
    before, cache = state(model), DynamicCache(config=model.config)
    with pytest.raises(UnsupportedModelError, match=r"layer 3 \(OwnLayer\).*TypeError: one token$"):
        call(model, batch, door, past_key_values=cache)
    assert state(model) == before
    assert len(cache.layers) == 5


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("mixin", "kind"),
    [
        (FullMemory, torch.OutOfMemoryError),
        (FullMainMemory, RuntimeError),
        (Interrupted, KeyboardInterrupt),
        (FewRows, ValueError),
    ],
)
def test_what_is_not_the_engines_passes_unchanged(door, mixin, kind):
    model, batch = with_layer(mixin, 3), inputs(FAMILY, [Row()])
    before = state(model)
    with pytest.raises(kind) as caught:
        call(model, batch, door)
    assert not isinstance(caught.value, UnsupportedModelError)
    del caught
    assert state(model) == before


@pytest.mark.parametrize("door", DOORS)
def test_a_layer_that_fails_before_the_erasure_keeps_its_own_error(door):
    model = with_layer(FewRows, 0)
    with pytest.raises(ValueError, match="no row at all"):
        call(model, inputs(FAMILY, [Row()]), door)


def mllama() -> tuple[Any, Callable[[], dict[str, Tensor]]]:
    """A tiny Llama 3.2 Vision, whose layers 1 and 3 reach the image by cross-attention, and its inputs."""
    from transformers import MllamaConfig, MllamaForConditionalGeneration
    from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

    text = MllamaTextConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=96,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        cross_attention_layers=[1, 3],
    )
    vision = MllamaVisionConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_global_layers=1,
        attention_heads=2,
        intermediate_size=48,
        image_size=8,
        patch_size=4,
        max_num_tiles=1,
        vision_output_dim=64,
        intermediate_layers_indices=[0],
        supported_aspect_ratios=[[1, 1]],
    )
    config = MllamaConfig(text_config=text, vision_config=vision, image_token_index=IMAGE)
    model = MllamaForConditionalGeneration(config).eval()

    def batch() -> dict[str, Tensor]:
        ids = torch.randint(3, 110, (2, 9))
        ids[:, 2] = IMAGE
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": torch.randn(2, 1, 1, 3, 8, 8),
            "aspect_ratio_ids": torch.ones(2, 1, dtype=torch.long),
            "aspect_ratio_mask": torch.ones(2, 1, 1, dtype=torch.long),
            "cross_attention_mask": torch.ones(2, 9, 1, 1, dtype=torch.long),
        }

    return model, batch


@pytest.mark.parametrize("door", DOORS)
def test_cross_attention_is_refused_with_its_reason(door):
    model, batch = mllama()
    before = state(model)
    with pytest.raises(UnsupportedModelError, match=r"Mllama.* layers \[1, 3\] .*cross-attention"):
        call(model, batch(), door)
    assert state(model) == before
    assert model.generate(**copy.copy(batch()), max_new_tokens=2, do_sample=False).shape == (2, 11)


def instructblip() -> tuple[Any, dict[str, Tensor]]:
    """A tiny InstructBLIP, whose `generate` calls that of its language model, and its inputs."""
    import transformers as hf

    text = hf.LlamaConfig(vocab_size=VOCAB, hidden_size=HIDDEN, num_hidden_layers=3, num_attention_heads=4)
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = hf.InstructBlipVisionConfig(**tower, image_size=8, patch_size=4)
    bridge = hf.InstructBlipQFormerConfig(**tower, vocab_size=VOCAB, encoder_hidden_size=32)
    config = hf.InstructBlipConfig(
        vision_config=vision.to_dict(),
        qformer_config=bridge.to_dict(),
        text_config=text.to_dict(),
        num_query_tokens=4,
        image_token_index=IMAGE,
    )
    ids = torch.randint(3, 110, (1, 9))
    ids[:, 1:5] = IMAGE
    batch = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 8, 8), "qformer_input_ids": ids[:, 5:]}
    return hf.InstructBlipForConditionalGeneration(config).eval(), batch


def test_generation_by_a_part_of_the_model_is_refused_with_its_reason():
    model, batch = instructblip()
    before = state(model)
    with pytest.raises(
        UnsupportedModelError, match=r"InstructBlip\w+ hands generation over to its LlamaForCausalLM"
    ):
        generate(model, batch, 2, TCCD(model, text_bank(model, LAYER)))
    assert state(model) == before
