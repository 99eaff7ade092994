"""Every way transformers generates, against the oracle or against plain shapes; nothing is left behind."""

from __future__ import annotations

import copy
import gc
import threading
from typing import Any

import pytest
import torch
import transformers
from transformers import LogitsProcessor, RepetitionPenaltyLogitsProcessor, TextIteratorStreamer, TextStreamer
from transformers.cache_utils import DynamicCache

from tccd import TCCD
from tccd.engine.installation import is_installed
from tests import oracle
from tests.tccd.decoding.common import RAGGED, SINGLE, generate, new_tokens, text_bank, text_centroids
from tests.tiny import Row, cached_tiny, inputs, tiny

LAYER = 1
RELEASE = tuple(int(part) for part in transformers.__version__.split(".")[:2])


class OracleProcessor(LogitsProcessor):
    """Replaces every score by the oracle's, so that transformers' own loops decode the oracle."""

    def __init__(self, model: Any, batch: dict[str, Any], copies: int = 1, normalise: bool = False) -> None:
        # Copies of a row stand side by side, and so do its images.
        assert copies == 1 or batch["input_ids"].shape[0] == 1
        self.batch = {k: torch.cat([v] * copies) for k, v in batch.items()}
        self.model, self.normalise = model, normalise
        self.replace = oracle.BruteForce(text_centroids(), 0.4)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        batch = self.batch
        for tokens in input_ids[:, batch["input_ids"].shape[1] :].T:
            batch = oracle.extend(batch, tokens)
        clean, erased = oracle.two_streams(self.model, batch, LAYER, self.replace)
        combined = clean + (clean - erased)
        return combined.log_softmax(-1) if self.normalise else combined


def both(model: Any, batch: dict, door: str = "custom_generate", copies: int = 1, **how: Any) -> tuple[Any, Any]:
    """A generate call with TCCD, and the same call with the oracle's scores."""
    how = {"output_scores": True} | how
    tccd = TCCD(model, text_bank(model, LAYER))
    normalise = how.get("num_beams", 1) > 1
    torch.manual_seed(0)
    if door == "custom_generate":
        ours = generate(model, batch, 8, tccd, **how)
    elif door == "with":
        with tccd:
            ours = generate(model, batch, 8, **how)
    else:
        ours = generate(model, batch, 8, logits_processor=[tccd.logits_processor()], **how)
    torch.manual_seed(0)
    slow = OracleProcessor(model, batch, copies, normalise)
    theirs = generate(model, batch, 8, logits_processor=[slow], **how)
    assert slow.replace.gap > 1e-4
    return ours, theirs


