"""easy-VQA and digits as rows of token ids and pixels: an image's questions packed behind one shared prefix."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from PIL import Image, ImageOps

from tccd.data import Sample, digits, load_samples
from tccd.data.easy_vqa import COLORS, SHAPES

SOURCES = ("easy-vqa", "digits")
IGNORED = -100


def by_image(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """The samples of each image, in their order."""
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.image_id].append(sample)
    return dict(groups)


def train_split() -> dict[str, list[Sample]]:
    """The train samples of every source, by image."""
    return by_image([sample for source in SOURCES for sample in load_samples(source, split="train")])


def views(samples: Sequence[Sample]) -> tuple[Image.Image, Image.Image]:
    """An image as it is, and as it might have been without a change in any answer.

    Args:
        samples: all about the image.
    """
    image = samples[0].image
    # Shapes and colors survive a mirror, and so do the questions; digits don't
    if samples[0].task in digits.TASKS:
        return image, image.rotate(7, Image.Resampling.BICUBIC)
    return image, ImageOps.mirror(image)


def attributes(samples: Sequence[Sample]) -> tuple[int, int]:
    """What easy-VQA's questions about one image imply of its shape and its color.

    Returns:
        Index into SHAPES and into COLORS; IGNORED where the questions leave it open.
    """
    found = []
    for names in (SHAPES, COLORS):
        possible = set(names)
        for sample in samples:
            named = set(sample.prompt.rstrip("?").split()) & possible
            # "what is the red shape?" presupposes red; "is there a red shape?" is settled by its answer
            if sample.answer in names:
                possible &= {sample.answer}
            elif named and sample.answer in ("yes", "no"):
                present = (sample.answer == "yes") == str(sample.task).endswith("present")
                possible = possible & named if present else possible - named
            elif named:
                possible &= named
        found.append(names.index(possible.pop()) if len(possible) == 1 else IGNORED)
    return found[0], found[1]


def labels(groups: dict[str, list[Sample]]) -> torch.Tensor:
    """What stage 0 teaches the vision tower, shape (images, 6).

    Shape and color, from `attributes`, then the digit in each quarter, 10 where there is none; IGNORED where
    the other source's labels belong.
    """
    shown = {f"digits-train-{i}": picture.values for i, picture in enumerate(digits.pictures("train"))}
    rows = []
    for image, samples in groups.items():
        if image in shown:
            rows.append([IGNORED, IGNORED, *(10 if value is None else value for value in shown[image])])
        else:
            rows.append([*attributes(samples), *[IGNORED] * 4])
    return torch.tensor(rows)


def pack(
    prefix: Sequence[int], positions: torch.Tensor, rows: list[list[tuple[list[int], int]]], eos: int, pad: int
) -> dict[str, torch.Tensor]:
    """Pack several questions about each image behind its one prefix, each seeing the prefix and itself only.

    Args:
        prefix: token ids up to the question, the same for every row.
        positions: of the prefix, shape (axes, len(prefix)); a question goes on from the largest, on all axes.
        rows: for each image, (token ids of the question, token id of the answer).
        eos: what follows an answer.
        pad: fills the shorter rows, on the right.

    Returns:
        `input_ids` of shape (rows, length), `position_ids` (rows, length), or (axes, rows, length) if there
        are several axes, `attention_mask` (rows, 1, length, length) with True where a position is seen, and
        `labels` (rows, length): the token that each position should predict, IGNORED except at the last token
        of a question (the answer) and at the answer (`eos`).
    """
    start, first = len(prefix), int(positions.max()) + 1
    width = start + max(sum(len(question) + 1 for question, _ in row) for row in rows)
    ids = torch.full((len(rows), width), pad)
    ids[:, :start] = torch.tensor(prefix)
    where = torch.zeros(len(positions), len(rows), width, dtype=torch.long)
    where[:, :, :start] = positions[:, None]
    segment = torch.full((len(rows), width), -1)
    segment[:, :start] = 0
    targets = torch.full((len(rows), width), IGNORED)
    for r, row in enumerate(rows):
        at = start
        for s, (question, answer) in enumerate(row, 1):
            end = at + len(question) + 1
            ids[r, at:end] = torch.tensor([*question, answer])
            where[:, r, at:end] = torch.arange(first, first + end - at)
            segment[r, at:end] = s
            targets[r, end - 2], targets[r, end - 1] = answer, eos
            at = end
    own = segment[:, :, None] == segment[:, None, :]
    seen = (own | (segment == 0)[:, None, :]) & torch.ones(width, width, dtype=torch.bool).tril()
    return {
        "input_ids": ids,
        "position_ids": where[0] if len(where) == 1 else where,
        "attention_mask": seen[:, None],
        "labels": targets,
    }
