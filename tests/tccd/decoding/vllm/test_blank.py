"""What a grey picture is to an image processor: the same values everywhere, or the reference is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from tccd.decoding.vllm import blank
from tccd.errors import ConfigError


@dataclass
class Field:
    data: Any


@dataclass
class Feature:
    data: Any
    identifier: str = "x"
    mm_hash: str | None = "x"
    other: list[int] = field(default_factory=list)


COLOURS = torch.tensor([0.1, -0.2, 0.3])


@pytest.mark.parametrize("shape", [(3, 4, 6), (2, 3, 4, 4), (1, 2, 3, 2, 2)])
def test_channels_are_repeated_over_any_size(shape):
    grey = {"pixel_values": blank.uniform(COLOURS[:, None, None].expand(shape))}
    seen = Feature({"pixel_values": Field(torch.randn(3, 8, 5)), "grid": Field(torch.tensor([1, 8]))})
    (made,) = blank.instead([seen], grey)
    assert torch.equal(made.data["pixel_values"].data, COLOURS[:, None, None].expand(3, 8, 5))
    assert torch.equal(made.data["grid"].data, seen.data["grid"].data)
    assert made.mm_hash is None


def test_patches_are_repeated_and_keep_their_type():
    grey = {"pixel_values": blank.uniform(torch.tensor([[1, 2, 3, 4]] * 5, dtype=torch.uint8))}
    (made,) = blank.instead([Feature({"pixel_values": Field(torch.zeros(7, 4, dtype=torch.uint8))})], grey)
    assert made.data["pixel_values"].data.tolist() == [[1, 2, 3, 4]] * 7
    assert made.data["pixel_values"].data.dtype == torch.uint8


def test_images_of_one_shape_have_one_name_and_others_another():
    def named(rows: int, grid: int, value: float) -> str:
        grey = {"pixel_values": blank.uniform(torch.full((2, 4), value))}
        item = {"pixel_values": Field(torch.randn(rows, 4)), "grid": Field(torch.tensor([grid]))}
        return blank.instead([Feature(item)], grey)[0].identifier

    assert named(4, 1, 0.5) == named(4, 1, 0.5)
    assert len({named(4, 1, 0.5), named(8, 1, 0.5), named(4, 2, 0.5), named(4, 1, 0.25)}) == 4


def test_a_processor_that_fills_in_is_refused():
    padded = COLOURS[:, None, None].expand(3, 4, 6).clone()
    padded[:, :, 5] = 0
    with pytest.raises(ConfigError, match="not the same everywhere"):
        blank.uniform(padded)


@pytest.mark.parametrize("item", [{"image_embeds": torch.randn(4, 8)}, {"pixel_values": torch.zeros(3)}, {}])
def test_images_that_do_not_come_as_pixels_are_refused(item):
    held = {name: Field(value) for name, value in item.items()}
    with pytest.raises(ConfigError, match="its images come as"):
        blank.instead([Feature(held)], {"pixel_values": {"values": [0.0], "shape": [1]}})
    with pytest.raises(ConfigError, match="without its pixels"):
        blank.instead([Feature(None)], {})
