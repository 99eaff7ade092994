"""What a report's models are made of: kinds of values, and what is said of a value that is none of its kind.

A section's part of the JSON is a `Part`, a pydantic model whose fields are the keys. Keys beyond them are kept.
What pydantic finds is told in one line that says where, what was found and what was expected: `ConfigError` for a
value of the wrong kind, `DataError` for one that can't be.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

from tccd.errors import ConfigError, DataError, TCCDError, require

require("pydantic", "report")

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator  # noqa: E402
from pydantic_core import ErrorDetails, PydanticCustomError  # noqa: E402

__all__ = ["Field", "model_validator"]

QUOTED = 200
"""Characters of a value that a message quotes."""


class Part(BaseModel):
    """A mapping with these keys; other keys are kept. Values are JSON's own, none is converted."""

    model_config = ConfigDict(strict=True, extra="allow")


def impossible(told: str) -> PydanticCustomError:
    """An error for a validator to raise: a value that can't be.

    Args:
        told: what follows its place in the message: ` = 3; expected ...`, or `.key = 3, but ...`.
    """
    return PydanticCustomError("impossible", "{told}", {"told": told})


def unexpected(told: str) -> PydanticCustomError:
    """An error for a validator to raise: a value of the wrong kind.

    Args:
        told: as for `impossible`.
    """
    return PydanticCustomError("unexpected", "{told}", {"told": told})


def _time(value: str) -> str:
    try:
        datetime.fromisoformat(value)
    except ValueError as error:
        raise unexpected(f" = {value!r:.{QUOTED}}; expected a time such as 2026-01-31T12:00:00") from error
    return value


def _interval(value: list[float]) -> list[float]:
    if len(value) != 2:
        raise unexpected(f" = {value!r:.{QUOTED}}; expected [low, high]")
    if value[0] > value[1]:
        raise impossible(f" = {value!r:.{QUOTED}}; expected low <= high")
    return value


def _png(value: str) -> str:
    head, _, body = value.partition(",")
    try:
        sound = head == "data:image/png;base64" and base64.b64decode(body, validate=True).startswith(b"\x89PNG")
    except (binascii.Error, ValueError):
        sound = False
    if not sound:
        raise impossible(f" starts with {value[:40]!r}; expected data:image/png;base64, and a PNG file")
    return value


Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Signed = Annotated[float, Field(ge=-1, le=1)]
Positive = Annotated[float, Field(ge=0)]
Time = Annotated[str, AfterValidator(_time)]
Interval = Annotated[list[float], AfterValidator(_interval)]
Png = Annotated[str, AfterValidator(_png)]
Bits = Annotated[str, Field(pattern="^[01]+$")]


class Outcome(Part):
    """Accuracy of `n` questions as they are, and after something was done."""

    n: Count
    baseline: Fraction
    accuracy: Fraction


class Labels(Part):
    """How often each answer was given, and the entropy of that in bits."""

    counts: dict[str, Whole]
    entropy: Positive


class TaskOutcome(Outcome):
    """One task's share of a cost or a gain."""

    task: str
    cost: Signed = 0.0
    delta: Signed = 0.0
    ci95: Interval | None = None
    clustered_by: str | None = None

    @model_validator(mode="after")
    def _states_its_change(self) -> TaskOutcome:
        for key, sign in (("cost", -1), ("delta", 1)):
            if key in self.model_fields_set:
                differs(self, key, sign)
        return self


class Tested(Part):
    """What an outcome that was tested may say beside its figures. `right` is 0 or 1 a question, in the order of
    `questions[model]`; `p_independent` is that of the exact McNemar test, `p_holm` is adjusted over the list.
    """

    pictures: Count = 1
    question_strings: Count = 1
    p_independent: Fraction | None = None
    p_holm: Fraction | None = None
    clustered_by: str | None = None
    bank: str = ""
    labels: Labels | None = None
    right: Bits = ""
    by_task: list[TaskOutcome] = []


def differs(row: Outcome, key: str, sign: int) -> None:
    """The change that a row states is that of its accuracies.

    Args:
        row: with `key`.
        key: of the change.
        sign: 1 for accuracy - baseline, -1 for baseline - accuracy.
    """
    stated, found = getattr(row, key), sign * (row.accuracy - row.baseline)
    if not math.isclose(stated, found, abs_tol=1e-3):
        formula = "accuracy - baseline" if sign > 0 else "baseline - accuracy"
        raise impossible(f".{key} = {stated!r:.{QUOTED}}, but {formula} = {found:.4f}")


def agrees(row: Any) -> None:
    """Outcomes `right`, where a row has them, are as many as its n, and as many right as its accuracy says."""
    bits = row.right
    if bits and (
        len(bits) != row.n or not math.isclose(bits.count("1"), row.accuracy * row.n, abs_tol=1e-3 * row.n)
    ):
        told = f"{bits.count('1')} of {len(bits)} right, but accuracy = {row.accuracy:.4f} of n = {row.n}"
        raise impossible(f".right tells {told}")


def check(model: type[Part], value: Mapping[str, Any], where: str = "result") -> None:
    """Check a value against a model.

    Raises:
        ConfigError: a missing key, or a value of the wrong kind; says where.
        DataError: a value that can't be; says where.
    """
    try:
        model.model_validate(value)
    except ValidationError as error:
        raise _told(error.errors(include_url=False), value, where) from None


_KINDS = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}
_CONTAINERS = {"list_type", "dict_type", "model_type"}
_BOUNDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "greater_than_equal": lambda found: f"at least {found['ge']:g}",
    "less_than_equal": lambda found: f"at most {found['le']:g}",
}


def _told(errors: Sequence[ErrorDetails], value: Mapping[str, Any], root: str) -> TCCDError:
    first = errors[0]
    kind, found, context = first["type"], first["input"], first.get("ctx", {})
    where = _place(root, first["loc"])
    if kind == "missing":
        around = first["loc"][:-1]
        missing = [str(e["loc"][-1]) for e in errors if e["type"] == "missing" and e["loc"][:-1] == around]
        held = ", ".join(value if not around else found) or "nothing"
        return ConfigError(f"{_place(root, around)} lacks {', '.join(missing)}; it holds {held:.{QUOTED}}")
    if kind in ("impossible", "unexpected"):
        return (DataError if kind == "impossible" else ConfigError)(f"{where}{context['told']}")
    if kind in _BOUNDS:
        return DataError(f"{where} = {found!r:.{QUOTED}}; expected {_BOUNDS[kind](context)}")
    if kind == "string_pattern_mismatch":
        return ConfigError(f"{where} starts with {found[:20]!r}; expected one 0 or 1 a question")
    if kind in _CONTAINERS:
        return ConfigError(f"{where} is of type {type(found).__name__}; expected {_KINDS[kind]}")
    if kind == "literal_error":
        allowed = context["expected"].replace("'", "").replace(" or ", ", ")
        return ConfigError(f"{where} = {found!r:.{QUOTED}}; expected one of {allowed}")
    return ConfigError(f"{where} = {found!r:.{QUOTED}}; expected {_KINDS.get(kind, first['msg'])}")


def _place(root: str, path: Sequence[int | str]) -> str:
    return root + "".join(f"[{at}]" if isinstance(at, int) else f".{at}" for at in path)
