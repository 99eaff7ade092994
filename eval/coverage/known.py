"""Data whose coverage is known: easy-VQA's 24 kinds of scene, and digits by the values that they show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from eval.zoo.data import IGNORED, attributes, by_image
from probes.coverage.store import Store
from tccd.data import Sample, Samples, digits, load_samples
from tccd.data.easy_vqa import COLORS


def scenes(source: str, each: int) -> tuple[Samples, list[int]]:
    """Train samples with so many images of each kind, one question an image.

    Args:
        source: "easy-vqa": a kind is a color and a shape, 24 in all. "digits": a kind is the value of the one
            digit that a picture shows, 10 in all.
        each: images of each kind, at most.

    Returns:
        The samples, and the kind of each.
    """
    loaded = load_samples(source, split="train")
    kinds = _easy(loaded) if source == "easy-vqa" else _digits()
    count: dict[int, int] = defaultdict(int)
    chosen: list[Sample] = []
    found: list[int] = []
    seen: set[str] = set()
    for sample in loaded:
        kind = kinds.get(sample.image_id)
        if kind is None or sample.image_id in seen or count[kind] == each:
            continue
        seen.add(sample.image_id)
        count[kind] += 1
        chosen.append(sample)
        found.append(kind)
    return Samples(tuple(chosen), source, "train"), found


def _easy(samples: Sequence[Sample]) -> dict[str, int]:
    """Image -> its kind, where the questions settle it."""
    found = {image: attributes(group) for image, group in by_image(samples).items()}
    return {i: shape * len(COLORS) + color for i, (shape, color) in found.items() if IGNORED not in (shape, color)}


def _digits() -> dict[str, int]:
    shown = {
        f"digits-train-{i}": [value for value in picture.values if value is not None]
        for i, picture in enumerate(digits.pictures("train"))
    }
    return {image: values[0] for image, values in shown.items() if len(values) == 1}


def taken(store: Store, keep: Sequence[bool]) -> Store:
    """The records of some samples, as a store of their own.

    Args:
        store: of all.
        keep: whether each is taken.
    """
    found = Store()
    digests = store.digests
    at = np.flatnonzero(np.array(keep))
    wanted = set(at.tolist())
    found.add([record for i, record in enumerate(store) if i in wanted], [f"{digests[i]:016x}" for i in at])
    return found
