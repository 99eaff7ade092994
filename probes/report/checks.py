"""Checks that a report's schema is put together from: each takes a value and where it stands, and raises."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from tccd.errors import ConfigError, DataError

Check = Callable[[Any, str], None]


def mapping(value: Any, where: str) -> None:
    """A mapping."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is of type {type(value).__name__}; expected a mapping")


def keys(value: Any, where: str, required: dict[str, Check], optional: dict[str, Check]) -> None:
    """A mapping with these keys, each value checked; other keys are let through."""
    mapping(value, where)
    missing = [key for key in required if key not in value]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}; it holds {', '.join(value) or 'nothing':.200}")
    for key, check in {**required, **optional}.items():
        if key in value:
            check(value[key], f"{where}.{key}")


def record(required: dict[str, Check], optional: dict[str, Check] | None = None) -> Check:
    """A mapping with these keys, as a check."""
    return lambda value, where: keys(value, where, required, optional or {})


def each(check: Check) -> Check:
    """A list of such values."""

    def run(value: Any, where: str) -> None:
        if not isinstance(value, list):
            raise ConfigError(f"{where} is of type {type(value).__name__}; expected a list")
        for index, item in enumerate(value):
            check(item, f"{where}[{index}]")

    return run


def named(check: Check) -> Check:
    """A mapping from names to such values."""

    def run(value: Any, where: str) -> None:
        mapping(value, where)
        for name, item in value.items():
            check(item, f"{where}.{name}")

    return run


def or_none(check: Check) -> Check:
    """Such a value, or None."""
    return lambda value, where: None if value is None else check(value, where)


def text(value: Any, where: str) -> None:
    """A string."""
    if not isinstance(value, str):
        raise ConfigError(f"{where} = {value!r:.200}; expected text")


def time(value: Any, where: str) -> None:
    """A time in ISO 8601."""
    text(value, where)
    try:
        datetime.fromisoformat(value)
    except ValueError as error:
        raise ConfigError(f"{where} = {value!r:.200}; expected a time such as 2026-01-31T12:00:00") from error


def one_of(*allowed: str) -> Check:
    """One of these strings."""

    def run(value: Any, where: str) -> None:
        if value not in allowed:
            raise ConfigError(f"{where} = {value!r:.200}; expected one of {', '.join(allowed)}")

    return run


def truth(value: Any, where: str) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise ConfigError(f"{where} = {value!r:.200}; expected true or false")


def bits(value: Any, where: str) -> None:
    """A string of 0 and 1."""
    text(value, where)
    if not value or set(value) - {"0", "1"}:
        raise ConfigError(f"{where} starts with {value[:20]!r}; expected one 0 or 1 a question")


def number(low: float = -math.inf, high: float = math.inf, *, whole: bool = False) -> Check:
    """A number from low to high."""

    def run(value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise ConfigError(f"{where} = {value!r:.200}; expected a {'whole ' if whole else ''}number")
        if not low <= value <= high:
            raise DataError(f"{where} = {value!r:.200}; expected {low:g} to {high:g}")

    return run


def interval(value: Any, where: str) -> None:
    """[low, high]."""
    if not isinstance(value, list) or len(value) != 2:
        raise ConfigError(f"{where} = {value!r:.200}; expected [low, high]")
    for bound in value:
        number()(bound, where)
    if value[0] > value[1]:
        raise DataError(f"{where} = {value!r:.200}; expected low <= high")


def image(value: Any, where: str) -> None:
    """A PNG file as a data URI."""
    text(value, where)
    head, _, body = value.partition(",")
    try:
        image = base64.b64decode(body, validate=True)
        sound = head == "data:image/png;base64" and image.startswith(b"\x89PNG")
    except (binascii.Error, ValueError):
        sound = False
    if not sound:
        raise DataError(f"{where} starts with {value[:40]!r}; expected data:image/png;base64, and a PNG file")


def differs(key: str, sign: int) -> Check:
    """The difference of accuracies that the object itself states."""

    def run(value: Any, where: str) -> None:
        if key in value and not math.isclose(
            value[key], sign * (value["accuracy"] - value["baseline"]), abs_tol=1e-3
        ):
            formula = "accuracy - baseline" if sign > 0 else "baseline - accuracy"
            raise DataError(
                f"{where}.{key} = {value[key]!r:.200}, but {formula} = "
                f"{sign * (value['accuracy'] - value['baseline']):.4f}"
            )

    return run


def correct(value: Any, where: str) -> None:
    """The accuracy of the object's own counts."""
    if value["correct"] > value["n"] or not math.isclose(
        value["accuracy"], value["correct"] / value["n"], abs_tol=1e-3
    ):
        raise DataError(
            f"{where}.accuracy = {value['accuracy']!r:.200}, but {value['correct']} of {value['n']} are correct"
        )


def outcomes(value: Any, where: str) -> None:
    """Where the object has outcomes: as many as its n, as many right as its accuracy says."""
    bits = value.get("right")
    if bits is None:
        return
    right = value["accuracy"] * value["n"]
    if len(bits) != value["n"] or not math.isclose(bits.count("1"), right, abs_tol=1e-3 * value["n"]):
        raise DataError(
            f"{where}.right tells {bits.count('1')} of {len(bits)} right, but accuracy = {value['accuracy']:.4f} "
            f"of n = {value['n']}"
        )


def columns(value: Any, where: str) -> None:
    """Columns as long as the outcomes `right`."""
    n = len(value["right"])
    for name, column in value.items():
        if isinstance(column, list | str) and len(column) != n:
            raise DataError(f"{where}.{name} has {len(column)} entries, but right has {n}")


def every(*checks: Check) -> Check:
    """All of these checks."""

    def run(value: Any, where: str) -> None:
        for check in checks:
            check(value, where)

    return run
