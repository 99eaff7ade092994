"""CONTRIBUTING's recipes, each followed by a toy: what they say is all that has to be done."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from tccd import TCCD, Contrast
from tccd.data import Sample, load, load_samples
from tccd.decoding.gates import GATES, Gate
from tccd.engine import EMBEDDINGS, Layout, Twin
from tccd.errors import ConfigError
from tccd.modality import ModalityMap
from tests import oracle
from tests.tccd.decoding.common import RAGGED, generate, new_tokens, text_bank
from tests.tiny import cached_tiny, inputs


def test_a_gate_is_a_function_and_a_line_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def certainty(clean: Tensor, reference: Tensor) -> Tensor:
        return clean.softmax(-1).amax(-1)

    model, batch = cached_tiny("llava"), inputs("llava", RAGGED)
    with pytest.raises(ConfigError, match="gate is 'certainty'"):
        TCCD(model, text_bank(model, 1), gate="certainty")
    monkeypatch.setitem(GATES, "certainty", Gate(certainty, opens_below=True))
    settings: dict[str, Any] = {"alpha_cd": 2.0, "gate": "certainty"}
    shut = TCCD(model, text_bank(model, 1), **settings, gate_threshold=0.0)
    opened = TCCD(model, text_bank(model, 1), **settings, gate_threshold=1.0)
    plain = new_tokens(generate(model, batch, 4), batch)[1]
    always = new_tokens(generate(model, batch, 4, TCCD(model, text_bank(model, 1), alpha_cd=2.0)), batch)[1]
    torch.testing.assert_close(new_tokens(generate(model, batch, 4, shut), batch)[1], plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(new_tokens(generate(model, batch, 4, opened), batch)[1], always, rtol=0, atol=1e-5)


class WithoutFirstWord(Twin):
    """The tail does not see its own first token."""

    layer = EMBEDDINGS

    def layout(self, modalities: ModalityMap) -> Layout:
        first = modalities.tail & (modalities.tail.cumsum(-1) == 1)
        start = torch.where(first.any(-1), first.int().argmax(-1), 2**62)
        return Layout(start, hidden=first)


@torch.no_grad()
def without_first_word(model: Any, batch: dict[str, Any]) -> Tensor:
    """Logits of a whole forward under a mask that hides the tail's first token from every other position."""
    vision = batch["input_ids"] == model.config.image_token_id
    tail = (vision.flip(-1).cumsum(-1).flip(-1) == 0) & vision.any(-1, keepdim=True)
    hidden = tail & (tail.cumsum(-1) == 1)
    n = hidden.shape[-1]
    seen = torch.ones(n, n, dtype=torch.bool).tril() & batch["attention_mask"].bool()[:, None, None]
    seen = seen & (~hidden[:, None, None] | torch.eye(n, dtype=torch.bool))
    handles = [
        layer.register_forward_pre_hook(lambda m, a, k: (a, k | {"attention_mask": seen}), with_kwargs=True)
        for layer in model.get_decoder().layers
    ]
    try:
        return model(**batch, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()


def test_a_reference_is_a_subclass_and_its_oracle() -> None:
    model, batch = cached_tiny("llava"), inputs("llava", RAGGED)
    contrast = Contrast(model, WithoutFirstWord(), alpha_cd=1.0)
    tokens, logits = oracle.greedy_with(model, batch, [lambda longer: without_first_word(model, longer)], [1.0], 5)
    ours = new_tokens(generate(model, batch, 5, contrast), batch)
    assert ours[0].tolist() == tokens.tolist()
    torch.testing.assert_close(ours[1], logits, rtol=0, atol=1e-4)


def test_a_data_source_is_a_generator_and_a_line_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(split: str, prompt: str | None) -> Any:
        for number in range(3):
            blank = Image.new("RGB", (8, 8), (number, 0, 0))
            asked = prompt or f"what is {number}?"
            yield Sample(f"{split}-{number}", str(number), asked, "red", None, None, lambda blank=blank: blank)

    monkeypatch.setitem(load._BUILT_IN, "toy", read)
    samples = load_samples("toy", limit=2)
    assert [s.prompt for s in samples] == ["what is 0?", "what is 1?"]
    assert samples[0].picture_digest != samples[1].picture_digest


def test_a_probe_asks_through_arms() -> None:
    """How many answers change when the whole tail is erased: a probe in one function of a model and samples."""
    from eval.zoo import load as load_model
    from probes.asking.arms import Arm, answer
    from tccd import fit_bank
    from tccd.decoding.references import centroid_erasure

    model, processor = load_model("llava-grounded")
    train = load_samples("easy-vqa", split="train", limit=20, seed=0)
    bank = fit_bank(model, processor, train, layers={"text": 2}, k=2, prompt=None)
    test = load_samples("easy-vqa", split="test", limit=20, seed=0)
    found = answer(model, processor, test, [Arm(centroid_erasure(bank, 2, alpha)) for alpha in (0.0, 1.0)])
    changed = (found.arms != found.clean).sum(1)
    assert changed[0] > 0 == changed[1]
