"""The decoder's parts in all ten families, what is refused, and what a bank remembers of a model."""

import copy

import pytest
import torch
import transformers as hf
from torch import nn
from torch.testing import assert_close

from tccd.decoder import find_decoder, first_tensor, identify, replace_first
from tccd.errors import ConfigError, UnsupportedModelError
from tests.census.architectures import architecture
from tests.tiny import FAMILIES, HIDDEN, VOCAB, cached_tiny, inputs, tiny


def outputs_of(module: nn.Module, run) -> tuple:
    """What a module's only call in `run()` returned, and what `run()` did."""
    caught = []
    handle = module.register_forward_hook(lambda m, a, out: caught.append(out))
    try:
        with torch.no_grad():
            done = run()
    finally:
        handle.remove()
    assert len(caught) == 1
    return caught[0], done


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes(family):
    decoder = find_decoder(cached_tiny(family))
    assert decoder.model is cached_tiny(family)
    assert decoder.num_layers == len(decoder.layers) == 5
    assert decoder.hidden_size == HIDDEN
    assert decoder.head.weight.shape == (VOCAB, HIDDEN)
    assert decoder.norm.weight.shape == (HIDDEN,)


@pytest.mark.parametrize("layers", [1, 3])
def test_layers_are_counted_not_assumed(layers):
    assert find_decoder(tiny("llava", layers=layers)).num_layers == layers


@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_are_the_head_of_the_norm_of_the_last_layer(family):
    model = cached_tiny(family)
    decoder = find_decoder(model)
    batch = inputs(family)
    last, done = outputs_of(decoder.layers[-1], lambda: model(**batch, use_cache=False))
    with torch.no_grad():
        expected = decoder.head(decoder.norm(first_tensor(last)))
    assert decoder.linear_logits
    assert_close(done.logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_are_in_the_order_they_run(family):
    model = cached_tiny(family)
    ran: list[int] = []
    handles = [
        layer.register_forward_hook(lambda *_, i=i: ran.append(i))
        for i, layer in enumerate(find_decoder(model).layers)
    ]
    with torch.no_grad():
        model(**inputs(family), use_cache=False)
    for handle in handles:
        handle.remove()
    assert ran == [0, 1, 2, 3, 4]


def small_llm(name: str, config: str | None = None, **options):
    size = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    make = getattr(hf, f"{config or name}Config")
    return getattr(hf, f"{name}ForCausalLM")(
        make(**size, num_attention_heads=2, num_key_value_heads=1, **options)
    ).eval()


@pytest.mark.parametrize(("cap", "linear"), [(None, True), (2.0, False)])
def test_soft_capped_logits_are_not_linear(cap, linear):
    model = small_llm("Gemma3", "Gemma3Text", head_dim=8, final_logit_softcapping=cap)
    with torch.no_grad():
        model.lm_head.weight.normal_()
    decoder = find_decoder(model)
    states, done = outputs_of(decoder.norm, lambda: model(torch.arange(6)[None]))
    assert decoder.linear_logits == linear
    assert torch.allclose(done.logits, decoder.head(states), atol=1e-4) == linear


def test_a_soft_capped_vision_language_config_is_not_called_linear():
    assert not find_decoder(tiny("gemma3", final_logit_softcapping=30.0)).linear_logits


def test_scaled_logits_are_linear():
    model = small_llm("Granite", logits_scaling=8.0)
    decoder = find_decoder(model)
    states, done = outputs_of(decoder.norm, lambda: model(torch.arange(6)[None]))
    assert decoder.linear_logits
    assert_close(done.logits, decoder.head(states) / 8)


def encoder_decoder():
    return hf.T5ForConditionalGeneration(
        hf.T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    )


def two_norms():
    model = tiny("llava", layers=1)
    model.model.language_model.second_norm = nn.LayerNorm(HIDDEN)
    return model


def crossing():
    return architecture("blip").build()


def no_norm():
    model = tiny("llava", layers=1)
    model.model.language_model.norm = nn.Identity()
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (encoder_decoder, "T5ForConditionalGeneration is an encoder-decoder; .*decoder-only"),
        (
            lambda: tiny("llava").model,
            "LlavaModel has no language-model head; load the class that has logits",
        ),
        (lambda: tiny("llava").model.language_model, "LlamaModel has no language-model head"),
        (lambda: tiny("llava").model.vision_tower, r"no list of `\.layers`"),
        (
            lambda: nn.Linear(2, 2),
            r"Linear is no transformers model with get_decoder\(\); load one with AutoModel",
        ),
        (lambda: "llava", "str is no transformers model"),
        (two_norms, "expected one final norm of width 64 .* found 2 among .*second_norm"),
        (no_norm, "expected one final norm .* found 0"),
        (
            lambda: architecture("diffusion_gemma").build(),
            "DiffusionGemmaForBlockDiffusion is no GenerationMixin .* it makes no text token by token",
        ),
        (crossing, r"no list of `\.layers` and reaches the image by cross-attention \(crossattention\)"),
    ],
    ids=[
        "encoder-decoder",
        "no head",
        "text only",
        "tower",
        "no decoder",
        "a string",
        "two norms",
        "no norm",
        "block diffusion",
        "cross-attention",
    ],
)
def test_models_without_the_parts_are_refused(make, message):
    with pytest.raises(UnsupportedModelError, match=message):
        find_decoder(make())


def test_of_several_norms_the_final_one_is_as_wide_as_the_residual_stream():
    model = tiny("llava", layers=1)
    final = model.model.language_model.norm
    model.model.language_model.narrow_norm = nn.LayerNorm(8)
    model.model.language_model.norm_without_weights = nn.LayerNorm(HIDDEN, elementwise_affine=False)
    assert find_decoder(model).norm is final


