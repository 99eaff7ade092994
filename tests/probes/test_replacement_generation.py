"""Generation from an erased stream alone is greedy decoding of whole forwards under a hook; open answers."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from eval.zoo import load
from probes.asking.arms import Arm, answer
from probes.asking.generation import generate_tokens
from tccd import CentroidBank, TCCDConfig
from tccd.data import Sample, load_samples
from tccd.decoding.references import centroid_erasure
from tccd.engine import Erasure
from tccd.modality import modality_map, vision_token_ids
from tests import oracle
from tests.tiny import Row, cached_tiny, inputs

STEPS = 4


def by_oracle(model, batch, erasure, replace, config=None):
    """Greedy tokens, a whole uncached forward a token; the prompt's segment is settled once."""
    ids, attention = batch["input_ids"], batch["attention_mask"]
    where = modality_map(ids, vision_token_ids(model.config), attention).segment(erasure.modality, erasure.segment)
    if erasure.spare:
        where[:, -erasure.spare :] = False
    tail = where.any(-1, keepdim=True) if erasure.replaces_generated else torch.zeros_like(where[:, :1])
    tokens = []
    for _ in range(STEPS):
        erased = oracle.full_logits(model, batch, erasure.layer, where, replace)[:, -1]
        if config is None:
            new = erased.argmax(-1)
        else:
            clean = oracle.full_logits(model, batch)[:, -1]
            new = (clean + config.alpha_cd * (clean - erased)).argmax(-1)
        tokens.append(new)
        batch = oracle.extend(batch, new)
        where = torch.cat([where, tail], 1)
    return torch.stack(tokens, 1)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava", "gemma3", "idefics3"])
@pytest.mark.parametrize(
    "erased",
    [
        {},
        {"spare": 1},
        {"segment": "question"},
        {"segment": "options"},
        {"segment": "system"},
        {"modality": "vision"},
    ],
    ids=str,
)
def test_generation_from_the_erased_stream_alone_is_the_oracles(family, erased):
    model = cached_tiny(family)
    batch = inputs(family, [Row(), Row(images=2, after=9), Row(before=6, after=2)])
    brute = oracle.BruteForce(2 * torch.randn(6, 64, generator=torch.Generator().manual_seed(1)), 0.2)

    def replace(x):
        return brute(x.reshape(-1, x.shape[-1])).view(x.shape)

    erasure = Erasure(1, replace, **erased)
    ours = generate_tokens(model, batch, STEPS, [erasure])
    assert (ours == by_oracle(model, batch, erasure, brute)).all()
    clean = generate_tokens(model, batch, STEPS)
    assert (clean == by_oracle(model, batch, Erasure(1, replace), lambda x: x)).all()


def test_the_erased_stream_generates_something_else():
    """What the comparison above could not tell if no erasure ever changed a token."""
    model, changed = cached_tiny("qwen2_5_vl"), 0
    batch = inputs("qwen2_5_vl", [Row(), Row(images=2, after=9), Row(before=6, after=2)])
    vectors = 2 * torch.randn(6, 64, generator=torch.Generator().manual_seed(1))
    bank = CentroidBank.from_arrays(model, {("text", 1): vectors, ("vision", 1): vectors})
    clean = generate_tokens(model, batch, STEPS)
    for modality in ("text", "vision"):
        erasure = centroid_erasure(bank, 1, 0.2, modality)
        changed += int((generate_tokens(model, batch, STEPS, [erasure]) != clean).sum())
    assert changed


@pytest.fixture(scope="module")
def zoo():
    return load("llava-competing")


def test_open_answers_of_several_tokens(zoo):
    """A made-up rule that the answer is two tokens: the arms answer what two-stream decoding by hand answers."""
    model, processor = zoo
    width = model.config.text_config.hidden_size
    vectors = torch.randn(8, width, generator=torch.Generator().manual_seed(0))
    bank = CentroidBank.from_arrays(model, {("text", 2): vectors, ("vision", 2): vectors})
    taken = load_samples("easy-vqa", split="test", limit=8, seed=3)
    samples = [
        Sample(s.id, s.image_id, s.prompt, f"{s.answer} circle" if i % 2 else s.answer, None, s.task, s.load)
        for i, s in enumerate(taken)
    ]
    config = TCCDConfig(alpha_cd=1.0, layer=2)
    erasures = [centroid_erasure(bank, 2, 0.0, modality) for modality in ("text", "vision")]
    arms = [Arm(erasures[0]), Arm(erasures[1]), Arm(erasures[0], config)]
    found = answer(model, processor, samples, arms, batch_size=3, blind=True)
    from probes.asking.forward import encode_samples
    from probes.asking.generation import generate

    batch = encode_samples(model, processor, samples)
    expected = partial(generate, processor, model, batch, 6)
    assert found.texts(found.clean) == expected()
    assert found.texts(found.arms[1]) == expected([erasures[1]])
    assert found.texts(found.arms[2]) == expected([erasures[0]], rule=config)
    # The model answers one word, so the samples whose truth has two are wrong and about all others right.
    right = found.clean_correct
    assert not right[1::2].any()
    assert right[::2].sum() >= 2
    assert found.blind is not None
