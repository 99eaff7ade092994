"""Controls move states as far as they say, and the same way however samples are batched."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eval.zoo import load
from probes.asking.forward import encode_samples, run_streams
from probes.replacement.controls import matched_alpha, random_centroid, random_direction
from probes.replacement.grid import Cell, opposite
from tccd import CentroidBank
from tccd.centroids.replacement import Centroids
from tccd.data import load_samples
from tccd.decoder import find_decoder
from tccd.engine import Erasure
from tccd.errors import ConfigError

ROWS = torch.randn(3, 11, 16, generator=torch.Generator().manual_seed(0))
CENTROIDS = Centroids(torch.randn(5, 16, generator=torch.Generator().manual_seed(1)))


def moved_by(make, alpha, seed, rows=ROWS, centroids=CENTROIDS):
    """Rows moved by a control, which is told their nearest centroids."""
    return make(centroids, alpha, seed)(rows, centroids.nearest(rows))


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_a_random_direction_is_as_long_as_the_replacement(alpha):
    real = CENTROIDS.replace(ROWS, alpha) - ROWS
    drawn = moved_by(random_direction, alpha, 7) - ROWS
    torch.testing.assert_close(drawn.norm(dim=-1), real.norm(dim=-1))
    if alpha < 1:
        cosine = torch.cosine_similarity(drawn, real, dim=-1)
        assert cosine.abs().mean() < 0.5
        assert (
            len(torch.unique((drawn / drawn.norm(dim=-1, keepdim=True)).round(decimals=4).reshape(-1, 16), dim=0))
            > 20
        )


def test_a_random_centroid_is_one_of_the_others():
    moved = moved_by(random_centroid, 0.0, 7)
    to, nearest = CENTROIDS.nearest(moved), CENTROIDS.nearest(ROWS)
    torch.testing.assert_close(moved, CENTROIDS.vectors[to])
    assert (to != nearest).all()
    assert len(torch.unique(to)) == 5
    half = moved_by(random_centroid, 0.5, 7)
    torch.testing.assert_close(half, (moved + ROWS) / 2)
    with pytest.raises(ConfigError, match="at least 2 centroids"):
        random_centroid(Centroids(CENTROIDS.vectors[:1]), 0.0, 7)


@pytest.mark.parametrize("make", [random_direction, random_centroid])
def test_draws_depend_on_the_seed_and_not_on_the_batch(make):
    together = moved_by(make, 0.0, 7)
    torch.testing.assert_close(moved_by(make, 0.0, 7, ROWS[1:2]), together[1:2])
    # A longer row in the batch pads the others on the left.
    torch.testing.assert_close(moved_by(make, 0.0, 7, ROWS[:, 4:]), together[:, 4:])
    assert not torch.allclose(moved_by(make, 0.0, 8), together)
    assert moved_by(make, 0.0, 7, ROWS.bfloat16()).dtype == torch.bfloat16


@given(st.floats(0, 0.9), st.floats(0.01, 100), st.floats(0.001, 1))
def test_doses_match(alpha, stronger, share):
    weaker = share * stronger
    matched = matched_alpha(alpha, stronger, weaker)
    assert alpha - 1e-12 <= matched <= 1
    assert (1 - matched) / (1 - alpha) * stronger == pytest.approx(weaker)


def test_pairs_of_text_and_vision():
    def cells(*places):
        return [Cell(modality, layer, bank, 4, 0.0, "s") for modality, layer, bank in places]

    assert opposite(cells(("text", 1, "a"), ("text", 2, "a"), ("vision", 2, "a"), ("vision", 1, "a"))) == [
        (0, 3),
        (1, 2),
    ]
    assert opposite(cells(("text", 12, "a"), ("vision", 16, "a"))) == [(0, 1)]
    assert opposite(cells(("text", 1, "a"), ("vision", 1, "b"))) == []
    assert opposite(cells(("text", 1, "a"))) == []


def test_sparing_leaves_the_answering_position_and_displacement_counts_the_others():
    model, processor = load("llava-competing")
    samples = load_samples("easy-vqa", split="test", limit=6, seed=2)
    inputs = encode_samples(model, processor, samples)
    seen = []

    def shift(x):
        seen.append(x.shape)
        return x + 2.0

    width = model.config.text_config.hidden_size
    whole, spared = Erasure(2, shift), Erasure(2, shift, spare=1)
    streams = run_streams(find_decoder(model), inputs, [whole, spared])
    assert streams.replaced[0] - streams.replaced[1] == len(samples)
    for moved, replaced in zip(streams.moved, streams.replaced, strict=True):
        assert moved / replaced == pytest.approx(2.0 * width**0.5, rel=1e-4)
    assert not torch.allclose(streams.others[0], streams.others[1], atol=1e-3)
    everything = Erasure(2, shift, spare=999)
    streams = run_streams(find_decoder(model), inputs, [everything])
    assert streams.replaced == [0]
    torch.testing.assert_close(streams.others[0], streams.clean)


def test_a_bank_of_one_centroid_has_no_random_other():
    from probes.replacement import run
    from probes.replacement.grid import Grid

    model, processor = load("llava-competing")
    width = model.config.text_config.hidden_size
    bank = CentroidBank.from_arrays(model, {("text", 1): torch.zeros(1, width)})
    samples = list(load_samples("easy-vqa", split="test", limit=6, seed=2))
    with pytest.raises(ConfigError, match="K = 1"):
        run(model, processor, samples, bank, Grid(controls=True))
