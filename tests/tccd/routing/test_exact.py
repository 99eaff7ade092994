"""A routed model decodes with its cache as it does without: against whole uncached forwards, over every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tccd.engine.installation import is_installed
from tccd.errors import UnsupportedModelError
from tccd.routing import Branch, Routed
from tests.tccd.decoding.common import RAGGED, SINGLE, generate, new_tokens
from tests.tccd.routing import oracle
from tests.tiny import FAMILIES, IMAGE, Row, cached_tiny, inputs

LAYERS, SPLIT = 6, 2
STEPS = 16


def model_of(family: str) -> Any:
    return cached_tiny(family, layers=LAYERS)


def branch_of(model: Any, kind: str, fuse: int = 1, **settings: Any) -> Any:
    """A branch whose weights are large enough to matter."""
    if kind != "branch":
        return kind
    branch = Branch.new(model, SPLIT, fuse, start="copy", **settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in branch.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return branch


def assert_like_oracle(model: Any, batch: dict[str, Any], routed: Routed, steps: int = STEPS, **more: Any) -> None:
    output = generate(model, batch, steps, routed, **more)
    tokens, logits = new_tokens(output, batch)
    route = routed.route
    wanted, scores = oracle.greedy(model, batch, route.split, route.stop, route.branch, steps)
    assert tokens.tolist() == wanted.tolist()
    torch.testing.assert_close(logits.float(), scores, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["branch", "identity", "none"])
@pytest.mark.parametrize("family", FAMILIES)
def test_ragged_batches_with_two_images_decode_as_whole_forwards_do(family, kind):
    model = model_of(family)
    routed = Routed(model, None if kind == "branch" else SPLIT, branch=branch_of(model, kind))
    rows = [Row(images=1, before=3, after=5), Row(images=2, before=2, after=9), Row(images=1, before=6, after=2)]
    batch = inputs(family, rows if family in ("idefics3", "smolvlm") or kind == "none" else RAGGED)
    assert_like_oracle(model, batch, routed)
    assert 0 < routed.memory.saved < 1


@pytest.mark.parametrize(
    "settings", [{"mask": "full"}, {"positions": "none"}, {"fuse": 2}, {"start": "random", "seed": 3}]
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_kind_of_branch_decodes_as_whole_forwards_do(settings, attention):
    model = model_of("qwen2_5_vl")
    settings = dict(settings)
    start = settings.pop("start", "copy")
    branch = (
        branch_of(model, "branch", **settings)
        if start == "copy"
        else Branch.new(model, SPLIT, start=start, **settings)
    )
    model.set_attn_implementation(attention)
    try:
        assert_like_oracle(model, inputs("qwen2_5_vl", RAGGED), Routed(model, branch=branch), steps=6)
    finally:
        model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("family", ["llava", "gemma3"])
@pytest.mark.parametrize("split", [0, 1, 4])
def test_any_split_will_do(family, split):
    model = model_of(family)
    assert_like_oracle(model, inputs(family, RAGGED), Routed(model, split, fuse=2, branch="identity"), steps=8)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3", "paligemma"])
def test_leaving_where_the_last_layers_begin_is_the_plain_model(family):
    model, batch = model_of(family), inputs(family, RAGGED)
    plain = generate(model, batch, 8)
    routed = Routed(model, LAYERS - 2, fuse=2, branch="identity")
    same = generate(model, batch, 8, routed)
    assert torch.equal(plain.sequences, same.sequences)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, same.logits, strict=True))
    assert routed.memory.saved == 0


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3"])
def test_beams_sampling_and_drafted_tokens_see_the_same_model(family):
    model, batch = model_of(family), inputs(family, RAGGED)
    routed = Routed(model, branch=branch_of(model, "branch"))
    for ways in ({"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True, "top_k": 5}):
        found = []
        for cached in (True, False):
            torch.manual_seed(0)
            # A generated image token has no image, and the two would not take it for the same.
            ways |= {"use_cache": cached, "suppress_tokens": [IMAGE]}
            found.append(generate(model, batch, 6, routed, **ways).sequences)
        assert torch.equal(*found), ways
    one = inputs(family, SINGLE)
    greedy = generate(model, one, 8, routed).sequences
    assert torch.equal(generate(model, one, 8, routed, prompt_lookup_num_tokens=3).sequences, greedy)


def test_a_block_routes_every_call_and_a_cache_goes_on_under_the_same_routed():
    model, batch = model_of("llava"), inputs("llava", RAGGED)
    routed = Routed(model, branch=branch_of(model, "branch"))
    whole = generate(model, batch, 8, routed)
    with routed:
        first = generate(model, batch, 4)
    longer = dict(batch)
    longer["input_ids"] = first.sequences
    longer["attention_mask"] = torch.cat([batch["attention_mask"], torch.ones(3, 4, dtype=torch.long)], 1)
    del longer["pixel_values"]
    with routed:
        second = generate(model, longer, 4, past_key_values=first.past_key_values)
    assert torch.equal(second.sequences, whole.sequences)
    with pytest.raises(UnsupportedModelError, match="filled by a routed model"):
        generate(model, longer, 4, past_key_values=first.past_key_values)
    other = Routed(model, SPLIT, branch="none")
    with pytest.raises(UnsupportedModelError, match="not computed by this Routed"):
        generate(model, longer, 4, other, past_key_values=first.past_key_values)


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_and_states_of_a_whole_forward_are_those_of_the_oracle(side):
    model, batch = model_of("llava"), inputs("llava", RAGGED, padding_side=side)
    branch = branch_of(model, "branch")
    with torch.no_grad(), Routed(model, branch=branch):
        output = model(**batch, output_hidden_states=True)
    wanted = oracle.routed_logits(model, batch, SPLIT, LAYERS - 1, branch)
    text = batch["attention_mask"].bool() & (batch["input_ids"] != IMAGE)
    torch.testing.assert_close(output.logits[text], wanted[text], atol=1e-4, rtol=1e-4)
    plain = model(**batch, output_hidden_states=True).hidden_states
    image = batch["input_ids"] == IMAGE
    for layer in range(SPLIT, LAYERS - 1):  # they wait as the last layer that ran them left them
        assert torch.equal(output.hidden_states[layer][image], plain[SPLIT][image])


def test_the_bytes_that_are_saved_are_those_of_the_image_in_the_routed_layers():
    model, batch = model_of("llava"), inputs("llava", SINGLE)
    routed = Routed(model, SPLIT, branch="none")
    with torch.no_grad(), routed:
        cache = model(**batch).past_key_values
    columns, image = batch["input_ids"].shape[1], int((batch["input_ids"] == IMAGE).sum())
    held = [layer.keys.shape[2] for layer in cache.layers]
    assert held == [columns] * SPLIT + [columns - image] * (LAYERS - SPLIT)
    one = 2 * 2 * 16 * 4  # keys and values, heads, width, bytes
    assert routed.memory == (sum(held) * one, columns * LAYERS * one)


def test_nothing_is_left_on_the_model():
    model, batch = model_of("llava"), inputs("llava", SINGLE)
    before = generate(model, batch, 4)
    generate(model, batch, 4, Routed(model, SPLIT, branch="none"))
    after = generate(model, batch, 4)
    assert torch.equal(before.sequences, after.sequences)
    assert not is_installed(model)


def test_rows_of_one_length_with_more_or_fewer_image_tokens_need_no_padding_to_be_ragged():
    model = model_of("llava")
    batch = inputs("llava", [Row(images=1, after=14), Row(images=2, after=5)])
    assert batch["attention_mask"].all()
    assert_like_oracle(model, batch, Routed(model, branch=branch_of(model, "branch")), steps=4)
