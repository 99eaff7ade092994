"""A shadow against whole uncached forwards of its own prompt, and what it leaves on the model: nothing."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from tccd.engine.shadow import ModuleState, Shadow, ShadowLayer
from tccd.errors import UnsupportedModelError
from tests import oracle
from tests.tiny import CAUSAL_FAMILIES, TEXT_IDS, Row, cached_tiny, inputs, tiny

SCENES = {
    "single": [Row(before=2, after=9)],
    "ragged": [Row(before=7, after=2), Row(images=2, after=4), Row(images=0, before=3)],
    "text-only": [Row(images=0, before=4), Row(images=0, before=1)],
}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def words(rows: int, n: int, seed: int = 0) -> Tensor:
    return torch.randint(TEXT_IDS.start, TEXT_IDS.stop, (rows, n), generator=torch.Generator().manual_seed(seed))


def whole(model: Any, batch: dict[str, Any], tokens: Tensor, last: int) -> Tensor:
    """Logits of the last columns of prompts and tokens in one uncached forward."""
    for token in tokens.T:
        batch = oracle.extend(batch, token)
    return oracle.full_logits(model, batch)[:, -last:]


def assert_close(ours: Tensor, theirs: Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("rows", SCENES.values(), ids=SCENES)
@pytest.mark.parametrize("family", CAUSAL_FAMILIES)
def test_its_logits_are_those_of_whole_forwards(family, rows):
    model, batch = cached_tiny(family), inputs(family, rows, seed=5)
    shadow, tokens = Shadow(model, batch), words(len(rows), 6)
    assert_close(shadow.prefill(), whole(model, batch, tokens[:, :0], 1))
    for start, end in ((0, 1), (1, 4), (4, 5), (5, 6)):
        assert_close(shadow.step(tokens[:, start:end]), whole(model, batch, tokens[:, :end], end - start))


@pytest.mark.parametrize("rows", SCENES.values(), ids=SCENES)
def test_a_prompt_that_sees_itself_whole_stays_as_it_was(rows):
    """PaliGemma: an uncached forward would show the prompt what came after it, so plain decoding is the oracle."""
    model, batch = cached_tiny("paligemma"), inputs("paligemma", rows)
    plain = model.generate(
        **batch, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    shadow, tokens = Shadow(model, batch), plain.sequences[:, batch["input_ids"].shape[1] :]
    assert_close(shadow.prefill()[:, 0], plain.logits[0])
    for token, logits in zip(tokens.T, plain.logits[1:], strict=False):
        assert_close(shadow.step(token[:, None])[:, 0], logits)


@pytest.mark.parametrize(("family", "window"), [("qwen2_5_vl", 64), ("gemma3", 64), ("gemma3", 4)])
def test_it_follows_what_happens_to_a_cache(family, window):
    model, batch = tiny(family, window=window), inputs(family, SCENES["ragged"])
    cache = DynamicCache(config=model.config)
    cache.activate_past_recording()
    shadow, tokens = Shadow(model, batch, cache, copies=2), words(6, 9)
    rows = torch.tensor([0, 0, 1, 1, 2, 2])

    def each() -> Tensor:
        """Each prompt by itself, as many as the shadow has: images can't be repeated row by row."""
        found = [
            whole(model, _row(family, batch, int(row)), one[None], 1) for row, one in zip(rows, said, strict=True)
        ]
        return torch.cat(found)

    first = shadow.prefill()
    said = tokens[:, :0]
    assert_close(first, each())
    shadow.step(tokens[:, :4])
    shadow.crop(2)
    shadow.step(tokens[:, 4:5])
    shadow.crop(0)
    said = torch.cat([tokens[:, :2], tokens[:, 4:5]], 1)
    chosen = torch.tensor([5, 1, 2, 2, 0])
    shadow.select(chosen)
    assert shadow.rows == 5
    rows, said = rows[chosen], torch.cat([said[chosen], tokens[:5, 5:6]], 1)
    twin = copy.deepcopy(shadow)
    assert_close(shadow.step(tokens[:5, 5:6]), each())
    assert_close(twin.step(tokens[:5, 5:6]), each())
    twin.crop(0)
    shadow.crop(0)
    assert_close(twin.step(tokens[:5, 6:7]), shadow.step(tokens[:5, 6:7]), atol=1e-5)


def _row(family: str, batch: dict[str, Any], row: int) -> dict[str, Any]:
    """One row of `SCENES["ragged"]`, padding included."""
    images = [one.images for one in SCENES["ragged"]]
    before, here = sum(images[:row]), images[row]
    alone = {name: x[row : row + 1] for name, x in batch.items() if x.shape[:2] == batch["input_ids"].shape}
    if not here:
        return alone
    if family == "gemma3":
        return alone | {"pixel_values": batch["pixel_values"][before : before + here]}
    sizes = batch["image_grid_thw"].prod(-1).tolist()
    pixels = batch["pixel_values"].split(sizes)[before : before + here]
    grids = batch["image_grid_thw"][before : before + here]
    return alone | {"pixel_values": torch.cat(pixels), "image_grid_thw": grids}


