"""Other words, against whole uncached forwards of both prompts, on every family and in every mode."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor

from eval.zoo import load
from tccd.data import load_samples
from tccd.decoding.huggingface import Contrast
from tccd.decoding.references import no_vision, other_prompt
from tccd.engine import OtherPrompt
from tccd.errors import ConfigError, ModalityError, UnsupportedModelError
from tccd.inputs import encode
from tests import oracle
from tests.tccd.decoding.common import RAGGED, SINGLE, generate, new_tokens
from tests.tccd.decoding.test_modes import RELEASE, assert_nothing_left
from tests.tiny import CAUSAL_FAMILIES, Row, cached_tiny, inputs, tiny

#: Other prompts for one row and for `RAGGED`: longer with an image, shorter with one, without any.
OTHERS = {
    "single-longer": (SINGLE, [Row(before=11, after=9)]),
    "single-shorter": (SINGLE, [Row(before=1, after=2)]),
    "single-without-image": (SINGLE, [Row(images=0, before=1)]),
    "ragged-longer": (
        RAGGED,
        [Row(before=9, after=12), Row(images=2, before=1, after=3), Row(images=0, before=4)],
    ),
    "ragged-without-image": (RAGGED, [Row(images=0, before=2), Row(images=0, before=1), Row(images=0, before=7)]),
    "image-for-none": ([Row(images=0), Row(images=0, before=1)], [Row(after=1), Row(images=2)]),
}


def pair(family: str, rows: list[Row] = SINGLE, others: list[Row] | None = None) -> tuple[dict, dict]:
    return inputs(family, rows), inputs(family, [Row(before=9, after=7)] if others is None else others, seed=7)


def answered(other: dict[str, Any], tokens: Tensor) -> dict[str, Any]:
    """The other prompts with tokens of shape (batch, n) after them."""
    for token in tokens.T:
        other = oracle.extend(other, token)
    return other


class Slow(LogitsProcessor):
    """Replaces every score by the oracle's, so that transformers' own loops decode the oracle."""

    def __init__(
        self, model: Any, batch: dict, other: dict, alpha: float, copies: int = 1, normalise: bool = False
    ):
        assert copies == 1 or batch["input_ids"].shape[0] == 1  # images of copies stand side by side
        self.batch, self.other = ({k: torch.cat([v] * copies) for k, v in one.items()} for one in (batch, other))
        self.model, self.alpha, self.normalise = model, alpha, normalise

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        said = input_ids[:, self.batch["input_ids"].shape[1] :]
        clean, other = (
            oracle.full_logits(self.model, answered(one, said))[:, -1].float() for one in (self.batch, self.other)
        )
        combined = clean + self.alpha * (clean - other)
        return combined.log_softmax(-1) if self.normalise else combined


def assert_same(
    model: Any,
    batch: dict,
    other: dict,
    door: str = "custom_generate",
    copies: int = 1,
    alpha: float = 1.0,
    **how: Any,
) -> None:
    """A generate call with the contrast gives what the same call gives with the oracle's scores."""
    how = {"output_scores": True} | how
    contrast = Contrast(model, OtherPrompt(other), alpha_cd=alpha)
    torch.manual_seed(0)
    if door == "custom_generate":
        ours = generate(model, batch, 8, contrast, **how)
    elif door == "with":
        with contrast:
            ours = generate(model, batch, 8, **how)
    else:
        ours = generate(model, batch, 8, logits_processor=[contrast.logits_processor()], **how)
    assert_nothing_left(model)
    torch.manual_seed(0)
    slow = Slow(model, batch, other, alpha, copies, how.get("num_beams", 1) > 1)
    theirs = generate(model, batch, 8, logits_processor=[slow], **how)
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    for a, b in zip(ours.scores, theirs.scores, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("scene", OTHERS)
@pytest.mark.parametrize("family", CAUSAL_FAMILIES)
def test_other_words_on_every_family(family, scene):
    assert_same(cached_tiny(family), *pair(family, *OTHERS[scene]))


DOORS = ["custom_generate", "with", "logits_processor"]
MODES: dict[str, tuple[dict[str, Any], int]] = {
    "greedy": ({}, 1),
    "sampling": ({"do_sample": True, "top_k": 0}, 1),
    "beams": ({"num_beams": 3, "num_return_sequences": 2}, 3),
    "beam-sampling": ({"num_beams": 3, "do_sample": True, "top_k": 0}, 3),
    "several-sequences": ({"do_sample": True, "top_k": 0, "num_return_sequences": 3}, 3),
    "static-cache": ({"cache_implementation": "static"}, 1),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3"])
def test_modes(family, mode, door):
    if mode == "static-cache" and family == "gemma3" and RELEASE < (5, 17):
        pytest.skip("transformers 5.16 itself fails with a static cache shorter than the prompt")
    how, copies = MODES[mode]
    assert_same(cached_tiny(family), *pair(family), door, copies, **how)


@pytest.mark.parametrize("mode", ["greedy", "static-cache"])
def test_modes_of_ragged_batches(mode):
    how, _ = MODES[mode]
    assert_same(cached_tiny("qwen2_5_vl"), *pair("qwen2_5_vl", *OTHERS["ragged-longer"]), "with", **how)


def test_beams_of_a_batch_are_those_of_each_row():
    """Each of the other prompts follows its own row's beams, wherever they go."""
    model = cached_tiny("qwen2_5_vl")
    rows, others = [Row(), Row(before=6)], [Row(images=0, before=4), Row(before=9)]
    batch, other = pair("qwen2_5_vl", rows, others)
    how = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    together = model.generate(**batch, **how, custom_generate=Contrast(model, OtherPrompt(other), alpha_cd=1.0))
    first = {k: v[:1] for k, v in other.items() if k in ("input_ids", "attention_mask", "mm_token_type_ids")}
    size = batch["image_grid_thw"][0].prod()
    alone = {k: v[:size] if k == "pixel_values" else v[:1] for k, v in batch.items()}
    contrast = Contrast(model, OtherPrompt(first), alpha_cd=1.0)
    assert together[0].tolist() == model.generate(**alone, **how, custom_generate=contrast)[0].tolist()


@pytest.mark.parametrize(("family", "window"), [("qwen2_5_vl", 64), ("llava", 64), ("gemma3", 4)])
def test_prompt_lookup(family, window):
    """The first forward already drafts tokens, and wrong ones are cropped away again."""
    model = tiny(family, window=window)
    for seed in range(3):
        batch, other = said_twice(family, seed), inputs(family, [Row(images=0, before=2)], seed=9)
        assert_same(model, batch, other, prompt_lookup_num_tokens=3, alpha=0.5)


def said_twice(family: str, seed: int = 0) -> dict[str, Any]:
    """A prompt whose last six words repeat the six before, so that its next ones can be looked up there."""
    batch = inputs(family, [Row(before=0, after=12)], seed=seed)
    batch["input_ids"][0, -6:] = batch["input_ids"][0, -12:-6]
    return batch


def test_prompt_lookup_in_a_block_is_refused_for_the_drafted_tokens_of_its_first_forward():
    model, batch, other = cached_tiny("qwen2_5_vl"), said_twice("qwen2_5_vl"), inputs("qwen2_5_vl")
    with Contrast(model, OtherPrompt(other)), pytest.raises(UnsupportedModelError, match="drafted tokens"):
        generate(model, batch, 8, prompt_lookup_num_tokens=3)
    assert_nothing_left(model)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("window", [4, 64])
def test_sliding_windows(window, cache):
    if cache == "static" and window == 4 and RELEASE < (5, 17):
        pytest.skip("transformers 5.16 itself fails with a static cache shorter than the prompt")
    model = tiny("gemma3", window=window)
    assert_same(model, *pair("gemma3", *OTHERS["ragged-longer"]), cache_implementation=cache)


def test_a_rule_with_a_gate_and_a_cut_reads_the_logits_of_both():
    model, (batch, other) = cached_tiny("llava"), pair("llava")
    contrast = Contrast(model, OtherPrompt(other), alpha_cd=1.0, beta=0.2, gate="margin", gate_threshold=0.9)
    ours = generate(model, batch, 6, contrast)
    said = new_tokens(ours, batch)[0]
    for column, logits in enumerate(ours.logits):
        clean, away = (oracle.full_logits(model, answered(one, said[:, :column]))[:, -1] for one in (batch, other))
        cut = clean < clean.amax() + torch.log(torch.tensor(0.2))
        top = clean.softmax(-1).sort(-1, descending=True).values[0]
        expected = clean + (clean - away) * float(top[0] - top[1] < 0.9)
        torch.testing.assert_close(logits[~cut], expected[~cut], rtol=0, atol=1e-4)
        assert bool((logits[cut] == -torch.inf).all())


def test_a_conversation_step_by_step_and_from_a_copied_cache():
    """Stepped without position ids, Qwen reads what its last prefill noted on the model: the clean one's."""
    model, (batch, other) = cached_tiny("qwen2_5_vl"), pair("qwen2_5_vl")
    said = torch.tensor([[7, 8, 9]])
    clean, away = (oracle.full_logits(model, answered(one, said))[:, -1] for one in (batch, other))
    with Contrast(model, OtherPrompt(other), alpha_cd=1.0), torch.no_grad():
        cache = model(**batch, use_cache=True).past_key_values
        assert len(cache.layers) == 6
        for one in (copy.deepcopy(cache), cache):
            for token in said[0]:
                step = model(input_ids=token.view(1, 1), past_key_values=one, use_cache=True)
            torch.testing.assert_close(step.logits[:, -1], 2 * clean - away, rtol=0, atol=1e-4)
        cache.crop(-2)
        step = model(input_ids=said[:, 1:], past_key_values=cache, use_cache=True)
        torch.testing.assert_close(step.logits[:, -1], 2 * clean - away, rtol=0, atol=1e-4)
    assert len(cache.layers) == 5


def test_several_prompts_one_after_the_other_in_a_block():
    model, (batch, other) = cached_tiny("qwen2_5_vl"), pair("qwen2_5_vl")
    longer = inputs("qwen2_5_vl", [Row(before=8)], seed=2)
    contrast = Contrast(model, OtherPrompt(other), alpha_cd=1.0, tokens="first")
    alone = [generate(model, one, 4, contrast).logits for one in (batch, longer, batch)]
    with contrast:
        block = [generate(model, one, 4).logits for one in (batch, longer, batch)]
    for a, b in zip(alone, block, strict=True):
        torch.testing.assert_close(torch.stack(a), torch.stack(b), rtol=0, atol=1e-5)


def test_the_prompt_s_earlier_columns_stay_clean():
    model, (batch, other) = cached_tiny("llava"), pair("llava")
    with Contrast(model, OtherPrompt(other), alpha_cd=1.0), torch.no_grad():
        ours = model(**batch).logits
    clean, away = oracle.full_logits(model, batch), oracle.full_logits(model, other)
    torch.testing.assert_close(ours[:, :-1], clean[:, :-1], rtol=0, atol=1e-4)
    torch.testing.assert_close(ours[:, -1], 2 * clean[:, -1] - away[:, -1], rtol=0, atol=1e-4)


def test_the_model_s_own_prompt_takes_nothing_away():
    model, batch = cached_tiny("qwen2_5_vl"), inputs("qwen2_5_vl", RAGGED)
    ours = generate(model, batch, 6, Contrast(model, OtherPrompt(batch), alpha_cd=3.0))
    plain = generate(model, batch, 6)
    torch.testing.assert_close(torch.stack(ours.logits), torch.stack(plain.logits), rtol=0, atol=1e-4)


def test_two_threads_on_one_model():
    model = cached_tiny("qwen2_5_vl")
    batches = [inputs("qwen2_5_vl", [Row(after=4 + i)], seed=i) for i in range(3)]
    others = [inputs("qwen2_5_vl", [Row(images=i, before=9)], seed=7 + i) for i in range(2)]
    doors = [*(Contrast(model, OtherPrompt(other), alpha_cd=2.0) for other in others), None]
    alone = [generate(model, b, 8, c).sequences.tolist() for b, c in zip(batches, doors, strict=True)]
    together: dict[int, list] = {0: [], 1: [], 2: []}

    def work(i: int) -> None:
        for _ in range(4):
            together[i].append(generate(model, batches[i], 8, doors[i]).sequences.tolist())

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(together[i] == [alone[i]] * 4 for i in range(3))
    assert_nothing_left(model)


@pytest.mark.slow
@pytest.mark.parametrize("with_images", [True, False])
@pytest.mark.parametrize("name", ["llava-competing", "qwen25vl-competing", "idefics3-competing"])
def test_a_default_model_with_its_processor(name, with_images):
    model, processor = load(name)
    model = copy.deepcopy(model)
    model.generation_config.eos_token_id = None
    samples = load_samples("easy-vqa", split="test", limit=3, seed=0)
    images, prompts = [[s.image] for s in samples], [s.prompt for s in samples]
    words = [f"is the answer to this yes? {prompt}" for prompt in prompts[:-1]] + ["what color is the shape?"]
    reference = other_prompt(processor, words, images if with_images else None)
    assert ("pixel_values" in reference.inputs) == with_images
    batch = dict(encode(processor, images, prompts))
    ours = generate(model, batch, 4, Contrast(model, reference, alpha_cd=0.5))
    said = new_tokens(ours, batch)[0]
    for column, logits in enumerate(ours.logits):
        clean, away = (
            oracle.full_logits(model, answered(one, said[:, :column]))[:, -1]
            for one in (batch, dict(reference.inputs))
        )
        torch.testing.assert_close(logits, 1.5 * clean - 0.5 * away, rtol=0, atol=1e-4)


def test_a_language_model_is_guided_as_by_transformers_itself():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=3, **sizes, pad_token_id=0)).eval()
    for weight in model.parameters():
        weight.data.normal_(0, 0.3)
    model.generation_config.eos_token_id = None
    ids, others = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]]), torch.tensor([[4, 5, 6], [0, 0, 7]])
    batch = {"input_ids": ids, "attention_mask": ids.gt(0).long()}
    other = {"input_ids": others, "attention_mask": others.gt(0).long()}
    ours = generate(model, batch, 6, Contrast(model, OtherPrompt(other), alpha_cd=0.5))
    guided = {f"negative_prompt_{'ids' if k == 'input_ids' else k}": v for k, v in other.items()}
    theirs = generate(model, batch, 6, guidance_scale=1.5, output_scores=True, **guided)
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    for a, b in zip(ours.logits, theirs.scores, strict=True):
        torch.testing.assert_close(a.log_softmax(-1), b.log_softmax(-1), rtol=0, atol=1e-4)
    with pytest.raises(ModalityError, match="names no vision token"):
        generate(model, batch, 1, Contrast(model, no_vision()))


