"""Picture files that are damaged, or that nobody could ask about."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.bad_inputs.case import Case
from tests.bad_inputs.world import World, draw_picture

GROUP = "pictures"


def cases(world: World) -> Iterator[Case]:
    """All of them, in the three ways that a command comes to a picture."""
    for name, content in _files().items():
        file = world.file(content, "bad.png")
        draw_picture(0).save(file.parent / "good.png")
        fit = world.fit(data=file.parent, k=2, layers="vision=2")
        yield Case(GROUP, f"fit: {name}", fit, "bad.png|image|picture")
        yield Case(GROUP, f"generate: {name}", world.generate(image=file), "bad.png|image|picture")
        manifest = file.parent / "questions.jsonl"
        shown = (("good.png", "no"), ("bad.png", "yes"))
        lines = [json.dumps({"image": i, "prompt": "is there a circle?", "answer": a}) for i, a in shown]
        manifest.write_text("\n".join(lines) + "\n")
        yield Case(GROUP, f"probe: {name}", world.probe(data=manifest), "bad.png|image|picture|sample")


def _saved(image: Image.Image, form: str = "png", **how: object) -> bytes:
    kept = io.BytesIO()
    image.save(kept, form, **how)
    return kept.getvalue()


def _files() -> dict[str, bytes]:
    whole = _saved(draw_picture(3))
    photo = _saved(draw_picture(3), "jpeg")
    frames = [draw_picture(i) for i in (1, 2)]
    broken = bytearray(whole)
    broken[60] ^= 255
    numbers = np.zeros((16, 16), dtype=np.float32)
    return {
        "empty": b"",
        "one byte": b"\x89",
        "a text": b"this is no picture\n" * 10,
        "a page": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        "half a PNG": whole[: len(whole) // 2],
        "a PNG's header": whole[:33],
        "a PNG with a broken byte": bytes(broken),
        "half a JPEG": photo[: len(photo) // 2],
        "a JPEG's first bytes": photo[:20],
        "zeros": bytes(1000),
        "very wide": _saved(Image.new("RGB", (4000, 1))),
        "very high": _saved(Image.new("RGB", (1, 4000))),
        "a bomb": _bomb(60_000, 60_000),
        "an endless side": _bomb(2**31 - 1, 1),
        "no width": _bomb(0, 10),
        "an animated GIF": _saved(frames[0], "gif", save_all=True, append_images=frames[1:]),
        "an animated WebP": _saved(frames[0], "webp", save_all=True, append_images=frames[1:]),
        "a TIFF of two pages": _saved(frames[0], "tiff", save_all=True, append_images=frames[1:]),
        "floats that are not a number": _saved(Image.fromarray(numbers * np.nan), "tiff"),
        "floats beyond 1": _saved(Image.fromarray(numbers + 300), "tiff"),
        "integers of unknown range": _saved(Image.fromarray((numbers - 5).astype(np.int32)), "tiff"),
    }


def _bomb(width: int, height: int) -> bytes:
    """A PNG that claims many pixels and holds none."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
