"""The reference `blank-image`: a grey picture in each image's place, as the model's own image processor sees one.

The engine has no image processor, and the front end has no picture any more when a request comes to us. Neither
is needed: a picture of one colour looks the same everywhere, whatever its size. So the front end shows the
processor a grey picture, once, and hands its pixels' values to the engine, which repeats them over the shape of an
image.

The shadow's images get names of their own, made of shape and values. So the encoder runs once for each shape, and
the prefix cache holds one prefix for all requests with the same words before the image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tccd.data.pictures import GREY
from tccd.decoding.vllm import objects
from tccd.errors import ConfigError

#: Where the front end puts what `look` found, whatever a request had there.
KEY = "shadow_grey"
#: Width and height of the pictures that a processor is shown: one that pads or cuts tells them apart.
SIZES = ((224, 224), (448, 224))
_NOT_HERE = "tccd_reference 'blank-image' is not served for this model: "


def look(processor: Any) -> dict[str, Any]:
    """What a grey picture is to a model's image processor; found once.

    Args:
        processor: vLLM's multi-modal processor of the model.

    Returns:
        For each field of pixels the values of one place, with the shape in which they are repeated.

    Raises:
        ConfigError: a grey picture is not the same everywhere to this processor.
    """
    known = objects.noted(processor)
    if known is None:
        first, second = (_seen(processor, size) for size in SIZES)
        if first != second:
            raise ConfigError(_NOT_HERE + "its image processor fills in pixels around a picture")
        known = first
        objects.note(processor, known)
    return dict(known)


def _seen(processor: Any, size: tuple[int, int]) -> dict[str, Any]:
    from PIL.Image import new

    items = processor.info.parse_mm_data({"image": [new("RGB", size, GREY)]})
    text = processor.dummy_inputs.get_dummy_text({"image": 1})
    (item,) = processor(text, items)["mm_kwargs"]["image"]
    return {name: uniform(pixels) for name, pixels in _pixels(item).items()}


def uniform(pixels: Tensor) -> dict[str, list[Any]]:
    """The values of one place of a picture that is the same everywhere, and the shape in which they are repeated.

    Args:
        pixels: shape (..., channels, height, width), or (patches, values of one).

    Raises:
        ConfigError: it is not the same everywhere.
    """
    one = pixels if pixels.ndim < 4 else pixels.flatten(0, -4)[0]
    values = one[0] if one.ndim == 2 else one[:, :1, :1]
    if not torch.equal(pixels, values.expand_as(pixels)):
        raise ConfigError(_NOT_HERE + "a grey picture is not the same everywhere to its image processor")
    return {"values": values.flatten().tolist(), "shape": list(values.shape)}


def _pixels(item: Mapping[str, Any]) -> dict[str, Tensor]:
    """An image's fields that hold its pixels.

    Raises:
        ConfigError: it has none, or others that show what is to be seen.
    """
    tensors = {name: field.data for name, field in item.items() if isinstance(field.data, Tensor)}
    found = {name: held for name, held in tensors.items() if name.startswith("pixel_values") and held.ndim >= 2}
    shown = {name for name, held in tensors.items() if held.is_floating_point()} - set(found)
    if not found or shown:
        raise ConfigError(_NOT_HERE + f"its images come as {', '.join(sorted(tensors))}")
    return found


def instead(features: Sequence[Any], grey: Mapping[str, Any]) -> list[Any]:
    """A request's images, each a grey one of the same shape.

    Args:
        features: vLLM's `MultiModalFeatureSpec`, one an image, their data in place.
        grey: as `look` found it.

    Raises:
        ConfigError: an image has no pixels, or others than the grey one.
    """
    return [_instead(feature, grey) for feature in features]


def _instead(feature: Any, grey: Mapping[str, Any]) -> Any:
    item = feature.data
    if item is None:
        raise ConfigError(f"image {feature.identifier} came without its pixels")
    pixels = _pixels(item)
    if set(pixels) != set(grey):
        raise ConfigError(f"image {feature.identifier} has {sorted(pixels)}, a grey one {sorted(grey)}")
    fields, digest = dict(item), hashlib.sha256()
    for name in sorted(fields):
        held = fields[name].data
        if name in pixels:
            digest.update(repr((name, tuple(held.shape), grey[name])).encode())
            values = torch.tensor(grey[name]["values"]).reshape(grey[name]["shape"]).to(held.dtype)
            fields[name] = replace(fields[name], data=values.expand_as(held).contiguous())
        else:
            digest.update(repr((name, held.tolist() if isinstance(held, Tensor) else held)).encode())
    return replace(feature, data=type(item)(fields), identifier=f"tccd-grey-{digest.hexdigest()}", mm_hash=None)
