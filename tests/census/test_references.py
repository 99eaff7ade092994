"""Each reference on architectures of the census, others after each change of its page."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tccd import Contrast
from tccd.decoder import find_decoder
from tccd.decoding.references import early_exit
from tccd.engine import MeanImage, OtherImage
from tests import oracle
from tests.census.architectures import architecture
from tests.census.judge import SCENES, TOLERANCE, _difference, _plain
from tests.census.pictures import batch_of
from tests.census.test_families import only_here, sample


def _pixels(batch: dict[str, Any]) -> str:
    return next(name for name in batch if "pixel" in name and batch[name].is_floating_point())


def contrast_of(kind: str, model: Any, batch: dict[str, Any]) -> tuple[Contrast, Any]:
    """A contrast, and its reference's logits by a whole forward."""
    decoder = find_decoder(model)
    if kind == "mean-vision":
        draws = torch.Generator().manual_seed(7)
        mean = torch.randn(decoder.num_layers, decoder.hidden_size, generator=draws)
        return Contrast(model, MeanImage(mean)), lambda longer: oracle.mean_image_logits(model, longer, mean)
    if kind == "early-exit":
        return Contrast(model, early_exit((0, 2))), lambda longer: oracle.exit_logits(model, longer, (0, 2))
    name = _pixels(batch)
    other = {name: torch.where(batch[name] == 0, batch[name], 0.3)}
    reference = OtherImage(batch | other)
    return Contrast(model, reference), lambda longer: oracle.full_logits(model, longer | other)


@only_here
@pytest.mark.parametrize("kind", ["mean-vision", "early-exit", "blank-image"])
@pytest.mark.parametrize("name", sample("exact", 3))
def test_each_reference_on_a_sample_of_the_exact(name, kind):
    row = architecture(name)
    model, seen = row.build(), 0
    for rows in SCENES.values():
        try:
            batch = batch_of(row, model, rows)
            plain = _plain(model, batch)
        except Exception:
            continue  # what the model itself can't run; the page names it
        contrast, reference = contrast_of(kind, model, batch)
        assert _difference(model, batch, contrast, reference) <= max(TOLERANCE, 8 * plain)
        seen += 1
    assert seen
