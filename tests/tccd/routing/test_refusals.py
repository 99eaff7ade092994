"""What can't be routed is refused before the first token, with the reason, and the model stays as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from tccd import Contrast, no_vision
from tccd.engine.installation import is_installed
from tccd.errors import ConfigError, UnsupportedModelError
from tccd.routing import Branch, Routed
from tests.tccd.decoding.common import RAGGED, SINGLE, generate
from tests.tiny import cached_tiny, inputs, tiny


@pytest.fixture
def model() -> Any:
    return cached_tiny("llava")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "give split"),
        ({"split": 5}, "split is 5; this model has 5 decoder layers, so expected 0 to 4"),
        ({"split": -1}, "split is -1"),
        ({"split": 2.0}, "split is 2.0"),
        ({"split": 4, "fuse": 2}, "split of at most 3"),
        ({"split": 2, "fuse": 0}, "nothing reads the image's"),
        ({"split": 2, "fuse": 1, "branch": "none"}, "would do nothing; leave it out"),
        ({"split": 2, "branch": "nothing"}, "expected a Branch, 'identity' or 'none'"),
    ],
)
def test_a_route_that_the_model_has_no_layers_for(model, given, words):
    with pytest.raises(ConfigError, match=words):
        Routed(model, **given)


def test_a_branch_made_for_another_split(model):
    branch = Branch.new(model, 2)
    assert Routed(model, 2, 1, branch).route == Routed(model, branch=branch).route
    with pytest.raises(ConfigError, match="split is 3, but the branch was made for 2"):
        Routed(model, 3, branch=branch)
    with pytest.raises(ConfigError, match="fuse is 2, but the branch was made for 1"):
        Routed(model, fuse=2, branch=branch)


def test_visual_features_that_come_in_after_the_split():
    model, batch = cached_tiny("qwen3_vl"), inputs("qwen3_vl", SINGLE)
    with pytest.raises(UnsupportedModelError, match=r"deepstack.*expected a split of 2 or more"):
        generate(model, batch, 2, Routed(model, 1, branch="identity"))
    assert not is_installed(model)
    assert generate(model, batch, 2, Routed(model, 2, branch="identity")).sequences.shape[0] == 1


def test_a_contrast_and_a_route_at_once(model):
    batch, routed, contrast = inputs("llava", SINGLE), Routed(model, 2), Contrast(model, no_vision(), alpha_cd=1.0)
    with contrast, pytest.raises(ConfigError, match="a contrast inside a routed model is not built"):
        generate(model, batch, 2, routed)
    with routed, pytest.raises(ConfigError, match="active on this model"):
        generate(model, batch, 2, contrast)
    with routed, pytest.raises(ConfigError, match="routed already"):
        generate(model, batch, 2, routed)
    with routed, pytest.raises(ConfigError, match="a session is on the model"):
        Branch.new(model, 2)
    assert not is_installed(model)


def test_caches_with_room_for_every_column(model):
    batch, routed = inputs("llava", RAGGED), Routed(model, 2)
    with pytest.raises(UnsupportedModelError, match="StaticLayer lays out room for every column"):
        generate(model, batch, 2, routed, cache_implementation="static")
    with pytest.raises(UnsupportedModelError, match="offloaded"):
        generate(model, batch, 2, routed, cache_implementation="offloaded")


def test_a_cache_of_the_plain_model_or_of_other_rows(model):
    batch = inputs("llava", RAGGED)
    routed = Routed(model, 2)
    plain = model(**batch).past_key_values
    with torch.no_grad(), routed:
        mine = model(**batch).past_key_values
        with pytest.raises(UnsupportedModelError, match="not computed by this Routed"):
            model(input_ids=torch.full((3, 1), 5), past_key_values=plain)
        with pytest.raises(UnsupportedModelError, match="filled for 3 rows, this forward has 1"):
            model(input_ids=torch.full((1, 1), 5), past_key_values=mine)
        with pytest.raises(UnsupportedModelError, match="came after the first forward"):
            model(**batch, past_key_values=mine)
    with pytest.raises(UnsupportedModelError, match="filled by a routed model"):
        model(input_ids=torch.full((3, 1), 5), past_key_values=mine)


def test_calls_that_hide_what_routing_reads(model):
    batch, routed = inputs("llava", SINGLE), Routed(model, 2)
    with routed, pytest.raises(UnsupportedModelError, match="without input_ids"):
        model(inputs_embeds=torch.zeros(1, 3, 64))
    with routed, pytest.raises(UnsupportedModelError, match="attention weights"):
        model(**batch, output_attentions=True)
    with pytest.raises(UnsupportedModelError, match="prefill_chunk_size"):
        generate(model, batch, 2, routed, generation_config=GenerationConfig(prefill_chunk_size=4))
    with pytest.raises(ConfigError, match="made for another"):
        generate(cached_tiny("llava", seed=1), batch, 2, routed)
    training = tiny("llava").train()
    with Routed(training, 2), pytest.raises(UnsupportedModelError, match="training mode"):
        training(**batch)


def test_layers_that_are_not_self_attention_over_keys_of_their_own(model):
    other = tiny("llava")
    other.config.get_text_config().layer_types = ["linear_attention"] * 5
    with pytest.raises(UnsupportedModelError, match="linear_attention"):
        Routed(other, 2)
    other = tiny("llava")
    other.config.text_config._attn_implementation = "flash_attention_2"
    with pytest.raises(UnsupportedModelError, match="use 'sdpa' or 'eager'"):
        Routed(other, 2)
