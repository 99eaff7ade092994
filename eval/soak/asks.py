"""What a soak asks: good requests with every reference, and bad ones."""

from __future__ import annotations

import base64
import io
import json
import random
from typing import Any

MODEL = "served"
WORDS = ("what", "is", "the", "color", "of", "this", "image", "red", "shape", "a", "circle")
Body = dict[str, Any]
#: By name, what a request adds to a plain one.
CONTRASTS: dict[str, Body | None] = {
    "plain": None,
    "text-centroid": {"tccd_layer": 2},
    "text-centroid, kept 0, beta": {"tccd_layer": 1, "tccd_alpha_interp": 0.0, "tccd_beta": 0.1},
    "text-centroid, gate": {"tccd_layer": 2, "tccd_gate": "margin", "tccd_gate_threshold": 0.3},
    "text-centroid, first": {"tccd_layer": 2, "tccd_tokens": "first"},
    "vision-centroid": {"tccd_reference": "vision-centroid", "tccd_layer": 2},
    "no-vision": {"tccd_reference": "no-vision"},
    "no-vision, negative": {"tccd_reference": "no-vision", "tccd_alpha_cd": -0.5},
    "blank-image": {"tccd_reference": "blank-image"},
    "prompt": {"tccd_reference": "prompt", "tccd_prompt": json.dumps({"text": "what is the shape"})},
    "prompt, image": {"tccd_reference": "prompt", "tccd_prompt": json.dumps({"text": "<image> is this a circle"})},
}
#: Additions that no server takes.
BAD: tuple[Body, ...] = (
    {"tccd_alpha": 1.0},
    {"tccd_layer": 99},
    {"tccd_layer": 2, "tccd_alpha_cd": "much"},
    {"tccd_layer": 2, "tccd_alpha_interp": 2.0},
    {"tccd_bank": "../x"},
    {"tccd_reference": "mean-vision"},
    {"tccd_reference": "prompt", "tccd_prompt": "{"},
    {"TCCD-LAYER": 2},
)


def picture(number: int) -> str:
    """A small picture of its own, as a data URL."""
    from PIL import Image

    chance = random.Random(number)
    image = Image.frombytes("RGB", (64, 64), chance.randbytes(64 * 64 * 3))
    held = io.BytesIO()
    image.save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


def body(number: int, contrast: Body | None) -> Body:
    """A chat request with words, a picture, and so many tokens, all settled by a number."""
    chance = random.Random(number)
    question = " ".join(chance.choices(WORDS, k=chance.randint(4, 60)))
    content: list[Body] = [
        {"type": "image_url", "image_url": {"url": picture(number % 7)}},
        {"type": "text", "text": question},
    ]
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": chance.randint(2, 24),
        "logprobs": True,
        "top_logprobs": 2,
        "ignore_eos": True,
        **({"vllm_xargs": contrast} if contrast else {}),
    }


def good(each: int) -> list[tuple[str, Body]]:
    """So many requests of each contrast, by its name."""
    contrasts = list(CONTRASTS.items())
    return [(name, body(7 * i + j, held)) for i in range(each) for j, (name, held) in enumerate(contrasts)]


def bad() -> list[Body]:
    """Requests that are to get HTTP 400."""
    held = [body(i, extra) for i, extra in enumerate(BAD)]
    blind = body(1, CONTRASTS["no-vision"])
    blind["messages"] = [{"role": "user", "content": "what is this"}]
    long = body(2, CONTRASTS["text-centroid"]) | {"max_tokens": 100_000}
    return [*held, blind, long]