def test_other_words_and_no_image_at_once():
    """Two references, of which one needs an image: a row without one is contrasted with the other words alone."""
    model, (batch, other) = cached_tiny("llava"), pair("llava", *OTHERS["ragged-longer"])
    weights = (0.5, 1.5)
    ours = generate(
        model, batch, 4, Contrast(model, [OtherPrompt(other), no_vision()], weights=weights, alpha_cd=1.0)
    )
    said = new_tokens(ours, batch)[0]
    for column, logits in enumerate(ours.logits):
        longer = answered(batch, said[:, :column])
        clean, words = (oracle.full_logits(model, x)[:, -1] for x in (longer, answered(other, said[:, :column])))
        blind = oracle.withheld_logits(model, longer)[:, -1]
        expected = clean + weights[0] * (clean - words) + weights[1] * (clean - blind)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


def test_offloaded_weights_and_half_precision():
    from accelerate import cpu_offload

    model, (batch, other) = tiny("qwen2_5_vl"), pair("qwen2_5_vl")
    contrast = Contrast(model, OtherPrompt(other), alpha_cd=1.0)
    expected = torch.stack(generate(model, batch, 5, contrast).logits)
    half = copy.deepcopy(model).to(torch.bfloat16)
    first = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in batch.items()}
    rough = generate(half, first, 1, Contrast(half, OtherPrompt(other), alpha_cd=1.0)).logits[0]
    assert (rough.float() - expected[0]).std() < 0.1 * expected[0].std()
    cpu_offload(model, execution_device="cpu")
    ours = torch.stack(generate(model, batch, 5, contrast).logits)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_the_returned_cache_is_the_model_s_own(cache):
    model, (batch, other) = cached_tiny("qwen2_5_vl"), pair("qwen2_5_vl")
    contrast = Contrast(model, OtherPrompt(other), alpha_cd=1e-6)
    ours = generate(model, batch, 6, contrast, cache_implementation=cache).past_key_values
    plain = generate(model, batch, 6, cache_implementation=cache).past_key_values
    assert [type(x) for x in ours.layers] == [type(x) for x in plain.layers]
    for a, b in zip(ours.layers, plain.layers, strict=True):
        torch.testing.assert_close(a.keys, b.keys, rtol=0, atol=1e-4)


