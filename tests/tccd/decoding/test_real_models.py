"""The default models, with their real processor: the oracle, a pipeline, offloaded weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from eval.zoo import NAMES, load
from tccd import TCCD, CentroidBank, fit_bank
from tccd.data import load_samples
from tccd.inputs import encode
from tests import oracle
from tests.tccd.decoding.common import generate, new_tokens, text_bank
from tests.tccd.decoding.test_modes import assert_nothing_left
from tests.tiny import inputs, tiny

LAYER = 3


@pytest.fixture(scope="module", params=NAMES)
def zoo(request) -> tuple[Any, Any, CentroidBank]:
    model, processor = load(request.param)
    samples = load_samples("easy-vqa", split="train", limit=60, seed=0)
    return model, processor, fit_bank(model, processor, samples, layers={"text": LAYER}, k=8, prompt=None)


@pytest.fixture(scope="module")
def samples() -> Any:
    return load_samples("easy-vqa", split="test", limit=6, seed=0)


def test_a_default_model_equals_the_oracle(zoo, samples):
    model, processor, bank = zoo
    endless = copy.deepcopy(model)
    endless.generation_config.eos_token_id = None
    batch = dict(encode(processor, [[s.image] for s in samples], [s.prompt for s in samples]))
    brute = oracle.BruteForce(bank.tensors["text", LAYER], 0.0)
    tokens, logits = oracle.greedy(endless, batch, LAYER, brute, 2.0, 8)
    assert brute.gap > 1e-4
    tccd = TCCD(endless, bank, alpha_cd=2.0, alpha_interp=0.0)
    ours = new_tokens(generate(endless, batch, 8, tccd), batch)
    assert ours[0].tolist() == tokens.tolist()
    torch.testing.assert_close(ours[1], logits, rtol=0, atol=1e-4)


def test_a_pipeline_inside_the_with_block(zoo, samples):
    from transformers import pipeline

    model, processor, bank = zoo
    tccd = TCCD(model, bank, alpha_cd=2.0, alpha_interp=0.0)
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    chats = [
        [{"role": "user", "content": [{"type": "image", "image": s.image}, {"type": "text", "text": s.prompt}]}]
        for s in samples
    ]

    def ask() -> list[str]:
        return [pipe(text=chat, max_new_tokens=3, do_sample=False, return_full_text=False) for chat in chats]

    with tccd:
        inside = [answer[0]["generated_text"] for answer in ask()]
    batch = encode(processor, [[s.image] for s in samples], [s.prompt for s in samples])
    tokens = model.generate(**batch, custom_generate=tccd, max_new_tokens=3, do_sample=False)
    expected = processor.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [t.strip() for t in inside] == [t.strip() for t in expected]
    assert_nothing_left(model)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_offloaded_weights(family):
    from accelerate import cpu_offload

    model, batch = tiny(family), inputs(family)
    tccd = TCCD(model, text_bank(model, 1))
    expected = generate(model, batch, 5, tccd)
    cpu_offload(model, execution_device="cpu")
    assert any(p.device.type == "meta" for p in model.parameters())
    ours = generate(model, batch, 5, tccd)
    assert ours.sequences.tolist() == expected.sequences.tolist()
    for a, b in zip(ours.logits, expected.logits, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_bf16_stays_close_to_fp32():
    model, batch = tiny("qwen2_5_vl"), inputs("qwen2_5_vl")
    exact = generate(model, batch, 1, TCCD(model, text_bank(model, 1))).logits[0]
    half = copy.deepcopy(model).to(torch.bfloat16)
    batch = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in batch.items()}
    rough = generate(half, batch, 1, TCCD(half, text_bank(half, 1))).logits[0].float()
    noise = (generate(half, batch, 1).logits[0].float() - generate(model, inputs("qwen2_5_vl"), 1).logits[0]).std()
    assert (rough - exact).std() < 6 * noise
