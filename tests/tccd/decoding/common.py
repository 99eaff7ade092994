"""What the engine's tests share: batches, banks and a fair comparison with the oracle."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tccd import TCCD, CentroidBank
from tests import oracle
from tests.tiny import Row

SINGLE = [Row()]
#: Left-padded: one image, two images and a longer tail, no image.
RAGGED = [Row(before=3, after=5), Row(images=2, after=9), Row(images=0, before=6)]


def text_centroids(width: int = 64, k: int = 8, seed: int = 0) -> Tensor:
    return 2 * torch.randn(k, width, generator=torch.Generator().manual_seed(seed))


def text_bank(model: Any, layer: int, centroids: Tensor | None = None) -> CentroidBank:
    return CentroidBank.from_arrays(model, {("text", layer): text_centroids() if centroids is None else centroids})


def new_tokens(output: Any, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Generated tokens (batch, steps) and logits (batch, steps, vocabulary) of a generate call."""
    return output.sequences[:, batch["input_ids"].shape[1] :], torch.stack(output.logits, 1)


def generate(model: Any, batch: dict[str, Any], steps: int, tccd: TCCD | None = None, **more: Any) -> Any:
    more = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True} | more
    if tccd is not None:
        more["custom_generate"] = tccd
    return model.generate(**batch, max_new_tokens=steps, **more)


def assert_like_oracle(
    model: Any, batch: dict[str, Any], layer: int, steps: int = 8, rule: Any = None, **settings: Any
) -> TCCD:
    """Tokens equal and logits within 1e-4 of two whole uncached forwards, over `steps` tokens.

    Centroids are drawn until no row of the run comes so close to two of them that rounding could choose.
    """
    settings = {"alpha_cd": 1.0, "alpha_interp": 0.4} | settings
    for seed in range(5):
        centroids = text_centroids(seed=seed)
        brute = oracle.BruteForce(centroids, settings["alpha_interp"])
        tokens, logits = oracle.greedy(model, batch, layer, brute, settings["alpha_cd"], steps, rule)
        if brute.gap > 1e-3:
            break
    else:
        raise AssertionError(f"every seed comes as near as {brute.gap} to two centroids")
    tccd = TCCD(model, text_bank(model, layer, centroids), **settings)
    ours = new_tokens(generate(model, batch, steps, tccd), batch)
    assert (ours[0] == tokens).all()
    torch.testing.assert_close(ours[1].float(), logits, rtol=0, atol=1e-4)
    return tccd