def refused(match: str, other: dict, rows: list[Row] = SINGLE, error: type = ConfigError, **how: Any) -> None:
    model = cached_tiny("llava")
    batch = inputs("llava", rows, padding_side=how.pop("padding_side", "left"))
    with pytest.raises(error, match=match):
        generate(model, batch, 3, Contrast(model, OtherPrompt(other)), **how)
    assert_nothing_left(model)


def test_without_a_cache():
    refused("use_cache=False", inputs("llava"), error=UnsupportedModelError, use_cache=False)


def test_padding_on_the_right():
    refused("the prompts are padded on the right", inputs("llava", RAGGED), RAGGED, padding_side="right")
    with pytest.raises(ConfigError, match="the other prompts are padded on the right"):
        OtherPrompt(inputs("llava", RAGGED, padding_side="right"))


def test_another_number_of_prompts():
    for others in ([Row(), Row()], [Row()] * 4):
        refused(f"there are {len(others)} other prompts for 3 prompts", inputs("llava", others), RAGGED)
    # three copies of one prompt are beams; three prompts are not
    refused("there are 1 other prompts for 3 prompts", inputs("llava"), RAGGED)


def test_a_prompt_that_grows_without_its_cache():
    model, (batch, other) = cached_tiny("llava"), pair("llava")
    with Contrast(model, OtherPrompt(other)), torch.no_grad():
        model(**batch)
        model(**batch)
        with pytest.raises(UnsupportedModelError, match="goes on from the last one's 17 tokens"):
            model(**oracle.extend(batch, torch.tensor([7])))
    assert_nothing_left(model)
