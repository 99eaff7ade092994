"""Many streams in one forward equal one hooked forward each, and answer as generate does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from eval.zoo import load
from probes.asking.arms import Arm, answer
from probes.asking.asked import Asked
from probes.replacement import run
from tccd import CentroidBank, TCCDConfig
from tccd.data import Sample, load_samples
from tccd.decoder import find_decoder
from tccd.decoding.config import Rule
from tccd.decoding.huggingface import Contrast
from tccd.decoding.references import blank_image, centroid_erasure, no_vision
from tccd.engine import Erasure
from tccd.engine.session import Session
from tccd.inputs import encode
from tccd.modality import modality_map, vision_token_ids
from tests import oracle
from tests.tiny import CAUSAL_FAMILIES, Row, cached_tiny, inputs

WIDTH = 64


class Collect(Session):
    """Keeps every stream's logits."""

    def combine_logits(self, step, clean, erased):
        self.found = [clean, *erased]
        return clean


@pytest.mark.parametrize("family", CAUSAL_FAMILIES)
def test_streams_of_both_modalities_in_one_forward_equal_one_forward_each(family):
    model = cached_tiny(family)
    batch = inputs(family, [Row(), Row(images=2, after=9), Row(images=0, before=6)])
    modalities = modality_map(batch["input_ids"], vision_token_ids(model.config), batch["attention_mask"])
    generator = torch.Generator().manual_seed(1)
    wanted = [
        (modality, segment, layer, oracle.BruteForce(2 * torch.randn(6, WIDTH, generator=generator), kept))
        for modality, segment, layer, kept in [
            ("text", "all", 0, 0.0),
            ("text", "all", 2, 0.4),
            ("text", "question", 1, 0.0),
            ("text", "options", 1, 0.0),
            ("text", "system", 1, 0.0),
            ("vision", "tokens", 0, 0.0),
            ("vision", "tokens", 3, 0.2),
            ("vision", "span", 1, 0.0),
        ]
    ]

    def by_rows(replace):
        return lambda x: replace(x.reshape(-1, x.shape[-1])).view(x.shape)

    streams = tuple(Erasure(layer, by_rows(r), modality, segment) for modality, segment, layer, r in wanted)
    session = Collect(find_decoder(model), streams)
    with torch.no_grad(), session.active():
        model(**batch, use_cache=False, logits_to_keep=1)
    expected = [oracle.full_logits(model, batch)]
    for modality, segment, layer, replace in wanted:
        where = modalities.segment(modality, segment)
        expected.append(oracle.full_logits(model, batch, layer, where, replace))
    for ours, theirs in zip(session.found, expected, strict=True):
        torch.testing.assert_close(ours[:, -1], theirs[:, -1], rtol=0, atol=1e-4)
    assert not torch.allclose(expected[0][:2, -1], expected[1][:2, -1], atol=1e-2)


@pytest.fixture(scope="module")
def zoo() -> tuple[Any, Any]:
    return load("llava-competing")


@pytest.fixture(scope="module")
def bank(zoo) -> CentroidBank:
    generator = torch.Generator().manual_seed(0)
    width = zoo[0].config.text_config.hidden_size
    keys = [(modality, layer) for modality in ("text", "vision") for layer in (0, 3)]
    return CentroidBank.from_arrays(zoo[0], {key: torch.randn(8, width, generator=generator) for key in keys})


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return list(load_samples("easy-vqa", split="test", limit=40, seed=1))


def test_arms_answer_as_generate_does(zoo, bank, samples):
    model, processor = zoo
    erasure = centroid_erasure(bank, 3, 0.4)
    config = TCCDConfig(alpha_cd=0.7, layer=3)
    answers = answer(model, processor, samples, [Arm(erasure), Arm(erasure, config)], batch_size=16)
    model_inputs = encode(processor, [[s.image] for s in samples], [s.prompt for s in samples])
    clean = model.generate(**model_inputs, max_new_tokens=1, do_sample=False)[:, -1]
    assert answers.texts(answers.clean) == processor.batch_decode(clean[:, None])
    from tccd import TCCD

    contrasted = model.generate(
        **model_inputs, max_new_tokens=1, do_sample=False, custom_generate=TCCD(model, bank, config=config)
    )[:, -1]
    assert answers.texts(answers.arms[1]) == processor.batch_decode(contrasted[:, None])
    assert (answers.arms[0] != answers.clean).any()


def test_full_collapse_onto_the_true_state_costs_nothing(zoo, samples):
    """Erasure by centroids that hold every state exactly is the identity: the cost is zero, not small."""
    model, processor = zoo
    states = []
    hook = model.get_decoder().layers[2].register_forward_hook(lambda m, a, out: states.append(out))
    model_inputs = encode(processor, [[s.image] for s in samples[:8]], [s.prompt for s in samples[:8]])
    with torch.no_grad():
        model(**model_inputs)
    hook.remove()
    exact = CentroidBank.from_arrays(model, {("text", 2): states[0].reshape(-1, states[0].shape[-1])})
    result = run(model, processor, samples[:8], exact, batch_size=8)
    assert result["cells"][0]["cost"] == 0
    assert result["cells"][0]["displacement"] < 1e-3


def test_references_of_every_kind_share_a_pass_and_answer_as_contrast_generates(zoo, bank, samples):
    """One forward for all of them, a blank picture made for each batch; Contrast is held against the oracle."""
    model, processor = zoo

    def grey(asked):
        return blank_image(asked.processor, [[i] for i in asked.images], [s.prompt for s in asked.samples])

    sources = {"erasure": centroid_erasure(bank, 3, 0.4), "withheld": no_vision(), "grey": grey}
    rules = (None, Rule(alpha_cd=2.0, beta=0.1), Rule(alpha_cd=1.0, gate="margin", gate_threshold=0.9))
    arms = [Arm(source, rule) for source in sources.values() for rule in rules]
    answers = answer(model, processor, samples, arms, batch_size=16, blind=True)
    model_inputs = encode(processor, [[s.image] for s in samples], [s.prompt for s in samples])
    for found, arm in zip(answers.arms, arms, strict=True):
        reference = Asked(model, processor, samples, [s.image for s in samples]).reference(arm.references[0])
        if arm.rule is not None:
            contrasted = model.generate(
                **model_inputs, max_new_tokens=1, custom_generate=Contrast(model, reference, rule=arm.rule)
            )
            assert answers.texts(found) == processor.batch_decode(contrasted[:, -1:])
    # A grey picture alone is what the blind baseline asks.
    assert (answers.arms[6] == answers.blind).all()
    for alone in (0, 3, 6):
        assert (answers.arms[alone] != answers.clean).any()
        assert (answers.arms[alone + 1] != answers.clean).any()
    assert np.isnan(answers.displacement[3:]).all()
    assert np.isfinite(answers.displacement[:3]).all()
