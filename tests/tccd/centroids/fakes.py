"""A processor and samples for the tiny models: real images, and inputs without a tokenizer."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from PIL import Image

from tests.tiny import Row, inputs


class TinyTokenizer:
    """One token a character."""

    bos_token = None
    special_tokens_map: ClassVar = {}

    def __call__(self, text, **options):
        return {"input_ids": [0] * len(text)}

    def convert_ids_to_tokens(self, ids):
        return [f"<{i}>" for i in ids]


class TinyProcessor:
    """Encodes by length: a prompt of n characters has n text tokens after its image."""

    chat_template = None
    tokenizer = TinyTokenizer()

    def __init__(self, family):
        self.family = family
        self.image_token = "@"
        self.calls = 0

    def __call__(self, text, images, **options):
        self.calls += 1
        text = [t.replace(self.image_token, "") for t in text]
        rows = [Row(images=len(row), before=2, after=len(t)) for row, t in zip(images, text, strict=True)]
        return inputs(self.family, rows, seed=sum(map(len, text)) + images[0][0].getpixel((0, 0))[0])


@dataclass
class TinySample:
    number: int
    prompt: str

    @property
    def id(self):
        return f"s{self.number}"

    @property
    def image(self):
        return Image.new("RGB", (4, 4), (self.number, 0, 0))


def samples(count, longest=9):
    return [TinySample(i, "x" * (3 + i * 5 % (longest - 2))) for i in range(count)]


def brute_force(x, c, alpha):
    nearest = torch.cdist(x.double(), c.double(), compute_mode="donot_use_mm_for_euclid_dist").argmin(-1)
    mu = c.double()[nearest]
    return nearest, mu + alpha * (x.double() - mu)
