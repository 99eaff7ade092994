"""TCCD against the slow oracle, two whole uncached forwards and a hook, on every family."""

from __future__ import annotations

import math

import pytest
import torch

from tccd import TCCD
from tests.tccd.decoding.common import RAGGED, SINGLE, assert_like_oracle, generate, new_tokens, text_bank
from tests.tiny import CAUSAL_FAMILIES, Row, cached_tiny, inputs, tiny


@pytest.mark.parametrize("rows", [SINGLE, RAGGED], ids=["single", "ragged"])
@pytest.mark.parametrize("layer", [0, 2, 3])
@pytest.mark.parametrize("family", CAUSAL_FAMILIES)
def test_every_family_equals_the_oracle(family, layer, rows):
    assert_like_oracle(cached_tiny(family), inputs(family, rows), layer)


@pytest.mark.parametrize("rows", [SINGLE, RAGGED], ids=["single", "ragged"])
@pytest.mark.parametrize("family", CAUSAL_FAMILIES)
def test_eager_attention(family, rows):
    model = tiny(family)
    model.set_attn_implementation("eager")
    assert_like_oracle(model, inputs(family, rows), layer=1)


@pytest.mark.parametrize("rows", [[Row(images=0, videos=1, after=4)], [Row(images=1, videos=1), Row(after=8)]])
def test_videos(rows):
    assert_like_oracle(cached_tiny("qwen2_5_vl"), inputs("qwen2_5_vl", rows), layer=1)


@pytest.mark.parametrize("window", [3, 6, 64])
def test_sliding_windows_shorter_and_longer_than_the_tail(window):
    assert_like_oracle(tiny("gemma3", window=window), inputs("gemma3", RAGGED), layer=0, steps=10)


def test_a_tail_that_is_empty_at_first():
    rows = [Row(before=4, after=0), Row(before=2, after=0)]
    assert_like_oracle(cached_tiny("llava"), inputs("llava", rows), layer=1)


def test_soft_capped_logits_are_combined_after_the_cap():
    model = tiny("gemma3", final_logit_softcapping=3.0)
    tccd = assert_like_oracle(model, inputs("gemma3", RAGGED), layer=1, alpha_cd=2.0)
    assert not tccd.decoder.linear_logits


def test_right_padding_has_the_same_first_token():
    model = cached_tiny("llava")
    rows = [Row(after=4), Row(after=9)]
    tccd = TCCD(model, text_bank(model, 1))
    left = generate(model, inputs("llava", rows), 1, tccd)
    right = inputs("llava", rows, padding_side="right")
    with torch.no_grad(), tccd:
        logits = model(**right).logits
    last = right["attention_mask"].sum(-1) - 1
    torch.testing.assert_close(logits[torch.arange(2), last], left.logits[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("settings", [{"alpha_cd": 0.0}, {"alpha_interp": 1.0}])
def test_settings_that_are_plain_decoding(settings):
    model, batch = cached_tiny("qwen2_5_vl"), inputs("qwen2_5_vl", RAGGED)
    tccd = TCCD(model, text_bank(model, 1), **settings)
    ours, plain = (
        new_tokens(generate(model, batch, 8, tccd), batch),
        new_tokens(generate(model, batch, 8), batch),
    )
    assert (ours[0] == plain[0]).all()
    torch.testing.assert_close(ours[1], plain[1], rtol=0, atol=1e-5)


def test_a_row_without_an_image_is_decoded_plainly_and_beside_others():
    model, batch = cached_tiny("qwen2_5_vl"), inputs("qwen2_5_vl", RAGGED)
    tccd = TCCD(model, text_bank(model, 1), alpha_cd=3.0)
    ours, plain = (
        new_tokens(generate(model, batch, 8, tccd), batch),
        new_tokens(generate(model, batch, 8), batch),
    )
    torch.testing.assert_close(ours[1][2], plain[1][2], rtol=0, atol=1e-5)
    assert not torch.allclose(ours[1][0], plain[1][0], atol=1e-2)
    assert (tccd.trace[0].opened[:, 0] == torch.tensor([1, 1, 0])).all()


def _slow_rule(settings):
    """Gate, combination and plausibility by a loop over rows, from their definitions."""

    def rule(clean, erased):
        rows = []
        for c, e in zip(clean.double(), erased.double(), strict=True):
            p, q = c.softmax(0), e.softmax(0)
            gate = settings.get("gate")
            if gate == "margin":
                top = sorted(p.tolist())[-2:]
                away = settings["gate_threshold"] - (top[1] - top[0])
            elif gate == "entropy":
                away = (
                    -sum(x * math.log(x) for x in p.tolist() if x) / math.log(len(p)) - settings["gate_threshold"]
                )
            elif gate == "jsd":
                m = (p + q) / 2
                kl = [
                    sum(a * math.log2(a / b) for a, b in zip(x.tolist(), m.tolist(), strict=True) if a)
                    for x in (p, q)
                ]
                away = sum(kl) / 2 - settings["gate_threshold"]
            else:
                away = 1.0
            ramp = settings.get("gate_ramp", 0)
            opened = float(away > 0) if not ramp else min(1.0, max(0.0, away / ramp + 0.5))
            combined = c + settings["alpha_cd"] * opened * (c - e)
            if opened:
                combined[p < settings.get("beta", 0) * p.max()] = -math.inf
            rows.append(combined)
        return torch.stack(rows).float()

    return rule


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha_cd": 2.0, "beta": 0.1},
        {"alpha_cd": 1.0, "gate": "margin", "gate_threshold": 0.5},
        {"alpha_cd": 1.5, "gate": "entropy", "gate_threshold": 0.4, "gate_ramp": 0.3},
        {"alpha_cd": 1.0, "gate": "jsd", "gate_threshold": 0.3, "beta": 0.2},
    ],
    ids=lambda s: "-".join(map(str, s.values())),
)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3"])
def test_plausibility_and_gates_equal_the_oracle(family, settings):
    batch = inputs(family, [Row(), Row(images=2, after=9)])
    tccd = assert_like_oracle(cached_tiny(family), batch, layer=1, rule=_slow_rule(settings), **settings)
    assert len(tccd.trace) == 8
    assert all(0 <= t.opened.min() <= t.opened.max() <= 1 for t in tccd.trace)


def test_tokens_first_contrasts_the_first_token_only():
    model, batch = cached_tiny("llava"), inputs("llava", [Row(), Row(after=9)])
    tccd = TCCD(model, text_bank(model, 1), alpha_cd=3.0, tokens="first")
    ours = generate(model, batch, 6, tccd)
    every = generate(model, batch, 1, TCCD(model, text_bank(model, 1), alpha_cd=3.0))
    torch.testing.assert_close(ours.logits[0], every.logits[0], rtol=0, atol=1e-5)
    assert [float(t.opened.sum()) for t in tccd.trace] == [2.0, 0, 0, 0, 0, 0]
    longer = dict(batch)
    longer["input_ids"] = ours.sequences[:, :-1]
    longer["attention_mask"] = torch.cat([batch["attention_mask"], torch.ones(2, 5, dtype=torch.long)], 1)
    with torch.no_grad():
        plain = model(**longer).logits
    torch.testing.assert_close(torch.stack(ours.logits[1:], 1), plain[:, -5:], rtol=0, atol=1e-4)
