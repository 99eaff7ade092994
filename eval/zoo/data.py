"""easy-VQA as rows of token ids and pixels: an image's questions packed behind the one prefix they share."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import easy_vqa
import torch
from PIL import Image

SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
IGNORED = -100


@dataclass(frozen=True)
class Item:
    """One question about one image."""

    question: str
    answer: str
    image: int

    @property
    def task(self) -> str:
        """The kind of question: `shape`, `color`, `presence` (yes/no) or `absence` (yes/no, negated)."""
        if self.answer in SHAPES:
            return "shape"
        if self.answer in COLORS:
            return "color"
        return "absence" if {"no", "not"} & set(self.question.split()) else "presence"


@dataclass(frozen=True)
class Split:
    """A split of easy-VQA: its items in file order, and its images by number."""

    items: list[Item]
    images: dict[int, Image.Image]

    @classmethod
    def load(cls, name: str) -> Split:
        """Read the split `train` or `test` of the installed easy-vqa package."""
        questions, paths = {
            "train": (easy_vqa.get_train_questions, easy_vqa.get_train_image_paths),
            "test": (easy_vqa.get_test_questions, easy_vqa.get_test_image_paths),
        }[name]
        images = {number: Image.open(path).convert("RGB") for number, path in sorted(paths().items())}
        return cls([Item(*row) for row in zip(*questions(), strict=True)], images)

    def by_image(self) -> dict[int, list[Item]]:
        """The items of each image that has any."""
        groups = defaultdict(list)
        for item in self.items:
            groups[item.image].append(item)
        return dict(groups)

    def prior(self) -> dict[str, str]:
        """Each question string's most frequent answer: the best that can be done without the image."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for item in self.items:
            counts[item.question][item.answer] += 1
        # max over sorted answers: a tie goes to the first in the alphabet, whatever the order of the file
        return {question: max(sorted(c), key=c.__getitem__) for question, c in counts.items()}


def attributes(items: list[Item]) -> tuple[int, int]:
    """What the questions about one image imply of its shape and its color.

    Returns:
        Index into SHAPES and into COLORS; IGNORED where the questions leave it open.
    """
    found = []
    for names in (SHAPES, COLORS):
        possible = set(names)
        for item in items:
            named = set(item.question.rstrip("?").split()) & possible
            # "what is the red shape?" presupposes red; "is there a red shape?" is settled by its answer
            if item.answer in names:
                possible &= {item.answer}
            elif named and item.answer in ("yes", "no"):
                present = (item.answer == "yes") == (item.task == "presence")
                possible = possible & named if present else possible - named
            elif named:
                possible &= named
        found.append(names.index(possible.pop()) if len(possible) == 1 else IGNORED)
    return found[0], found[1]


def pack(
    prefix: list[int], rows: list[list[tuple[list[int], int]]], eos: int, pad: int
) -> dict[str, torch.Tensor]:
    """Pack several questions about each image behind its one prefix, each seeing the prefix and itself only.

    Args:
        prefix: token ids up to the last vision token, the same for every row.
        rows: for each image, (token ids of the question, token id of the answer).
        eos: what follows an answer.
        pad: fills the shorter rows, on the right.

    Returns:
        `input_ids` and `position_ids` of shape (rows, length), `attention_mask` (rows, 1, length, length)
        with True where a position is seen, and `labels` (rows, length): the token that each position should
        predict, IGNORED except at the last token of a question (the answer) and at the answer (`eos`).
    """
    start = len(prefix)
    width = start + max(sum(len(question) + 1 for question, _ in row) for row in rows)
    ids = torch.full((len(rows), width), pad)
    ids[:, :start] = torch.tensor(prefix)
    positions = torch.arange(width).repeat(len(rows), 1)
    segment = torch.full((len(rows), width), -1)
    segment[:, :start] = 0
    labels = torch.full((len(rows), width), IGNORED)
    for r, row in enumerate(rows):
        at = start
        for s, (question, answer) in enumerate(row, 1):
            end = at + len(question) + 1
            ids[r, at:end] = torch.tensor([*question, answer])
            positions[r, at:end] = torch.arange(start, start + end - at)
            segment[r, at:end] = s
            labels[r, end - 2], labels[r, end - 1] = answer, eos
            at = end
    own = segment[:, :, None] == segment[:, None, :]
    seen = (own | (segment == 0)[:, None, :]) & torch.ones(width, width, dtype=torch.bool).tril()
    return {"input_ids": ids, "position_ids": positions, "attention_mask": seen[:, None], "labels": labels}
