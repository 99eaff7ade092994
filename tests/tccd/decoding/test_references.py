"""Each reference against whole uncached forwards of its own, on every family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tccd import CentroidBank
from tccd.decoder import find_decoder
from tccd.decoding.huggingface import Contrast
from tccd.decoding.references import early_exit, no_vision, vision_centroid
from tccd.engine import KeptImage, MeanImage, OtherImage, Prefixes
from tccd.errors import ConfigError, UnsupportedModelError
from tests import oracle
from tests.tccd.decoding.common import RAGGED, SINGLE, generate, new_tokens, text_centroids
from tests.tccd.decoding.test_modes import RELEASE, assert_nothing_left
from tests.tiny import CAUSAL_FAMILIES, Row, cached_tiny, inputs, row_of, tiny

BLANK = 0.3


def blanked(batch: dict[str, Any]) -> dict[str, Any]:
    """The same prompts with pictures of one color; Idefics3 takes pixels that are all zero for padding."""
    pixels = batch["pixel_values"]
    return batch | {"pixel_values": torch.where(pixels == 0, pixels, BLANK)}


def assert_like(model: Any, batch: dict[str, Any], contrast: Contrast, *references: Any, steps: int = 6) -> None:
    strengths = [contrast.rule.alpha_cd * weight for weight in contrast.weights]
    tokens, logits = oracle.greedy_with(model, batch, references, strengths, steps)
    ours = new_tokens(generate(model, batch, steps, contrast), batch)
    assert ours[0].tolist() == tokens.tolist()
    torch.testing.assert_close(ours[1].float(), logits, rtol=0, atol=1e-4)
    assert_nothing_left(model)


def blank(model: Any, batch: dict[str, Any]) -> tuple[Contrast, Any]:
    """The contrast with a blank image, and its logits by a whole forward."""
    other = blanked(batch)

    def logits(longer: dict[str, Any]) -> Tensor:
        return oracle.full_logits(model, longer | {"pixel_values": other["pixel_values"]})

    return Contrast(model, OtherImage(other), alpha_cd=1.0), logits


@pytest.mark.parametrize("rows", [SINGLE, RAGGED], ids=["single", "ragged"])
@pytest.mark.parametrize("family", CAUSAL_FAMILIES)
def test_no_vision_is_the_image_withheld(family, rows):
    model, batch = cached_tiny(family), inputs(family, rows)
    contrast = Contrast(model, no_vision(), alpha_cd=1.0)
    assert_like(model, batch, contrast, lambda longer: oracle.withheld_logits(model, longer))


@pytest.mark.parametrize("rows", [SINGLE, RAGGED], ids=["single", "ragged"])
@pytest.mark.parametrize("family", CAUSAL_FAMILIES)
def test_a_blank_image_is_a_second_pass_over_it(family, rows):
    model, batch = cached_tiny(family), inputs(family, rows)
    assert_like(model, batch, *blank(model, batch))


def mean_of(model: Any) -> Tensor:
    """A mean image: any states of a plausible size will do."""
    decoder = find_decoder(model)
    return torch.randn(decoder.num_layers, decoder.hidden_size, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("rows", [SINGLE, RAGGED], ids=["single", "ragged"])
@pytest.mark.parametrize("family", CAUSAL_FAMILIES)
def test_a_mean_image_is_every_vision_token_the_same(family, rows):
    model, batch = cached_tiny(family), inputs(family, rows)
    mean = mean_of(model)
    contrast = Contrast(model, MeanImage(mean), alpha_cd=1.0)
    assert_like(model, batch, contrast, lambda longer: oracle.mean_image_logits(model, longer, mean))


@pytest.mark.parametrize("rows", [SINGLE, RAGGED], ids=["single", "ragged"])
@pytest.mark.parametrize("layers", [-1, 2, (0, 1, 3), "low", "high"])
@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3"])
def test_an_early_exit_is_a_lower_layer_through_norm_and_head(family, layers, rows):
    model, batch = cached_tiny(family), inputs(family, rows)
    contrast = Contrast(model, early_exit(layers), alpha_cd=0.5)
    named = {"low": (-1, 1), "high": (1, 3)}  # of 5 layers; DoLa's 0 and 2, and 2 and 4
    at = named.get(layers, layers) if isinstance(layers, str) else (layers,) if isinstance(layers, int) else layers
    assert_like(model, batch, contrast, lambda longer: oracle.exit_logits(model, longer, at))


@pytest.mark.parametrize("family", CAUSAL_FAMILIES)
def test_vision_centroids(family):
    model, batch = cached_tiny(family), inputs(family, RAGGED)
    brute = oracle.BruteForce(text_centroids(find_decoder(model).hidden_size), 0.0)
    bank = CentroidBank.from_arrays(model, {("vision", 1): brute.centroids.float()})

    def logits(longer: dict[str, Any]) -> Tensor:
        ids = torch.tensor(sorted(oracle.vision_ids_of(model)))
        return oracle.full_logits(model, longer, 1, torch.isin(longer["input_ids"], ids), brute)

    assert_like(model, batch, Contrast(model, vision_centroid(bank, 1), alpha_cd=1.0), logits)
    assert brute.gap > 1e-4  # no two centroids so near that rounding could choose


@pytest.mark.parametrize("family", CAUSAL_FAMILIES)
def test_two_at_once_with_weights_of_either_sign(family):
    model, batch = cached_tiny(family), inputs(family, RAGGED)
    mean, other = mean_of(model), blanked(batch)
    slow = {
        "no-vision": lambda longer: oracle.withheld_logits(model, longer),
        "mean": lambda longer: oracle.mean_image_logits(model, longer, mean),
        "blank": lambda longer: oracle.full_logits(model, longer | {"pixel_values": other["pixel_values"]}),
        "exit": lambda longer: oracle.exit_logits(model, longer, (1,)),
    }
    fast = {"no-vision": no_vision(), "mean": MeanImage(mean), "blank": OtherImage(other), "exit": early_exit(1)}
    for pair, weights in ((("mean", "no-vision"), (1.0, -0.5)), (("exit", "blank"), (-0.25, 2.0))):
        contrast = Contrast(model, [fast[name] for name in pair], weights=weights, alpha_cd=-0.5)
        assert_like(model, batch, contrast, *(slow[name] for name in pair))


def kept(batch: dict[str, Any], rows: list[Row], prefixes: Prefixes, asked: list[Any] | None = None) -> KeptImage:
    """A blank image from kept keys and values, without a processor; notes the rows that it encodes."""
    other = blanked(batch)

    def encode(numbers: Sequence[int]) -> dict[str, Any]:
        if asked is not None:
            asked.append(tuple(numbers))
        return other if len(numbers) == len(rows) else row_of(other, rows, numbers[0])

    return KeptImage(encode, [("blank", number) for number in range(len(rows))], prefixes)


@pytest.mark.parametrize("rows", [SINGLE, RAGGED], ids=["single", "ragged"])
@pytest.mark.parametrize("family", CAUSAL_FAMILIES)
def test_a_kept_prefix_is_a_second_pass_over_the_blank_image(family, rows):
    model, batch = cached_tiny(family), inputs(family, rows)
    prefixes, asked = Prefixes(), []
    _, slow = blank(model, batch)
    for _ in range(2):  # computed, then kept
        assert_like(model, batch, Contrast(model, kept(batch, rows, prefixes, asked), alpha_cd=1.0), slow)
    assert asked == [(number,) for number, row in enumerate(rows) if row.images]
    assert len(prefixes) == len(asked)


def test_no_vision_is_a_text_only_forward_with_a_gap_in_its_positions():
    model, batch = cached_tiny("llava"), inputs("llava", [Row(before=4, after=6)])
    kept = batch["input_ids"][0] != model.config.image_token_id
    with torch.no_grad():
        text = model(
            input_ids=batch["input_ids"][:, kept],
            position_ids=kept.nonzero().T,
            attention_mask=torch.ones(1, int(kept.sum())),
        ).logits
        clean = model(**batch).logits[:, -1]
    ours = generate(model, batch, 1, Contrast(model, no_vision(), alpha_cd=1.0)).logits[0]
    torch.testing.assert_close(ours, 2 * clean - text[:, -1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("window", [3, 6, 64])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_sliding_windows(window, implementation):
    model, batch = tiny("gemma3", window=window), inputs("gemma3", RAGGED)
    model.set_attn_implementation(implementation)
    contrast = Contrast(model, no_vision(), alpha_cd=1.0)
    assert_like(model, batch, contrast, lambda longer: oracle.withheld_logits(model, longer), steps=10)
    assert_like(model, batch, *blank(model, batch), steps=10)
    _, slow = blank(model, batch)
    assert_like(model, batch, Contrast(model, kept(batch, RAGGED, Prefixes()), alpha_cd=1.0), slow, steps=10)
    mean = mean_of(model)
    contrast = Contrast(model, MeanImage(mean), alpha_cd=1.0)
    assert_like(model, batch, contrast, lambda longer: oracle.mean_image_logits(model, longer, mean), steps=10)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "idefics3"])
def test_a_prompt_that_ends_with_its_image(family):
    model, batch = cached_tiny(family), inputs(family, [Row(before=4, after=0), Row(before=2, after=0)])
    contrast = Contrast(model, no_vision(), alpha_cd=1.0)
    ends_with_vision = bool((batch["input_ids"][:, -1] == model.config.image_token_id).any())
    prompt = batch["input_ids"].shape[1]

    def reference(longer: dict[str, Any]) -> Tensor:
        # A vision token's own answer can't be had without the image: it stays plain.
        plain = ends_with_vision and longer["input_ids"].shape[1] == prompt
        return oracle.full_logits(model, longer) if plain else oracle.withheld_logits(model, longer)

    assert_like(model, batch, contrast, reference)
    assert_like(model, batch, *blank(model, batch))
    _, slow = blank(model, batch)
    rows = [Row(before=4, after=0), Row(before=2, after=0)]
    assert_like(model, batch, Contrast(model, kept(batch, rows, Prefixes()), alpha_cd=1.0), slow)


KINDS = {
    "no-vision": lambda model, batch: no_vision(),
    "blank": lambda model, batch: OtherImage(blanked(batch)),
    "kept": lambda model, batch: kept(batch, RAGGED, Prefixes()),
    "mean": lambda model, batch: MeanImage(mean_of(model)),
    "exit": lambda model, batch: early_exit("low"),
}
PAIR = (KINDS["mean"], KINDS["exit"])


@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3"])
@pytest.mark.parametrize("kind", [*KINDS, "pair"])
def test_beams_and_plausibility_are_those_of_the_processor(family, kind):
    """Two doors that share no combination code: states or logits of one forward, and scores after the head."""
    model, batch = cached_tiny(family), inputs(family, RAGGED)
    references = [make(model, batch) for make in (PAIR if kind == "pair" else (KINDS[kind],))]
    contrast = Contrast(model, references, alpha_cd=1.0, beta=0.05)
    beams = {"num_beams": 3, "max_new_tokens": 5, "do_sample": False}
    one = model.generate(**batch, custom_generate=contrast, **beams)
    with contrast:
        other = model.generate(**batch, **beams)
    assert one.tolist() == other.tolist()
    by_processor = model.generate(**batch, logits_processor=[contrast.logits_processor()], **beams)
    assert one.tolist() == by_processor.tolist()
    plain = model.generate(**batch, **beams)
    assert one.tolist() != plain.tolist()


@pytest.mark.parametrize("kind", [*KINDS, "pair"])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3"])
def test_prompt_lookup_and_sampling_are_step_by_step_greedy_and_the_same_draws(family, kind):
    model, batch = cached_tiny(family), inputs(family, SINGLE)
    makes = (
        PAIR if kind == "pair" else (KINDS[kind] if kind != "kept" else lambda m, b: kept(b, SINGLE, Prefixes()),)
    )
    contrast = Contrast(model, [make(model, batch) for make in makes], alpha_cd=0.5)
    step_by_step = generate(model, batch, 12, contrast).sequences
    looked_up = generate(model, batch, 12, contrast, prompt_lookup_num_tokens=3).sequences
    assert looked_up.tolist() == step_by_step.tolist()
    draws = []
    for door in ("custom_generate", "logits_processor"):
        how = {door: contrast if door == "custom_generate" else [contrast.logits_processor()]}
        torch.manual_seed(3)
        sampled = model.generate(**batch, max_new_tokens=8, do_sample=True, num_return_sequences=2, **how)
        draws.append(sampled.tolist())
    assert draws[0] == draws[1]
    del how  # and with it the processor
    assert_nothing_left(model)


@pytest.mark.parametrize("cache", ["static", "none"])
@pytest.mark.parametrize("kind", [*KINDS, "pair"])
def test_other_caches(kind, cache):
    if cache == "static" and RELEASE < (5, 17):
        pytest.skip("transformers 5.16 itself fails with a static cache shorter than the prompt")
    model, batch = cached_tiny("gemma3"), inputs("gemma3", RAGGED)
    contrast = Contrast(
        model, [make(model, batch) for make in (PAIR if kind == "pair" else (KINDS[kind],))], alpha_cd=0.5
    )
    how = {"use_cache": False} if cache == "none" else {"cache_implementation": "static"}
    with_it, plainly = generate(model, batch, 6, contrast, **how), generate(model, batch, 6, contrast)
    assert with_it.sequences.tolist() == plainly.sequences.tolist()
    torch.testing.assert_close(torch.stack(with_it.logits), torch.stack(plainly.logits), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["blank", "kept"])
def test_other_pictures_beside_offloaded_weights(kind):
    from accelerate import cpu_offload

    model, batch = tiny("qwen2_5_vl"), inputs("qwen2_5_vl", RAGGED)
    contrasts = [Contrast(model, KINDS[kind](model, batch), alpha_cd=1.0) for _ in range(2)]
    expected = generate(model, batch, 4, contrasts[0])
    cpu_offload(model, execution_device="cpu")
    ours = generate(model, batch, 4, contrasts[1])
    assert ours.sequences.tolist() == expected.sequences.tolist()
    torch.testing.assert_close(torch.stack(ours.logits), torch.stack(expected.logits), rtol=0, atol=1e-4)


def test_first_tokens_alone_are_told_from_drafted_ones():
    model, batch = cached_tiny("llava"), inputs("llava", [Row(before=0, after=12)])
    batch["input_ids"][0, -6:] = batch["input_ids"][0, -12:-6]  # said twice, so that the next words are looked up
    contrast = Contrast(model, no_vision(), alpha_cd=1.0, tokens="first")
    once = generate(model, batch, 6, contrast).sequences
    assert generate(model, batch, 6, contrast, prompt_lookup_num_tokens=3).sequences.tolist() == once.tolist()
    with contrast, pytest.raises(UnsupportedModelError, match="may hold drafted tokens"):
        generate(model, batch, 6, prompt_lookup_num_tokens=3)
    with contrast:
        assert generate(model, batch, 6).sequences.tolist() == once.tolist()


def test_other_prompts_than_the_reference_was_made_for():
    model, batch = cached_tiny("llava"), inputs("llava", SINGLE)
    other = inputs("llava", [Row(before=5)], seed=3)
    with pytest.raises(ConfigError, match="not the prompts of shape"):
        generate(model, batch, 2, Contrast(model, OtherImage(other), alpha_cd=1.0))
    assert_nothing_left(model)


def test_settings_twice_or_unknown():
    model = cached_tiny("llava")
    with pytest.raises(ConfigError, match="unknown TCCD settings 'alpha'"):
        Contrast(model, no_vision(), alpha=1.0)
