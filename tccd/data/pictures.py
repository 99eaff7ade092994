"""Any picture -> RGB, so that it shows what its file shows: the one place that converts pictures."""

from __future__ import annotations

import hashlib

from PIL import Image


def to_rgb(image: Image.Image, name: str | None = None) -> Image.Image:
    """A picture in RGB.

    Args:
        image: a picture in any of Pillow's modes.
        name: what to call it in an error.
    """
    return image.convert("RGB")


def picture_digest(image: Image.Image) -> str:
    """What a picture shows, as 16 hexadecimal digits: equal for copies, whatever their files are called.

    Args:
        image: a picture in RGB; see `to_rgb`.
    """
    digest = hashlib.sha256(repr(image.size).encode())
    digest.update(image.tobytes())
    return digest.hexdigest()[:16]
