"""Multiple choice by letters, as the paper asks it (arXiv 2604.14363)."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from tccd.errors import DataError

#: Labels there can be, which bounds the options of a question: the published scorer's.
LETTERS = string.ascii_uppercase[:8]

_LABEL = re.compile(r"\(?([A-Za-z])\)?\.?")


def letters(options: int, where: str) -> tuple[str, ...]:
    """The labels of so many options, A first.

    Raises:
        DataError: fewer than two options, or more than there are `LETTERS`; `where` names the row.
    """
    if not 2 <= options <= len(LETTERS):
        raise DataError(f"{where}: {options} options; expected 2 to {len(LETTERS)}, labelled {LETTERS[0]} and on")
    return tuple(LETTERS[:options])


def letter_prompt(question: str, options: Sequence[str]) -> str:
    """A question with its lettered options: `question`, `(A) option` a line, `Answer:`."""
    lines = [f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([question.strip(), *lines, "Answer:"])


def parse_letter(text: str, choices: Sequence[str], where: str) -> str:
    """`(B)`, `B`, `b.` -> `B`.

    Raises:
        DataError: no letter, or none of the choices; `where` names the row.
    """
    match = _LABEL.fullmatch(text.strip())
    letter = match[1].upper() if match else None
    if letter is None or letter not in choices:
        hint = "; the answers of this split are not public" if text.strip().lower() == "hidden" else ""
        raise DataError(
            f"{where}: the answer {text!r} is not among the choices; expected one of {', '.join(choices)}{hint}"
        )
    return letter
