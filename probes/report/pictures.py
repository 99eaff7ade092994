"""Pictures small enough for a page with many of them."""

from __future__ import annotations

import base64
import io

from PIL import Image

SIDE = 320
"""Pixels of the longer side at most; the page shows them at 104."""


def small(uri: str) -> str:
    """A `data:` PNG as it is where it is small, else as a JPEG of at most `SIDE` pixels."""
    raw = base64.b64decode(uri.partition(",")[2])
    with Image.open(io.BytesIO(raw)) as image:
        if max(image.size) <= SIDE and len(raw) < 32_768:
            return uri
        image.thumbnail((SIDE, SIDE))
        out = io.BytesIO()
        image.convert("RGB").save(out, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