def test_the_head_may_be_known_to_the_decoder_alone():
    model = architecture("nemotron_h_omni").build()
    assert model.get_output_embeddings() is None
    assert find_decoder(model).head is model.language_model.lm_head


def test_the_layers_may_lie_deeper_than_the_decoder():
    model = tiny("llava", layers=2)
    language = model.model.language_model
    wrapper, inner = nn.Module(), nn.Module()
    wrapper.model, inner.decoder = inner, language
    model.get_decoder = lambda: wrapper
    found = find_decoder(model)
    assert (found.layers, found.norm) == (language.layers, language.norm)


@pytest.mark.parametrize("layer", [-1, 5, 99, True, 1.0, "1", None])
def test_layers_out_of_range_are_refused(layer):
    decoder = find_decoder(cached_tiny("llava"))
    with pytest.raises(ConfigError, match=r"out of range; this model has 5 decoder layers, so expected 0 to 4$"):
        decoder.check_layer(layer)


def test_the_last_layer_is_refused_where_layers_above_it_are_needed():
    decoder = find_decoder(cached_tiny("llava"))
    assert [decoder.check_layer(i) for i in range(5)] == [0, 1, 2, 3, 4]
    assert decoder.check_layer(3, last_allowed=False) == 3
    with pytest.raises(ConfigError, match=r"layer 4 is out of range; .*expected 0 to 3; above the last layer"):
        decoder.check_layer(4, last_allowed=False)


def test_layer_outputs_are_read_and_replaced_in_both_forms():
    old, new = torch.zeros(2), torch.ones(2)
    assert first_tensor(old) is old
    assert first_tensor((old, "weights")) is old
    assert replace_first(old, new) is new
    assert replace_first((old, "weights"), new) == (new, "weights")


# Identity


@pytest.mark.parametrize("family", FAMILIES)
def test_identity_says_what_the_model_is(family):
    model = cached_tiny(family)
    found = identify(model)
    assert found == identify(model)
    assert (found.model_type, found.hidden_size, found.num_layers) == (model.config.model_type, HIDDEN, 5)
    assert (found.model_id, found.revision) == (type(model).__name__, None)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_identity_survives_a_round_trip_through_a_folder(family, dtype, tmp_path):
    model = tiny(family, layers=2)
    model.save_pretrained(tmp_path / "my-model")
    again = type(model).from_pretrained(tmp_path / "my-model", dtype=dtype)
    found = identify(again)
    assert found.model_id == "my-model"
    assert found.revision is None
    assert found.fingerprint == identify(model).fingerprint


# Not fp32 or bf16 weights loaded in fp16: rounded twice, or below its smallest normal number.
@pytest.mark.parametrize(
    ("stored", "loaded"),
    [(a, b) for a in (torch.float32, torch.bfloat16, torch.float16) for b in (torch.float32, torch.bfloat16)]
    + [(torch.float16, torch.float16)],
)
def test_the_fingerprint_is_the_same_in_another_precision(stored, loaded):
    model = tiny("llava", layers=5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.02)  # as large as trained weights are
    model = model.to(stored)
    assert identify(copy.deepcopy(model).to(loaded)).fingerprint == identify(model).fingerprint


def test_the_fingerprint_tells_weights_and_layers_apart():
    models = [
        tiny("llava", layers=2),
        tiny("llava", layers=2, seed=1),
        tiny("llava", layers=3),
        tiny("internvl"),
    ]
    trained = tiny("llava", layers=2)
    with torch.no_grad():
        for parameter in find_decoder(trained).layers[1].parameters():
            parameter.mul_(1.1)
    prints = [identify(model).fingerprint for model in [*models, trained]]
    assert None not in prints
    assert len(set(prints)) == len(prints)


def test_weights_that_are_not_here_have_no_fingerprint():
    assert identify(tiny("llava", layers=1).to("meta")).fingerprint is None


def quantised(model):
    """Its layers' matrices as integers with scales, as weight-only quantisation stores them."""
    for layer in find_decoder(model).layers:
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                scale = module.weight.detach().abs().amax(1, keepdim=True) / 127
                module.weight = nn.Parameter((module.weight / scale).round().to(torch.int8), requires_grad=False)
                module.register_buffer("scale", scale)
    return model


def test_quantised_weights_have_a_fingerprint_of_their_own():
    base, one, same = (tiny("llava", layers=2) for _ in range(3))
    other = tiny("llava", layers=2)
    with torch.no_grad():
        find_decoder(other).layers[1].mlp.up_proj.weight[0, 0] *= -1
    prints = [identify(quantised(model)).fingerprint for model in (one, same, other)]
    assert prints[0] == prints[1]
    assert None not in prints
    assert len({*prints, identify(base).fingerprint}) == 3


def test_quantised_weights_that_are_buffers_count_too():
    def packed(value):
        model = tiny("llava", layers=1)
        model.config.quantization_config = {"quant_method": "gptq"}
        model.model.register_buffer("qweight", torch.full((4, 4), value, dtype=torch.int32))
        return identify(model).fingerprint

    assert packed(1) == packed(1) != packed(2)


@pytest.mark.parametrize("ending", ["", "/", "/."])
def test_a_local_folder_and_a_hub_id(ending, tmp_path):
    model = tiny("llava", layers=1)
    model.config._commit_hash = "0123abc"
    model.config._name_or_path = "someone/some-vlm"
    assert (identify(model).model_id, identify(model).revision) == ("someone/some-vlm", "0123abc")
    model.config._name_or_path = f"{tmp_path}{ending}"
    assert (identify(model).model_id, identify(model).revision) == (tmp_path.name, None)
