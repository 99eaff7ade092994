"""JSON lines -> rows, checked: what no file of questions holds is refused before it costs memory."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from typing import IO, Any

from tccd.errors import DataError

#: Bytes of a line, and lists and objects inside one another, at most.
MAX_LINE = 10_000_000
MAX_DEPTH = 100


def bounded_lines(file: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file; of one that is too long, no more than shows that it is."""
    while line := file.readline(MAX_LINE + 1):
        yield line


def read_rows(lines: Iterable[bytes], name: str, expected: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Parse JSON lines; empty ones are skipped.

    Args:
        lines: in UTF-8; a byte order mark may stand before the first.
        name: what a line's number stands behind in an error, as in `stdin line `.
        expected: what each line should be, for errors.

    Yields:
        The line's number, from 1; the place, for errors, as in `stdin line 7`; and the row.

    Raises:
        DataError: a line is longer than `MAX_LINE`, not JSON in UTF-8, nested deeper than `MAX_DEPTH`, or no
            object; or holds a number that is none (NaN) or out of range. Names the line.
    """
    for number, line in enumerate(lines, 1):
        where = f"{name}{number}"
        if len(line) > MAX_LINE:
            raise DataError(f"{where} is longer than {MAX_LINE:,} bytes; expected {expected}")
        if not line.strip():
            continue
        try:
            row = json.loads(
                line.decode("utf-8-sig" if number == 1 else "utf-8"),
                parse_constant=_no_number,
                parse_float=_number,
            )
        except RecursionError as error:
            raise _too_deep(where) from error
        except ValueError as error:  # UnicodeDecodeError, JSONDecodeError, and an integer of too many digits
            raise DataError(f"{where}: not JSON: {str(error)[:200]}; expected {expected}") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: found {type(row).__name__}; expected {expected}")
        if _deeper(row, MAX_DEPTH):
            raise _too_deep(where)
        yield number, where, row


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:60]} is out of range")
    return value


def _too_deep(where: str) -> DataError:
    return DataError(
        f"{where}: more than {MAX_DEPTH} lists and objects inside one another; expected plain fields, as prompt "
        "and image are"
    )


def _deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    return not levels or any(
        _deeper(v, levels - 1) for v in (value.values() if isinstance(value, dict) else value)
    )
