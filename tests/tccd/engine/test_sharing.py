"""References that depart at one layer share the search for their nearest centroids."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from probes.asking.forward import run_streams
from tccd.centroids.replacement import Centroids
from tccd.decoder import find_decoder
from tccd.decoding.references import centroid_erasure
from tests.tccd.decoding.common import RAGGED, text_bank
from tests.tiny import cached_tiny, inputs

ALPHAS = (0.0, 0.2, 0.4, 0.8)


def test_arms_that_differ_in_alpha_interp_search_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = cached_tiny("qwen2_5_vl"), inputs("qwen2_5_vl", RAGGED)
    bank, decoder = text_bank(model, 1), find_decoder(model)
    alone = [run_streams(decoder, batch, [centroid_erasure(bank, 1, alpha)]).others[0] for alpha in ALPHAS]
    searches: list[tuple[int, ...]] = []
    nearest = Centroids.nearest

    def counted(self: Centroids, x: Tensor) -> Tensor:
        searches.append(tuple(x.shape))
        return nearest(self, x)

    monkeypatch.setattr(Centroids, "nearest", counted)
    together = run_streams(decoder, batch, [centroid_erasure(bank, 1, alpha) for alpha in ALPHAS]).others
    assert len(searches) == 1
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_a_bank_hands_out_one_object_an_entry() -> None:
    bank = text_bank(cached_tiny("llava"), 1)
    assert bank.centroids("text", 1) is bank.centroids("text", 1)
