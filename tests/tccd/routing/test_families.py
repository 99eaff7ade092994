"""Routing on every architecture of transformers' image-text-to-text mapping, tiny: exact, or refused by name."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tccd.errors import TCCDError
from tccd.routing import Branch, Routed
from tests.census.architectures import Architecture, architecture, architectures
from tests.census.judge import FORBIDDEN, SCENES, STEPS
from tests.census.pictures import batch_of
from tests.oracle import full_logits
from tests.tccd.decoding.common import generate, new_tokens
from tests.tccd.routing import oracle
from tests.tiny import TEXT_IDS

SPLIT = 2
#: Each differs from the families of `tests/tiny.py` in what its layers are given, or in how they attend.
SAMPLE = ("qwen2_vl", "llava_next", "mistral3", "llama4:chunks shorter than the prompt", "gemma4", "chameleon")
REFUSED = {
    "qwen3_5": "convolve over the sequence.*Routed layers run some tokens without the others",
    "mllama": "cross-attention",
    "gemma4:shared keys": "take their keys from another layer",
}


def farthest(row: Architecture) -> tuple[float, float]:
    """Largest difference of a logit from whole forwards: of a routed model with a branch, and of the plain one."""
    model = row.build()
    branch = Branch.new(model, SPLIT, start="copy")
    routed = Routed(model, branch=branch)
    batch: dict[str, Any] = {}
    for scene in ("ragged", "single"):  # some run one prompt only
        try:
            batch = batch_of(row, model, SCENES[scene])
            plain = generate(model, batch, STEPS)
            break
        except Exception:  # the model's own
            continue
    else:
        pytest.skip(f"{row.name} runs no scene")
    ours = generate(model, batch, STEPS, routed)

    def apart(output: Any, whole: Any) -> float:
        longer, worst = batch, 0.0
        tokens, logits = new_tokens(output, batch)
        for step in range(STEPS):
            wanted, found = (
                one[:, TEXT_IDS.start : TEXT_IDS.stop].float() for one in (whole(longer)[:, -1], logits[:, step])
            )
            told = wanted.abs() < FORBIDDEN
            worst = max(worst, float((found - wanted)[told].abs().nan_to_num(math.inf).max()))
            longer = oracle.lengthen(model, longer, tokens[:, step])
        return worst

    def slow(longer: dict[str, Any]) -> Any:
        return oracle.routed_logits(model, longer, SPLIT, routed.route.stop, branch)

    return apart(ours, slow), apart(plain, lambda longer: full_logits(model, longer))


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_decodes_as_whole_forwards_do(name):
    error, noise = farthest(architecture(name))
    assert error <= max(1e-4, 8 * noise)


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_is_not_exact_for_is_refused_by_name(name):
    with pytest.raises(TCCDError, match=REFUSED[name]):
        farthest(architecture(name))


@pytest.mark.slow
def test_every_architecture_is_exact_or_refused():
    exact, refused, wrong = 0, 0, []
    for row in architectures():
        with torch.random.fork_rng():
            try:
                error, noise = farthest(row)
            except TCCDError:
                refused += 1
            except (ImportError, pytest.skip.Exception):  # needs timm; runs no scene
                continue
            else:
                exact += 1
                if error > max(1e-4, 8 * noise):
                    wrong.append((row.name, error, noise))
    assert not wrong
    assert exact >= 60, (exact, refused)
