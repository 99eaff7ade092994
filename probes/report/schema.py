"""The JSON of a report: its envelope, the sections' parts, what is refused, and how it is written.

    {"schema": "tccd-report/3", "title", "created" (ISO 8601), "versions": {name: version}, "config": {...},
     "warnings"?: [{"code", "model", "text"}], and each section's parts}

The models in `probes.report.sections` say what each part holds. Keys beyond these are kept, in the JSON alone.

Accuracies, costs and deltas are fractions. `cost` = baseline - accuracy, `delta` = accuracy - baseline; `ci95` is
[low, high] of that difference (of the accuracy itself in `models`). p-values are of no difference, over questions
that share a picture or wording (`probes.statistics.clusters`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from probes.report import sections
from probes.report.envelope import READ, SCHEMA
from probes.report.values import Part, Time, check
from tccd.errors import ConfigError, DataError


class Warned(Part):
    """What a reader should know before the figures."""

    code: str
    model: str
    text: str


class Envelope(Part):
    """What every report says of itself."""

    title: str
    created: Time
    versions: dict[str, str]
    config: dict[str, Any]
    warnings: list[Warned] = []


def validate(result: Mapping[str, Any]) -> None:
    """Check a result against the envelope and the models of all sections.

    Raises:
        ConfigError: another schema, a missing key, or a value of the wrong kind.
        DataError: a value that can't be: a number that is not finite, a count of no items, an accuracy above
            1, a cost that isn't baseline - accuracy, outcomes that are not n or don't give the accuracy, a
            model that `models` doesn't describe, a cell that isn't there, an image that isn't a PNG, a result
            in which nothing was measured.
    """
    if not isinstance(result, Mapping):
        raise ConfigError(f"result is of type {type(result).__name__}; expected a mapping")
    if result.get("schema") != SCHEMA:
        raise ConfigError(f"result.schema = {result.get('schema')!r:.200}; expected {SCHEMA!r}")
    result = plain(result)
    check(Envelope, result)
    for section in sections.SECTIONS:
        check(section.data, result)
    evidence = [part for section in sections.SECTIONS for part in section.evidence]
    if not any(result.get(part) for part in evidence):
        raise DataError(f"result holds none of {', '.join(evidence)}: nothing was measured")
    _models(result)
    for section in sections.SECTIONS:
        section.check(result)


def upgraded(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result of this schema, from one of this or of an older one that can still be read.

    Raises:
        ConfigError: any other schema; names it.
    """
    found = result.get("schema")
    if found != SCHEMA and found not in READ:
        raise ConfigError(
            f"report of schema {found!r:.200}; expected {SCHEMA!r} (or {', '.join(map(repr, READ))}): measure it "
            "anew with this version"
        )
    # Since "tccd-report/2" rows by task say what their interval is clustered by, and `cells` may be missing.
    return {**result, "schema": SCHEMA}


def _models(result: Mapping[str, Any]) -> None:
    """Every part is of models that the result describes."""
    described = result["models"]
    for part in ("warnings", *(part for section in sections.SECTIONS for part in section.parts)):
        for entry in result.get(part, ()):
            name = entry["model"] if isinstance(entry, dict) else entry
            if name not in described:
                raise DataError(
                    f"result.{part} names the model {name!r:.200}; result.models describes "
                    f"{', '.join(described):.200}"
                )


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
                raise DataError(f"{where} has the key {key!r:.200}; JSON keys are strings")
        return {plain(key, where): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise DataError(f"{where} is of type {type(value).__name__}; expected what JSON can hold")


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
