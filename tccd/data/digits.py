"""Questions about pictures of handwritten digits, from scikit-learn's `load_digits`: nothing is downloaded.

1,797 real digits of 8 x 8 pixels. Every fifth digit of each class is a test digit; the others are train digits.
A picture shows 1 to 4 of them, white on black, each in a quarter of its own. Four tasks: `read`, `parity`,
`compare` (two digits side by side) and `count`. 4,000 train pictures, 400 test pictures, always the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from PIL import Image

from tccd.data.sample import Sample
from tccd.errors import DataError, require

TASKS = ("read", "parity", "compare", "count")
PICTURES = {"train": 4000, "test": 400}
#: Pixels: of a picture's side, of a quarter's, and of a digit's in it. What is left over moves the digit.
SIDE, QUARTER, DIGIT = 64, 32, 28
#: How many of a hundred pictures show 1, 2, 3 and 4 digits.
SHOWN = (30, 40, 15, 15)
#: How often "is it 7?" and "are there 2 digits?" ask about what is there: questions have a prior, as in life.
TRUE = 0.4


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        values: the digit in each quarter, row by row; None where there is none.
        numbers: which of scikit-learn's 1,797 digits it is.
        shifts: pixels that each is moved to the right and down in its quarter.
    """

    values: tuple[int | None, ...]
    numbers: tuple[int | None, ...]
    shifts: tuple[tuple[int, int], ...]

    def render(self) -> Image.Image:
        """The picture, in RGB."""
        canvas = Image.new("L", (SIDE, SIDE))
        for quarter, (number, (right, down)) in enumerate(zip(self.numbers, self.shifts, strict=True)):
            if number is not None:
                # 0 to 16 in the data set
                pixels = Image.fromarray((_digits()[0][number] * 255 / 16).astype("uint8"))
                row, column = divmod(quarter, 2)
                at = column * QUARTER + right, row * QUARTER + down
                canvas.paste(pixels.resize((DIGIT, DIGIT), Image.Resampling.BICUBIC), at)
        return canvas.convert("RGB")


@lru_cache(maxsize=1)
def _digits() -> tuple[Any, Any]:
    """Pixels, an array of shape (1797, 8, 8), and values, shape (1797,)."""
    found = require("sklearn.datasets", "sklearn").load_digits()
    return found.images, found.target


@lru_cache(maxsize=2)
def pictures(split: str) -> tuple[Picture, ...]:
    """The pictures of a split.

    Args:
        split: `train` or `test`; they share no digit.

    Raises:
        DataError: unknown split.
        MissingExtraError: scikit-learn is not installed.
    """
    if split not in PICTURES:
        raise DataError(f"digits has no split {split!r}; expected one of {', '.join(PICTURES)}")
    targets = _digits()[1].tolist()
    seen = [0] * 10
    mine = []
    for number, value in enumerate(targets):
        if (seen[value] % 5 == 4) == (split == "test"):
            mine.append(number)
        seen[value] += 1
    draw = random.Random(f"digits {split}")
    return tuple(_picture(draw, mine, targets) for _ in range(PICTURES[split]))


def _picture(draw: random.Random, mine: list[int], targets: list[int]) -> Picture:
    (count,) = draw.choices((1, 2, 3, 4), SHOWN)
    if count == 2:
        quarters = [draw.choice((0, 2)), draw.choice((1, 3))]  # one on the left and one on the right
    else:
        quarters = draw.sample(range(4), count)
    chosen = draw.sample(mine, count)
    while count == 2 and targets[chosen[0]] == targets[chosen[1]]:
        chosen = draw.sample(mine, 2)  # one has to be larger
    numbers: list[int | None] = [None] * 4
    for quarter, number in zip(quarters, chosen, strict=True):
        numbers[quarter] = number
    slack = QUARTER - DIGIT
    return Picture(
        values=tuple(None if number is None else targets[number] for number in numbers),
        numbers=tuple(numbers),
        shifts=tuple((draw.randint(0, slack), draw.randint(0, slack)) for _ in range(4)),
    )


def _questions(draw: random.Random, picture: Picture) -> Iterator[tuple[str, str, str]]:
    """(task, question, answer) about a picture."""
    shown = [value for value in picture.values if value is not None]

    def word(true: bool) -> str:
        return "yes" if true else "no"

    def about(right: list[int], others: list[int]) -> int:
        return draw.choice(right if draw.random() < TRUE or not others else others)

    absent = [value for value in range(10) if value not in shown]
    if len(shown) == 1:
        (value,) = shown
        yield "read", "what digit is it?", str(value)
        for asked in (about(shown, absent), about(shown, absent)):
            yield "read", f"is it {asked}?", word(asked == value)
        yield "parity", "is the digit even?", word(value % 2 == 0)
        yield "parity", "is the digit odd?", word(value % 2 == 1)
        yield "parity", "is it even or odd?", "odd" if value % 2 else "even"
    if len(shown) == 2:
        left, right = (next(v for v in picture.values[column::2] if v is not None) for column in range(2))
        for side, value in (("left", left), ("right", right)):
            yield "read", f"what is the {side} digit?", str(value)
            kind = draw.choice(("even", "odd"))
            yield "parity", f"is the {side} digit {kind}?", word(value % 2 == (kind == "odd"))
            yield "compare", f"is the {side} digit larger?", word(value == max(shown))
        yield "compare", "which digit is larger?", "left" if left > right else "right"
        yield "compare", "which digit is smaller?", "left" if left < right else "right"
    for _ in range(2):
        asked = about(shown, absent)
        yield "read", f"is the digit {asked} present?", word(asked in shown)
    count = len(shown)
    yield "count", "how many digits are there?", str(count)
    asked = about([count], [n for n in range(1, 5) if n != count])
    yield "count", f"are there {asked} digits?", word(asked == count)


def read_digits(split: str, prompt: str | None) -> Iterator[Sample]:
    """The samples of one split, by picture.

    Args:
        split: `train` or `test`.
        prompt: stands in for each question.

    Raises:
        DataError: unknown split.
        MissingExtraError: scikit-learn is not installed.
    """
    draw = random.Random(f"questions about digits {split}")
    number = 0
    for index, picture in enumerate(pictures(split)):
        for task, question, answer in dict.fromkeys(_questions(draw, picture)):
            yield Sample(
                id=f"digits-{split}-{number}",
                image_id=f"digits-{split}-{index}",
                prompt=prompt or question,
                answer=answer,
                # Open, as easy-VQA's: the models answer from their whole vocabulary
                choices=None,
                task=task,
                load=partial(Picture.render, picture),
            )
            number += 1