def test_it_follows_the_other_ways_to_choose_rows_of_a_cache():
    model, batch = cached_tiny("qwen2_5_vl"), inputs("qwen2_5_vl", [Row(images=0, before=4), Row(images=0)])
    shadow, same = Shadow(model, batch), Shadow(model, batch)
    rider, tokens = ShadowLayer(None, 0, 9, shadow), words(3, 3)
    shadow.prefill()
    same.prefill()
    rider.batch_repeat_interleave(3)
    rider.batch_select_indices(torch.tensor([True, False, False, False, True, True]))
    same.select(torch.tensor([0, 1, 1]))
    assert_close(shadow.step(tokens), same.step(tokens), atol=1e-5)
    assert rider.get_seq_length() == 12
    rider.crop(10)  # the legacy form: the length to keep
    same.crop(2)
    assert_close(shadow.step(tokens[:, :1]), same.step(tokens[:, :1]), atol=1e-5)


def test_what_a_model_takes_by_the_token_and_nobody_makes_longer_is_refused():
    model, batch = cached_tiny("llava"), inputs("llava")
    mask = torch.ones(*batch["input_ids"].shape, 1, 4)
    with pytest.raises(
        UnsupportedModelError, match="'cross_attention_mask' of shape \\(1, 17, 1, 4\\), one value a token"
    ):
        Shadow(model, batch | {"cross_attention_mask": mask})


def test_a_crop_into_the_prompt_is_refused():
    model, batch = cached_tiny("llava"), inputs("llava")
    shadow = Shadow(model, batch)
    shadow.prefill()
    shadow.step(words(1, 2))
    with pytest.raises(UnsupportedModelError, match="cropped by 3 columns, of which 2 came after the prompt"):
        shadow.crop(3)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "glm4v"])
def test_a_model_that_notes_positions_goes_on_from_its_own(family):
    """Stepped without position ids, these read what their last prefill left on the model."""
    model, batch = tiny(family), inputs(family, [Row(), Row(images=0, before=9)])
    other, tokens = inputs(family, [Row(before=9), Row(images=0)], seed=3), words(2, 4)
    assert bool(batch["attention_mask"].all())
    shadow = Shadow(model, other)
    cache = model(**batch, use_cache=True).past_key_values
    noted = model.model.rope_deltas
    shadow.prefill()
    assert model.model.rope_deltas is noted
    for column in range(4):
        token = tokens[:, column : column + 1]
        clean = model(input_ids=token, past_key_values=cache, use_cache=True).logits
        assert_close(clean, whole(model, batch, tokens[:, : column + 1], 1))
        model.model.rope_deltas = noted  # what the whole forwards note
        assert_close(shadow.step(token), whole(model, other, tokens[:, : column + 1], 1))
        model.model.rope_deltas = noted


def test_frequencies_that_grow_with_a_sequence_are_each_streams_own():
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    model = tiny("llava", rope_parameters=rope, max_position_embeddings=16)
    batch, other = inputs("llava"), inputs("llava", [Row(before=30)])
    tokens = words(1, 3)

    def plain(batch: dict[str, Any]) -> list[Tensor]:
        one = copy.deepcopy(model)
        output = one(**batch, use_cache=True)
        found = [output.logits[:, -1:]]
        for token in tokens.T:
            output = one(input_ids=token[None], past_key_values=output.past_key_values, use_cache=True)
            found.append(output.logits)
        return found

    expected = plain(batch), plain(other)
    shadow = Shadow(model, other)
    output = model(**batch, use_cache=True)
    together = [(output.logits[:, -1:], shadow.prefill())]
    for token in tokens.T:
        output = model(input_ids=token[None], past_key_values=output.past_key_values, use_cache=True)
        together.append((output.logits, shadow.step(token[None])))
    for mine, theirs in zip(zip(*together, strict=True), expected, strict=True):
        assert_close(torch.cat(mine, 1), torch.cat(theirs, 1))


@pytest.mark.parametrize("family", CAUSAL_FAMILIES)
def test_the_first_forward_of_a_model_may_be_a_shadow(family):
    """What transformers sets up at first use has to stay: LLaVA's vision tower would be read twice otherwise."""
    model, batch = tiny(family), inputs(family)
    first = Shadow(model, batch).prefill()
    assert_close(first, oracle.full_logits(cached_tiny(family), batch)[:, -1:])
    assert_close(Shadow(model, batch).prefill(), first, atol=1e-5)
    assert_close(oracle.full_logits(model, batch)[:, -1:], first)


def test_state_is_put_back_after_an_error():
    model = torch.nn.Linear(2, 2)
    model.register_buffer("seen", torch.zeros(1))
    model.count, model.name, model.ready = 0, "plain", False
    before, state = model.seen, ModuleState(model)

    def fail(turn: int) -> None:
        with state.apart():
            assert model.count == turn - 1
            model.count, model.seen, model.name, model.ready = turn, torch.ones(1), "named", True
            raise KeyError

    for turn in (1, 2):
        with pytest.raises(KeyError):
            fail(turn)
        assert model.count == 0
        assert model.seen is before
    assert (model.name, model.ready) == ("named", True)  # words and flags are no stream's state


def test_one_stream_at_a_time_has_its_state_on_a_model():
    model = torch.nn.Linear(2, 2)
    model.count, said = 0, []
    one, other = ModuleState(model), ModuleState(model)

    def work() -> None:
        with other.apart():
            said.append(model.count)
            model.count = 2

    thread = threading.Thread(target=work)
    with one.apart():
        model.count = 1
        thread.start()
        thread.join(0.2)
        said.append("first")
    thread.join()
    assert said == ["first", 0]
    assert model.count == 0
