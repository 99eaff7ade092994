"""What can't be right is refused before the first token, with the reason, and leaves the model as it was."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from transformers import GenerationConfig
from transformers.cache_utils import DynamicCache

from tccd import TCCD, CentroidBank, TCCDConfig
from tccd.engine.support import check_uncompiled
from tccd.errors import BankMismatchError, ConfigError, ModalityError, UnsupportedModelError
from tests.tccd.decoding.common import RAGGED, SINGLE, generate, text_bank, text_centroids
from tests.tccd.decoding.test_modes import Recorder, assert_nothing_left
from tests.tiny import Row, cached_tiny, inputs, tiny


@pytest.fixture
def model() -> Any:
    return cached_tiny("qwen2_5_vl")


@pytest.fixture
def tccd(model) -> TCCD:
    return TCCD(model, text_bank(model, 1))


@pytest.fixture
def batch() -> dict[str, Any]:
    return inputs("qwen2_5_vl", SINGLE)


def refused(call: Any, kind: type[Exception], *words: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    for word in words:
        assert re.search(word, str(caught.value)), str(caught.value)


@pytest.mark.parametrize("rows", [SINGLE, RAGGED], ids=["single", "ragged"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_prefix_lm_attention_is_found_by_the_self_test(rows, attention):
    model = tiny("paligemma")
    model.set_attn_implementation(attention)
    tccd, batch = TCCD(model, text_bank(model, 1)), inputs("paligemma", rows)
    plain = generate(model, batch, 2).sequences
    refused(lambda: generate(model, batch, 2, tccd), UnsupportedModelError, "prefix-LM", "PaliGemma")
    assert_nothing_left(model)
    assert generate(model, batch, 2).sequences.tolist() == plain.tolist()


def test_layer_out_of_range_and_the_last_one(model):
    refused(lambda: TCCD(model, text_bank(model, 4)), ConfigError, "layer 4", "expected 0 to 3", "nothing to run")
    refused(lambda: TCCD(model, text_bank(model, 1), layer=3), BankMismatchError, "text centroids at layer 3")


def test_bank_of_another_model(model):
    refused(lambda: TCCD(model, text_bank(cached_tiny("llava"), 1)), BankMismatchError, "another model", "fit")


def test_bank_without_text_or_with_several_layers(model):
    vision = CentroidBank.from_arrays(model, {("vision", 1): text_centroids()})
    refused(lambda: TCCD(model, vision), ConfigError, "no text centroids", "fit text=")
    two = CentroidBank.from_arrays(model, {("text", 1): text_centroids(), ("text", 2): text_centroids()})
    refused(lambda: TCCD(model, two), ConfigError, r"\[1, 2\]", "layer=")
    assert TCCD(model, two, layer=2).layer == 2


def test_settings_given_twice(model):
    refused(lambda: TCCD(model, text_bank(model, 1), beta=0.1, config=TCCDConfig()), ConfigError, "once")
    assert TCCD(model, text_bank(model, 1), config=TCCDConfig(beta=0.1)).config.beta == 0.1


def test_no_vision_token_in_the_prompt(model, tccd, batch):
    text_only = inputs("qwen2_5_vl", [Row(images=0)])
    refused(lambda: generate(model, text_only, 2, tccd), ModalityError, "no row of this batch has a vision token")
    llava, batch = cached_tiny("llava"), inputs("llava")
    tccd, lost = TCCD(llava, text_bank(llava, 1)), batch["input_ids"].where(batch["input_ids"] < 110, 5)
    refused(lambda: generate(llava, batch | {"input_ids": lost}, 2, tccd), ModalityError, "has an image but none")


def test_a_model_whose_config_names_no_vision_token():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32, hidden_size=64, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).eval()
    tccd = TCCD(model, text_bank(model, 1))
    ids = torch.tensor([[3, 4, 5]])
    refused(
        lambda: model.generate(ids, custom_generate=tccd, max_new_tokens=2), ModalityError, "names no vision token"
    )


def test_training_mode_and_gradients(model, tccd, batch):
    with tccd:
        refused(lambda: model(**batch), UnsupportedModelError, "gradients", "no_grad")
    model.train()
    try:
        refused(lambda: generate(model, batch, 2, tccd), UnsupportedModelError, "training mode", "eval")
    finally:
        model.eval()
    assert_nothing_left(model)


def test_compiled_models(batch):
    model = tiny("qwen2_5_vl")
    bank = text_bank(model, 1)
    model.compile()
    refused(lambda: TCCD(model, bank), UnsupportedModelError, "torch.compile")


def test_static_caches_that_generate_would_compile_for(model):
    from transformers import StaticCache

    static = StaticCache(config=model.config, max_cache_len=8)
    refused(
        lambda: check_uncompiled(static, "cuda"), UnsupportedModelError, "compiles the model", "custom_generate"
    )
    check_uncompiled(static, "cpu")
    check_uncompiled(DynamicCache(config=model.config), "cuda")
    check_uncompiled(None, "cuda")


def test_other_attention_implementations():
    model = tiny("llava")
    bank = text_bank(model, 1)
    model.set_attn_implementation("flex_attention")
    refused(lambda: TCCD(model, bank), UnsupportedModelError, "flex_attention", "sdpa")


def test_layers_that_are_not_attention():
    model = tiny("qwen2_5_vl")
    model.config.get_text_config().layer_types = ["full_attention"] * 4 + ["linear_attention"]
    refused(lambda: TCCD(model, text_bank(model, 1)), UnsupportedModelError, "linear_attention")


def test_token_ids_have_to_be_there(model, tccd, batch):
    embeds = model.get_input_embeddings()(batch["input_ids"])

    def run() -> None:
        with tccd, torch.no_grad():
            model(inputs_embeds=embeds, attention_mask=batch["attention_mask"])

    refused(run, UnsupportedModelError, "input_ids", "inputs_embeds")


def test_labels(model, tccd, batch):
    def run() -> None:
        with tccd, torch.no_grad():
            model(**batch, labels=batch["input_ids"])

    refused(run, UnsupportedModelError, "labels")


def test_a_cache_that_was_filled_without_us(model, tccd, batch):
    with torch.no_grad():
        cache = model(**batch, past_key_values=DynamicCache(config=model.config)).past_key_values

    def run() -> None:
        with tccd, torch.no_grad():
            model(input_ids=torch.tensor([[5]]), past_key_values=cache)

    refused(run, UnsupportedModelError, "past_key_values holds", "whole prompt")


def test_a_cache_that_another_session_filled(model, tccd, batch):
    with tccd, torch.no_grad():
        cache = model(**batch, use_cache=True).past_key_values

    def run() -> None:
        with tccd, torch.no_grad():
            model(input_ids=torch.tensor([[5]]), past_key_values=cache)

    refused(run, UnsupportedModelError, "computed without this TCCD")


def test_an_image_later_in_a_conversation(model, tccd, batch):
    def run() -> None:
        with tccd, torch.no_grad():
            cache = model(**batch, use_cache=True).past_key_values
            later = {k: v for k, v in batch.items() if k != "attention_mask"}
            model(**later, past_key_values=cache)

    refused(run, UnsupportedModelError, "image came after the first forward")


def test_offloaded_caches_and_things_that_are_no_cache(model, tccd, batch):
    class Offloaded(DynamicCache):
        offloading = True

        def __init__(self) -> None:
            super().__init__(config=model.config)
            self.offloading = True

    refused(
        lambda: generate(model, batch, 2, tccd, past_key_values=Offloaded()), UnsupportedModelError, "offloaded"
    )

    def run() -> None:
        with tccd, torch.no_grad():
            model(**batch, past_key_values=[1, 2])

    refused(run, UnsupportedModelError, "past_key_values is a list")


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ({"prefill_chunk_size": 4}, "prefill_chunk_size"),
        ({"assistant_early_exit": 2, "prompt_lookup_num_tokens": 2}, "assistant_early_exit"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "generation mode"),
    ],
)
def test_generation_that_is_not_supported(model, tccd, batch, how, word):
    refused(lambda: generate(model, batch, 2, tccd, **how), UnsupportedModelError, word)


def test_streamer_with_beams(model, tccd, batch):
    call = {"num_beams": 2, "streamer": Recorder()}
    refused(lambda: generate(model, batch, 2, tccd, **call), UnsupportedModelError, "streamer", "num_beams=1")


def test_logits_to_keep_as_indices(model, tccd, batch):
    def run() -> None:
        with tccd, torch.no_grad():
            model(**batch, logits_to_keep=torch.tensor([0, 2]))

    refused(run, UnsupportedModelError, "logits_to_keep")


def test_a_part_of_the_model_called_on_its_own(model, tccd, batch):
    def run() -> None:
        with tccd, torch.no_grad():
            model.model(**batch)

    refused(run, UnsupportedModelError, "outside a call of the whole model")


def test_another_model_than_the_one_it_was_made_for(model, tccd):
    other = cached_tiny("llava")
    refused(lambda: generate(other, inputs("llava"), 2, tccd), ConfigError, "another")


def test_two_at_once_on_one_model(model, tccd, batch):
    second = TCCD(model, text_bank(model, 2))

    def run() -> None:
        with tccd:
            generate(model, batch, 2, second)

    refused(run, ConfigError, "another TCCD is active")
    assert_nothing_left(model)


def test_tokens_first_without_a_cache(model, batch):
    first = TCCD(model, text_bank(model, 1), tokens="first")
    refused(lambda: generate(model, batch, 2, first, use_cache=False), ConfigError, "tokens='first'", "use_cache")


def test_a_typo_in_generate_still_raises(model, tccd, batch):
    refused(lambda: generate(model, batch, 2, tccd, max_tokns=3), ValueError, "max_tokns")


def test_processor_misuse(model, tccd, batch):
    processor = tccd.logits_processor()
    scores = torch.zeros(1, 8)
    refused(
        lambda: processor(batch["input_ids"], scores), UnsupportedModelError, "saw no forward", "custom_generate"
    )
    processor.close()
    assert_nothing_left(model)
    refused(
        lambda: generate(model, batch, 4, logits_processor=[tccd.logits_processor()], prompt_lookup_num_tokens=2),
        UnsupportedModelError,
        "custom_generate",
    )


def test_a_processor_that_outlives_its_call_disturbs_nobody(model, tccd, batch):
    plain, text_only = generate(model, batch, 4), inputs("qwen2_5_vl", [Row(images=0)])
    contrasted = generate(model, batch, 4, tccd)
    processor = tccd.logits_processor()
    torch.testing.assert_close(generate(model, batch, 4).logits, plain.logits, rtol=0, atol=1e-5)
    generate(model, text_only, 1)
    refused(lambda: processor(text_only["input_ids"], torch.zeros(1, 8)), ModalityError, "no row of this batch")
    assert generate(model, batch, 4, tccd).sequences.tolist() == contrasted.sequences.tolist()


def test_generation_config_is_not_changed_for_the_caller(model, tccd, batch):
    config = GenerationConfig(max_new_tokens=2, do_sample=False, pad_token_id=0)
    model.generate(**batch, generation_config=config, custom_generate=tccd)
    assert not config.disable_compile
    assert not model.generation_config.disable_compile
