"""What can be had without the image: the floor beside every accuracy."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from PIL import Image

from tccd.data import Sample

#: How the image is withheld, in words for a report. The prompt, its length and every vision token's place stay
#: as they were: what is gone is what the picture shows.
BLIND = "the image replaced by a neutral grey one of its size"
MAJORITY = "each question's most frequent answer in this very data"
GREY = (128, 128, 128)


def withheld(image: Image.Image) -> Image.Image:
    """A neutral grey picture of the same size."""
    return Image.new("RGB", image.size, GREY)


def majority(samples: Sequence[Sample]) -> np.ndarray:
    """Whether each sample's answer is its question's most frequent one, shape (n,).

    Chosen on the very samples it is measured on, so no blind guesser does better.
    """
    counts: dict[str, Counter[str | None]] = defaultdict(Counter)
    for sample in samples:
        counts[sample.prompt][sample.answer] += 1
    best = {prompt: max(sorted(table, key=str), key=table.__getitem__) for prompt, table in counts.items()}
    return np.array([best[sample.prompt] == sample.answer for sample in samples])
