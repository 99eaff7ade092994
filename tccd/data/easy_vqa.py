"""Samples of easy-VQA: 64 x 64 pictures of one colored shape, from the PyPI package `easy-vqa`.

1,000 test images with 9,673 questions, 4,000 train images with 38,575; 107 question strings, 13 answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tccd.data.sample import ImageFile, Sample
from tccd.errors import DataError, require

SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SPLITS = ("train", "test")


def task_of(question: str) -> str:
    """The kind of an easy-VQA question.

    Returns:
        `shape` and `color` ("what ...?"); `shape-present`, `color-present`, `shape-absent`, `color-absent`
        (yes or no; absent: the question is negated).
    """
    words = question.rstrip("?").split()
    if words[0] == "what":
        return "color" if "color" in words else "shape"
    about = "shape" if {*words} & {*SHAPES} else "color"
    return f"{about}-{'absent' if {'no', 'not'} & {*words} else 'present'}"


def read_easy_vqa(split: str, prompt: str | None) -> Iterator[Sample]:
    """The samples of one split, in the package's order, which is by image.

    Args:
        split: `train` or `test`.
        prompt: stands in for each question.

    Raises:
        DataError: unknown split.
        MissingExtraError: easy-vqa is not installed.
    """
    if split not in SPLITS:
        raise DataError(f"easy-vqa has no split {split!r}; expected one of {', '.join(SPLITS)}")
    package = require("easy_vqa", "data")
    questions, answers, images = getattr(package, f"get_{split}_questions")()
    paths = getattr(package, f"get_{split}_image_paths")()
    for number, (question, answer, image) in enumerate(zip(questions, answers, images, strict=True)):
        yield Sample(
            id=f"{split}-{number}",
            image_id=f"{split}-{image}",
            prompt=prompt or question,
            answer=answer,
            # Open: the models answer from their whole vocabulary, as they were trained to.
            choices=None,
            task=task_of(question),
            load=ImageFile(Path(paths[image])),
        )
