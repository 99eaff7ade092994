"""The references that a contrast can be taken with, each made by one function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL.Image import Image
from torch import Tensor

from tccd.centroids.bank import CentroidBank
from tccd.data.pictures import GREY, blank
from tccd.engine.reference import Erasure, OtherImage, Withheld
from tccd.errors import ConfigError
from tccd.inputs import encode
from tccd.modality import Modality


def no_vision() -> Withheld:
    """The image withheld from the first layer on; needs nothing fitted, costs the tail's rows."""
    return Withheld()


def blank_image(
    processor: Any,
    images: Sequence[Sequence[Image]],
    prompts: Sequence[str],
    color: tuple[int, int, int] = GREY,
) -> OtherImage:
    """A picture of one color in each image's place (VCD with a blank image; Leng et al., arXiv 2311.16922).

    Args:
        processor: the model's.
        images: one sequence of PIL images a row, as for `tccd.inputs.encode`.
        prompts: one a row, the very ones that are decoded.
        color: red, green and blue, 0 to 255.
    """
    shown = [[blank(image, color) for image in row] for row in images]
    return OtherImage(dict(encode(processor, shown, prompts)))


def text_layer(bank: CentroidBank, layer: int | None) -> int:
    """The layer whose text centroids are used: the one asked for, or the bank's only one.

    Raises:
        ConfigError: none was asked for and the bank has several, or none.
        BankMismatchError: the bank has no text entry at the layer.
    """
    if layer is None:
        found = bank.layers("text")
        if not found:
            raise ConfigError("the bank has no text centroids, which TCCD needs; fit text=LAYER (tccd fit)")
        if len(found) > 1:
            raise ConfigError(f"the bank holds text centroids of layers {list(found)}; say layer=...")
        return found[0]
    bank.centroids("text", layer)
    return layer


def centroid_erasure(
    bank: CentroidBank, layer: int, alpha_interp: float, modality: Modality = "text", segment: str | None = None
) -> Erasure:
    """Erase a modality by its bank's centroids at a layer.

    Raises:
        BankMismatchError: the bank has no such entry.
    """
    centroids = bank.centroids(modality, layer)

    def replace(hidden: Tensor, nearest: Tensor | None = None) -> Tensor:
        return centroids.to(hidden.device).replace(hidden, alpha_interp, nearest)

    return Erasure(layer, replace, modality, segment, search=centroids.search)
