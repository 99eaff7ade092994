"""What a result must hold before it becomes a report. Keys beyond these are kept, in the JSON alone.

    {"schema": "tccd-report/1", "title", "created" (ISO 8601), "versions": {name: version}, "config": {...},
     "models": {name: {"description", "accuracy": {"n", "correct", "accuracy", "ci95"},
                       "blind"?: {"n", "accuracy"}, "parameters"?}},
     "cells": [{"model", "modality": "text" | "vision", "layer", "k", "alpha_interp", "segment", "n",
                "baseline", "accuracy", "cost", "ci95", "p_value",
                "by_task"?: [{"task", "n", "baseline", "accuracy", "cost"?, "ci95"?}]}],
     "ratio"?: {model: {"layer", "ratio", "ci95", "reason"}},
     "tccd"?: {model: {"settings", "n", "baseline", "accuracy", "delta", "ci95", "p_value",
                       "helped"?, "harmed"?, "by_task"?, "chosen_on"?: {"n", ...},
                       "balanced"?, "minority"?: {the same, "note"?: what the subset is}}},
     "examples"?: [{"model", "image", "prompt", "answer", "plain", "tccd", "plain_probability"?,
                    "tccd_probability"?}],
     "items"?: {model: [{...}]}}

Accuracies, costs and deltas are fractions. `cost` = baseline - accuracy, `delta` = accuracy - baseline;
`ci95` is [low, high] of that difference (of the accuracy itself in `models`). p-values are of the exact
McNemar test. `helped` counts wrong answers put right, `harmed` right answers made wrong.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import numpy as np

from tccd.errors import ConfigError, DataError

SCHEMA = "tccd-report/1"

Check = Callable[[Any, str], None]


def plain(value: Any, where: str = "result") -> Any:
    """The same value in JSON's own types: numpy scalars and arrays, tuples and mappings converted.

    Raises:
        DataError: a number that is not finite, a key that is no string, a string that UTF-8 can't hold, or a
            value of another type; the message says where.
    """
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise DataError(f"{where} holds half a surrogate pair, which UTF-8 can't hold")
        return str(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise DataError(f"{where} = {value}; JSON has only finite numbers, use None where there is none")
        return float(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise DataError(f"{where} has the key {key!r}; JSON keys are strings")
        return {plain(key, where): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise DataError(f"{where} is of type {type(value).__name__}; expected what JSON can hold")


def validate(result: Mapping[str, Any]) -> None:
    """Check a result against the schema in this module's docstring.

    Raises:
        ConfigError: another schema, a missing key, or a value of the wrong kind.
        DataError: a value that can't be: a number that is not finite, a count of no items, an accuracy above
            1, a cost that isn't baseline - accuracy, a model that `models` doesn't describe, an image that
            isn't a PNG, a result with neither cells nor tccd.
    """
    _mapping(result, "result")
    if result.get("schema") != SCHEMA:
        raise ConfigError(f"result.schema = {result.get('schema')!r}; expected {SCHEMA!r}")
    result = plain(result)
    _keys(result, "result", _RESULT, _RESULT_OPTIONAL)
    if not result["models"]:
        raise DataError("result.models is empty; expected at least one model")
    if not result["cells"] and not result.get("tccd"):
        raise DataError("result holds neither cells nor tccd: nothing was measured")
    parts = {part: result.get(part, ()) for part in ("cells", "examples", "ratio", "tccd", "items")}
    for part, entries in parts.items():
        for entry in entries:
            name = entry["model"] if isinstance(entry, dict) else entry
            if name not in result["models"]:
                described = ", ".join(result["models"])
                raise DataError(f"result.{part} names the model {name!r}; result.models describes {described}")


def _mapping(value: Any, where: str) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is of type {type(value).__name__}; expected a mapping")


def _keys(value: Any, where: str, required: dict[str, Check], optional: dict[str, Check]) -> None:
    _mapping(value, where)
    missing = [key for key in required if key not in value]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}; it holds {', '.join(value) or 'nothing'}")
    for key, check in {**required, **optional}.items():
        if key in value:
            check(value[key], f"{where}.{key}")


def _object(required: dict[str, Check], optional: dict[str, Check] | None = None) -> Check:
    return lambda value, where: _keys(value, where, required, optional or {})


def _each(check: Check) -> Check:
    """A list of such values."""

    def run(value: Any, where: str) -> None:
        if not isinstance(value, list):
            raise ConfigError(f"{where} is of type {type(value).__name__}; expected a list")
        for index, item in enumerate(value):
            check(item, f"{where}[{index}]")

    return run


def _named(check: Check) -> Check:
    """A mapping from names to such values."""

    def run(value: Any, where: str) -> None:
        _mapping(value, where)
        for name, item in value.items():
            check(item, f"{where}.{name}")

    return run


def _or_none(check: Check) -> Check:
    return lambda value, where: None if value is None else check(value, where)


def _text(value: Any, where: str) -> None:
    if not isinstance(value, str):
        raise ConfigError(f"{where} = {value!r}; expected text")


def _time(value: Any, where: str) -> None:
    _text(value, where)
    try:
        datetime.fromisoformat(value)
    except ValueError as error:
        raise ConfigError(f"{where} = {value!r}; expected a time such as 2026-01-31T12:00:00") from error


def _modality(value: Any, where: str) -> None:
    if value not in ("text", "vision"):
        raise ConfigError(f"{where} = {value!r}; expected 'text' or 'vision'")


def _number(low: float = -math.inf, high: float = math.inf, *, whole: bool = False) -> Check:
    def run(value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise ConfigError(f"{where} = {value!r}; expected a {'whole ' if whole else ''}number")
        if not low <= value <= high:
            raise DataError(f"{where} = {value!r}; expected {low:g} to {high:g}")

    return run


def _interval(value: Any, where: str) -> None:
    if not isinstance(value, list) or len(value) != 2:
        raise ConfigError(f"{where} = {value!r}; expected [low, high]")
    for bound in value:
        _number()(bound, where)
    if value[0] > value[1]:
        raise DataError(f"{where} = {value!r}; expected low <= high")


def _image(value: Any, where: str) -> None:
    _text(value, where)
    head, _, body = value.partition(",")
    try:
        image = base64.b64decode(body, validate=True)
        sound = head == "data:image/png;base64" and image.startswith(b"\x89PNG")
    except (binascii.Error, ValueError):
        sound = False
    if not sound:
        raise DataError(f"{where} starts with {value[:40]!r}; expected data:image/png;base64, and a PNG file")


def _differs(key: str, sign: int) -> Check:
    """The difference of accuracies that the object itself states."""

    def run(value: Any, where: str) -> None:
        if key in value and not math.isclose(
            value[key], sign * (value["accuracy"] - value["baseline"]), abs_tol=1e-3
        ):
            formula = "accuracy - baseline" if sign > 0 else "baseline - accuracy"
            raise DataError(
                f"{where}.{key} = {value[key]!r}, but {formula} = "
                f"{sign * (value['accuracy'] - value['baseline']):.4f}"
            )

    return run


def _correct(value: Any, where: str) -> None:
    if value["correct"] > value["n"] or not math.isclose(
        value["accuracy"], value["correct"] / value["n"], abs_tol=1e-3
    ):
        raise DataError(
            f"{where}.accuracy = {value['accuracy']!r}, but {value['correct']} of {value['n']} are correct"
        )


def _all(*checks: Check) -> Check:
    def run(value: Any, where: str) -> None:
        for check in checks:
            check(value, where)

    return run


_count, _whole = _number(1, whole=True), _number(0, whole=True)
_fraction, _signed, _probability = _number(0, 1), _number(-1, 1), _number(0, 1)

_OUTCOME: dict[str, Check] = {"n": _count, "baseline": _fraction, "accuracy": _fraction}
_TASK = _object({"task": _text, **_OUTCOME}, {"cost": _signed, "delta": _signed, "ci95": _or_none(_interval)})
_BY_TASK = _each(_all(_TASK, _differs("cost", -1), _differs("delta", 1)))
_CELL = _all(
    _object(
        {
            "model": _text,
            "modality": _modality,
            "layer": _whole,
            "k": _count,
            "alpha_interp": _number(),
            "segment": _text,
            **_OUTCOME,
            "cost": _signed,
            "ci95": _interval,
            "p_value": _or_none(_probability),
        },
        {"by_task": _BY_TASK},
    ),
    _differs("cost", -1),
)
_CHANGE = {**_OUTCOME, "delta": _signed, "ci95": _interval, "p_value": _probability}
_COUNTS: dict[str, Check] = {"helped": _whole, "harmed": _whole}
_SUBSET = _all(_object(_CHANGE, {**_COUNTS, "note": _text}), _differs("delta", 1))
_TCCD = _all(
    _object(
        {"settings": _mapping, **_CHANGE},
        {
            **_COUNTS,
            "balanced": _or_none(_SUBSET),
            "minority": _or_none(_SUBSET),
            "by_task": _BY_TASK,
            "chosen_on": _or_none(_object({"n": _count})),
        },
    ),
    _differs("delta", 1),
)
_MODEL = _object(
    {
        "description": _text,
        "accuracy": _all(
            _object({"n": _count, "correct": _whole, "accuracy": _fraction, "ci95": _interval}), _correct
        ),
    },
    {"blind": _or_none(_object({"n": _count, "accuracy": _fraction})), "parameters": _or_none(_count)},
)
_WORDS = _or_none(_named(_fraction))
_EXAMPLE = _object(
    {"model": _text, "image": _image, "prompt": _text, "answer": _text, "plain": _text, "tccd": _text},
    {"plain_probability": _WORDS, "tccd_probability": _WORDS},
)
_RATIO = _object(
    {"layer": _whole, "ratio": _or_none(_number())},
    {"ci95": _or_none(_interval), "reason": _or_none(_text)},
)
_RESULT: dict[str, Check] = {
    "title": _text,
    "created": _time,
    "versions": _named(_text),
    "config": _mapping,
    "models": _named(_MODEL),
    "cells": _each(_CELL),
}
_RESULT_OPTIONAL: dict[str, Check] = {
    "ratio": _named(_RATIO),
    "tccd": _named(_TCCD),
    "examples": _each(_EXAMPLE),
    "items": _named(_each(_mapping)),
}


def dumps(value: Any) -> str:
    """Strict JSON of a plain value, one innermost container a line: easy to read, to diff and to search."""
    return _lines(value, "") + "\n"


def _lines(value: Any, indent: str) -> str:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if not any(isinstance(item, dict | list) for item in inner):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    deeper = indent + " "
    if isinstance(value, dict):
        rows = [f"{deeper}{json.dumps(k, ensure_ascii=False)}: {_lines(v, deeper)}" for k, v in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
    return "[\n" + ",\n".join(f"{deeper}{_lines(item, deeper)}" for item in value) + f"\n{indent}]"