def assert_same(ours: Any, theirs: Any) -> None:
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    for a, b in zip(ours.scores, theirs.scores, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


DOORS = ["custom_generate", "with", "logits_processor"]
MODES = {
    "greedy": (RAGGED, {}, 1),
    "sampling": (RAGGED, {"do_sample": True, "top_k": 0}, 1),
    "beams": (SINGLE, {"num_beams": 3, "num_return_sequences": 2}, 3),
    "beam-sampling": (SINGLE, {"num_beams": 3, "do_sample": True, "top_k": 0}, 3),
    "several-sequences": (SINGLE, {"do_sample": True, "top_k": 0, "num_return_sequences": 3}, 3),
    "static-cache": (RAGGED, {"cache_implementation": "static"}, 1),
    "static-cache-unpadded": (SINGLE, {"cache_implementation": "static"}, 1),
    "no-cache": (RAGGED, {"use_cache": False}, 1),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("mode", MODES)
def test_modes_equal_the_oracle(mode, door):
    rows, how, copies = MODES[mode]
    model = cached_tiny("qwen2_5_vl")
    assert_same(*both(model, inputs("qwen2_5_vl", rows), door, copies, **how))


@pytest.mark.parametrize("rows", [SINGLE, RAGGED], ids=["single", "ragged"])
@pytest.mark.parametrize("window", [4, 64])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_sliding_caches(cache, window, rows):
    if cache == "static" and window == 4 and RELEASE < (5, 17):
        pytest.skip("transformers 5.16 itself fails with a static cache shorter than the prompt")
    model = tiny("gemma3", window=window)
    assert_same(*both(model, inputs("gemma3", rows), cache_implementation=cache))


@pytest.mark.parametrize("door", ["custom_generate", "with"])
def test_prompt_lookup(door):
    model = cached_tiny("qwen2_5_vl")
    batch = inputs("qwen2_5_vl", [Row(after=12)])
    assert_same(*both(model, batch, door, prompt_lookup_num_tokens=3))


@pytest.mark.skipif(RELEASE < (5, 18), reason="transformers below 5.18 itself hands the assistant the pixels")
def test_assisted_decoding():
    model, assistant = cached_tiny("llava"), _text_model(cached_tiny("llava"))
    batch = inputs("llava", SINGLE)
    tccd = TCCD(model, text_bank(model, LAYER))
    alone = generate(model, batch, 8, tccd)
    assisted = generate(model, batch, 8, tccd, assistant_model=assistant)
    assert alone.sequences.tolist() == assisted.sequences.tolist()
    for a, b in zip(alone.logits, assisted.logits, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def _text_model(model: Any) -> Any:
    from transformers import LlamaForCausalLM

    assistant = LlamaForCausalLM(model.config.text_config).eval()
    assistant.model.load_state_dict(model.get_decoder().state_dict())
    assistant.lm_head.load_state_dict(model.lm_head.state_dict())
    assistant.generation_config.eos_token_id = None
    return assistant


def test_processors_see_the_combined_logits():
    model, batch = cached_tiny("qwen2_5_vl"), inputs("qwen2_5_vl", SINGLE)
    tccd = TCCD(model, text_bank(model, LAYER))
    ours = generate(model, batch, 8, tccd, repetition_penalty=1.7, output_scores=True)
    penalty = RepetitionPenaltyLogitsProcessor(1.7)
    replace, longer = oracle.BruteForce(text_centroids(), 0.4), batch
    for raw, scores, token in zip(ours.logits, ours.scores, new_tokens(ours, batch)[0].T, strict=True):
        clean, erased = oracle.two_streams(model, longer, LAYER, replace)
        torch.testing.assert_close(raw, 2 * clean - erased, rtol=0, atol=1e-4)
        expected = penalty(longer["input_ids"], 2 * clean - erased)
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4)
        assert token == expected.argmax(-1)
        longer = oracle.extend(longer, token)


@pytest.mark.parametrize("door", ["custom_generate", "with"])
def test_outputs_have_plain_shapes_and_clean_values(door):
    model = tiny("gemma3", window=4)
    model.set_attn_implementation("eager")
    batch = inputs("gemma3", RAGGED)
    how = {"output_hidden_states": True, "output_attentions": True, "output_scores": True}
    tccd = TCCD(model, text_bank(model, LAYER), alpha_cd=1e-6)  # tokens stay those of plain decoding
    if door == "with":
        with tccd:
            ours = generate(model, batch, 6, **how)
    else:
        ours = generate(model, batch, 6, tccd, **how)
    plain = generate(model, batch, 6, **how)
    assert ours.sequences.tolist() == plain.sequences.tolist()
    real = batch["attention_mask"].bool()
    for name in ("hidden_states", "attentions"):
        for step, (mine, theirs) in enumerate(zip(getattr(ours, name), getattr(plain, name), strict=True)):
            for a, b in zip(mine, theirs, strict=True):
                assert a.shape == b.shape
                if step == 0:  # what padding computes is nobody's business
                    a, b = (x[real] if name == "hidden_states" else x.transpose(1, 2)[real] for x in (a, b))
                torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_the_returned_cache_is_plain(cache):
    model, batch = cached_tiny("qwen2_5_vl"), inputs("qwen2_5_vl", RAGGED)
    tccd = TCCD(model, text_bank(model, LAYER), alpha_cd=1e-6)
    ours = generate(model, batch, 6, tccd, cache_implementation=cache).past_key_values
    plain = generate(model, batch, 6, cache_implementation=cache).past_key_values
    assert [type(x) for x in ours.layers] == [type(x) for x in plain.layers]
    for a, b in zip(ours.layers, plain.layers, strict=True):
        torch.testing.assert_close(a.keys, b.keys, rtol=0, atol=1e-4)
        torch.testing.assert_close(a.values, b.values, rtol=0, atol=1e-4)


def test_the_erased_cache_holds_the_tail_above_the_layer_only():
    model, batch = cached_tiny("qwen2_5_vl"), inputs("qwen2_5_vl", SINGLE)
    tccd = TCCD(model, text_bank(model, LAYER))
    with tccd, torch.no_grad():
        cache = model(**batch, use_cache=True).past_key_values
        extra = cache.layers[5:]
        assert sorted(layer.layer for layer in extra) == [2, 3, 4]
        assert all(layer.keys.shape[-2] == 6 for layer in extra)  # the end marker and five words
    assert len(cache.layers) == 5


def test_a_conversation_step_by_step_and_from_a_copied_cache():
    model, batch = cached_tiny("qwen2_5_vl"), inputs("qwen2_5_vl", SINGLE)
    replace = oracle.BruteForce(text_centroids(), 0.4)
    longer = batch
    for token in (7, 8, 9):
        longer = oracle.extend(longer, torch.tensor([token]))
    clean, erased = oracle.two_streams(model, longer, LAYER, replace)
    with TCCD(model, text_bank(model, LAYER)), torch.no_grad():
        first = model(**batch, use_cache=True)
        twin_cache = copy.deepcopy(first.past_key_values)
        for cache in (first.past_key_values, twin_cache):
            for token in (7, 8, 9):
                step = model(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True)
            torch.testing.assert_close(step.logits[:, -1], 2 * clean - erased, rtol=0, atol=1e-4)


def test_several_calls_in_a_row_and_plain_ones_between():
    model = cached_tiny("qwen2_5_vl")
    one, two = inputs("qwen2_5_vl", SINGLE), inputs("qwen2_5_vl", RAGGED, seed=3)
    tccd = TCCD(model, text_bank(model, LAYER))
    before = [generate(model, b, 5, t).sequences.tolist() for b in (one, two) for t in (tccd, None)]
    after = [generate(model, b, 5, t).sequences.tolist() for b in (one, two) for t in (tccd, None)]
    assert before == after


def test_an_older_processor_that_goes_away_leaves_the_session_that_took_its_place():
    """A processor that nobody closed is collected at any time, in the midst of another session too."""
    model, batch = cached_tiny("qwen2_5_vl"), inputs("qwen2_5_vl", SINGLE)
    tccd = TCCD(model, text_bank(model, LAYER), alpha_cd=3.0)
    contrasted = generate(model, batch, 4, tccd)
    processor = TCCD(model, text_bank(model, 2)).logits_processor()
    with tccd:
        processor.close()
        within = generate(model, batch, 4)
    after = generate(model, batch, 4)
    torch.testing.assert_close(torch.stack(within.logits), torch.stack(contrasted.logits), rtol=0, atol=1e-5)
    assert not torch.allclose(torch.stack(after.logits), torch.stack(contrasted.logits), atol=1e-2)
    assert_nothing_left(model)


def test_two_threads_on_one_model():
    model = cached_tiny("qwen2_5_vl")
    batches = [inputs("qwen2_5_vl", [Row(after=4 + i)], seed=i) for i in range(3)]
    doors = [TCCD(model, text_bank(model, LAYER)), TCCD(model, text_bank(model, 2), alpha_cd=2.0), None]
    alone = [generate(model, b, 8, t).sequences.tolist() for b, t in zip(batches, doors, strict=True)]
    together: dict[int, list] = {0: [], 1: [], 2: []}

    def work(i: int) -> None:
        for _ in range(5):
            together[i].append(generate(model, batches[i], 8, doors[i]).sequences.tolist())

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(together[i] == [alone[i]] * 5 for i in range(3))
    assert_nothing_left(model)


class Recorder(TextStreamer):
    """Keeps the ids it is given."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.ids += value.reshape(-1).tolist()

    def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize("door", DOORS)
def test_streamers(door):
    model, batch = cached_tiny("qwen2_5_vl"), inputs("qwen2_5_vl", SINGLE)
    tccd, streamer = TCCD(model, text_bank(model, LAYER)), Recorder()
    how: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "streamer": streamer}
    if door == "custom_generate":
        tokens = model.generate(**batch, **how, custom_generate=tccd)
    elif door == "with":
        with tccd:
            tokens = model.generate(**batch, **how)
    else:
        tokens = model.generate(**batch, **how, logits_processor=[tccd.logits_processor()])
    assert streamer.ids == tokens[0].tolist()
    assert streamer.ended


def test_a_streamer_read_from_another_thread():
    class Words:
        def decode(self, ids: list[int], **_: Any) -> str:
            return " ".join(map(str, ids)) + " "

    model, batch = cached_tiny("qwen2_5_vl"), inputs("qwen2_5_vl", SINGLE)
    tccd = TCCD(model, text_bank(model, LAYER))
    streamer = TextIteratorStreamer(Words(), skip_prompt=True)
    how = {"max_new_tokens": 5, "do_sample": False, "custom_generate": tccd, "streamer": streamer}
    thread = threading.Thread(target=model.generate, kwargs={**batch, **how})
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert [int(w) for w in text.split()] == new_tokens(generate(model, batch, 5, tccd), batch)[0][0].tolist()


def assert_nothing_left(model: Any) -> None:
    gc.collect()
    assert not is_installed(model)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert not [name for name, module in model.named_modules() if "forward" in module.__dict__]


class Stop(Exception):
    pass


class Failing(LogitsProcessor):
    """Fails at the third token."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == 3:
            raise Stop
        return scores


@pytest.mark.parametrize("door", DOORS)
def test_nothing_is_left_after_an_exception(door):
    model, batch = cached_tiny("qwen2_5_vl"), inputs("qwen2_5_vl", SINGLE)
    plain = generate(model, batch, 5).sequences.tolist()
    tccd, cache = TCCD(model, text_bank(model, LAYER)), DynamicCache(config=model.config)
    how: dict[str, Any] = {"logits_processor": [Failing()], "past_key_values": cache}

    def run() -> None:
        if door == "custom_generate":
            generate(model, batch, 5, tccd, **how)
        elif door == "with":
            with tccd:
                generate(model, batch, 5, **how)
        else:
            generate(model, batch, 5, **(how | {"logits_processor": [tccd.logits_processor(), Failing()]}))

    with pytest.raises(Stop):
        run()
    assert_nothing_left(model)
    assert len(cache.layers) == 5
    assert generate(model, batch, 5).sequences.tolist() == plain


@pytest.mark.parametrize("door", DOORS)
def test_nothing_is_left_after_a_call(door):
    model, batch = cached_tiny("qwen2_5_vl"), inputs("qwen2_5_vl", SINGLE)
    both(model, batch, door)
    assert_nothing_left(model)
