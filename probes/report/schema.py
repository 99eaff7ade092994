"""What a result must hold before it becomes a report. Keys beyond these are kept, in the JSON alone.

    {"schema": "tccd-report/2", "title", "created" (ISO 8601), "versions": {name: version}, "config": {...},
     "models": {name: {"description", "accuracy": {"n", "correct", "accuracy", "ci95"}, "parameters"?, "family"?,
                       "blind"?: {"n", "accuracy", "kind"?: how the image was withheld, "correct"?, "ci95"?,
                                  "by_task"?: [{"task", "n", "accuracy"}], "labels"?},
                       "majority"?: {"n", "accuracy", "kind"?}, "labels"?, "truth"?}},
     "cells": [{"model", "modality": "text" | "vision", "layer", "k", "alpha_interp", "segment", "n",
                "baseline", "accuracy", "cost", "ci95", "p_value", "p_holm"?, "bank"?, "labels"?, "right"?,
                "displacement"?, "by_task"?: [{"task", "n", "baseline", "accuracy", "cost"?, "ci95"?}]}],
     "controls"?: [{"kind": one of `CONTROLS`, "cell": index in `cells` of the cell that it controls,
                    "against"?: (dose-matched) index of the other modality's cell, whose dose was matched,
                    and all that a cell holds}],
     "ratio"?: {model: {"layer" (text's), "vision_layer"? (where it is another), "ratio", "ci95", "reason", "k"?,
                        "alpha_interp"?, "dose_matched"?: {"ratio", "ci95", "reason"}}},
     "tccd_cells"?: [{"model", "layer", "k", "bank"?, "alpha_interp", "alpha_cd", "beta", "gate",
                      "gate_threshold", "gate_ramp", "n", "baseline", "accuracy", "delta", "ci95", "p_value",
                      "p_holm"?, "helped", "harmed", "labels"?, "right"?,
                      "by_task"?: [{"task", "n", "baseline", "accuracy", "delta"?, "ci95"?}]}],
     "protocols"?: {model: [{"name": "fixed" | "cv" | "best", "oracle", "note", "chosen": {task: index in
                    `tccd_cells`}, "values": {task: delta}, "mean", "n_positive"}]},
     "tccd"?: {model: {"settings", "n", "baseline", "accuracy", "delta", "ci95", "p_value",
                       "helped"?, "harmed"?, "by_task"?, "chosen_on"?: {"n", ...},
                       "balanced"?, "minority"?: {the same, "note"?: what the subset is}}},
     "examples"?: [{"model", "image", "prompt", "answer", "plain", "tccd"?, "plain_probability"?,
                    "tccd_probability"?, "erased"?: [{"cell": index in `cells`, "answer"}]}],
     "questions"?: {model: {"id", "image_id", "picture"?: digests of what the images show, "prompt"?,
                            "task", "answer", "plain": [text, one a question], "right", "blind_right"?}},
     "data"?: {model: {"questions", "images": distinct ids, "pictures": distinct pictures, "copies": ids beyond
                       those, "banks": {bank: {"pictures": that it was fitted on, "overlap": of the report's that
                       are among them; both None where the bank keeps no digests}}}},
     "warnings"?: [{"code", "model", "text"}],
     "items"?: {model: [{...}]}}

An accuracy, cell, control or tccd cell may say how many `pictures` and `question_strings` its questions share, and
its p-value if they shared none, `p_independent`.

Accuracies, costs and deltas are fractions. `cost` = baseline - accuracy, `delta` = accuracy - baseline;
`ci95` is [low, high] of that difference (of the accuracy itself in `models`). p-values are of no
difference, over questions that share a picture or wording (`probes.statistics.clusters`); `p_independent` is
of the exact McNemar test; `p_holm` is adjusted over the report's list that it stands in. `helped` counts wrong
answers put right, `harmed` right answers made wrong. `right` is a string of 0 and 1, one a question, in the order
of `questions[model]`. `labels` is {"counts": {answer given: questions}, "entropy": in bits}. `displacement` is
the mean norm of what replacement moved a state by. A protocol with `oracle` is an oracle upper bound.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from probes.report import checks
from probes.report.checks import Check
from tccd.errors import ConfigError, DataError

SCHEMA = "tccd-report/2"

#: Kinds of control beside the cells: what the same dose does that erases nothing in particular, the dose of the
#: other modality, and erasure that leaves the position that answers.
CONTROLS = ("random-direction", "random-centroid", "dose-matched", "spare-answer")


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


def validate(result: Mapping[str, Any]) -> None:
    """Check a result against the schema in this module's docstring.

    Raises:
        ConfigError: another schema, a missing key, or a value of the wrong kind.
        DataError: a value that can't be: a number that is not finite, a count of no items, an accuracy above
            1, a cost that isn't baseline - accuracy, outcomes that are not n or don't give the accuracy, a
            model that `models` doesn't describe, a cell that isn't there, an image that isn't a PNG, a result
            with neither cells nor tccd.
    """
    checks.mapping(result, "result")
    if result.get("schema") != SCHEMA:
        raise ConfigError(f"result.schema = {result.get('schema')!r:.200}; expected {SCHEMA!r}")
    result = plain(result)
    checks.keys(result, "result", _RESULT, _RESULT_OPTIONAL)
    if not result["models"]:
        raise DataError("result.models is empty; expected at least one model")
    if not result["cells"] and not result.get("tccd"):
        raise DataError("result holds neither cells nor tccd: nothing was measured")
    parts = {part: result.get(part, ()) for part in _BY_MODEL}
    for part, entries in parts.items():
        for entry in entries:
            name = entry["model"] if isinstance(entry, dict) else entry
            if name not in result["models"]:
                described = ", ".join(result["models"])
                raise DataError(
                    f"result.{part} names the model {name!r:.200}; result.models describes {described:.200}"
                )
    _references(result)


def _references(result: Mapping[str, Any]) -> None:
    """Cells that others name, and outcomes that stand in the order of a model's questions."""
    cells, contrasts = result["cells"], result.get("tccd_cells", [])
    for part in ("controls", "examples"):
        for index, entry in enumerate(result.get(part, ())):
            named = entry.get("erased", ()) if part == "examples" else (entry, {"cell": entry.get("against")})
            for at in (reference["cell"] for reference in named):
                if at is not None and (at >= len(cells) or cells[at]["model"] != entry["model"]):
                    raise DataError(f"result.{part}[{index}] names cell {at}, which is none of its model's")
    for model, protocols in result.get("protocols", {}).items():
        for protocol in protocols:
            for task, at in protocol["chosen"].items():
                if at >= len(contrasts) or contrasts[at]["model"] != model:
                    raise DataError(
                        f"result.protocols.{model}: {protocol['name']} chose tccd cell {at} for {task}, which is "
                        "none of its model's"
                    )
    for model, questions in result.get("questions", {}).items():
        n = len(questions["right"])
        for part in ("cells", "controls", "tccd_cells"):
            for index, cell in enumerate(result.get(part, ())):
                if cell["model"] == model and len(cell.get("right", questions["right"])) != n:
                    raise DataError(f"result.{part}[{index}] has outcomes of {cell['n']} questions, not {n}")


_count, _whole = checks.number(1, whole=True), checks.number(0, whole=True)
_fraction, _signed, _probability = checks.number(0, 1), checks.number(-1, 1), checks.number(0, 1)

_OUTCOME: dict[str, Check] = {"n": _count, "baseline": _fraction, "accuracy": _fraction}
_TASK = checks.record(
    {"task": checks.text, **_OUTCOME}, {"cost": _signed, "delta": _signed, "ci95": checks.or_none(checks.interval)}
)
_BY_TASK = checks.each(checks.every(_TASK, checks.differs("cost", -1), checks.differs("delta", 1)))
_LABELS = checks.record({"counts": checks.named(_whole), "entropy": checks.number(0)})
_SHARED: dict[str, Check] = {"pictures": _count, "question_strings": _count}
_MORE: dict[str, Check] = {
    **_SHARED,
    "p_independent": checks.or_none(_probability),
    "bank": checks.text,
    "p_holm": checks.or_none(_probability),
    "labels": _LABELS,
    "right": checks.bits,
    "by_task": _BY_TASK,
}
_COST: dict[str, Check] = {
    "model": checks.text,
    "modality": checks.one_of("text", "vision"),
    "layer": _whole,
    "k": _count,
    "alpha_interp": checks.number(),
    "segment": checks.text,
    **_OUTCOME,
    "cost": _signed,
    "ci95": checks.interval,
    "p_value": checks.or_none(_probability),
}
_DOSE: dict[str, Check] = {**_MORE, "displacement": checks.or_none(checks.number(0))}
_CELL = checks.every(checks.record(_COST, _DOSE), checks.differs("cost", -1), checks.outcomes)
_CONTROL = checks.every(
    checks.record({"kind": checks.one_of(*CONTROLS), "cell": _whole, **_COST}, {"against": _whole, **_DOSE}),
    checks.differs("cost", -1),
    checks.outcomes,
)
_CHANGE = {**_OUTCOME, "delta": _signed, "ci95": checks.interval, "p_value": _probability}
_COUNTS: dict[str, Check] = {"helped": _whole, "harmed": _whole}
_SUBSET = checks.every(checks.record(_CHANGE, {**_COUNTS, "note": checks.text}), checks.differs("delta", 1))
_TCCD = checks.every(
    checks.record(
        {"settings": checks.mapping, **_CHANGE},
        {
            **_COUNTS,
            "balanced": checks.or_none(_SUBSET),
            "minority": checks.or_none(_SUBSET),
            "by_task": _BY_TASK,
            "chosen_on": checks.or_none(checks.record({"n": _count})),
        },
    ),
    checks.differs("delta", 1),
)
_CONTRAST = checks.every(
    checks.record(
        {
            "model": checks.text,
            "layer": _whole,
            "k": _count,
            "alpha_interp": _fraction,
            "alpha_cd": checks.number(0),
            "beta": _fraction,
            "gate": checks.or_none(checks.text),
            "gate_threshold": _fraction,
            "gate_ramp": _fraction,
            **_CHANGE,
            **_COUNTS,
        },
        _MORE,
    ),
    checks.differs("delta", 1),
    checks.outcomes,
)
_PROTOCOL = checks.record(
    {
        "name": checks.one_of("fixed", "cv", "best"),
        "oracle": checks.truth,
        "note": checks.text,
        "chosen": checks.named(_whole),
        "values": checks.named(_signed),
        "mean": _signed,
        "n_positive": _whole,
    }
)
_GUESS: dict[str, Check] = {"n": _count, "accuracy": _fraction}
_BLIND = checks.record(
    _GUESS,
    {
        "kind": checks.text,
        "correct": _whole,
        "ci95": checks.interval,
        "by_task": checks.each(checks.record({"task": checks.text, **_GUESS})),
        "labels": _LABELS,
    },
)
_MODEL = checks.record(
    {
        "description": checks.text,
        "accuracy": checks.every(
            checks.record(
                {"n": _count, "correct": _whole, "accuracy": _fraction, "ci95": checks.interval}, _SHARED
            ),
            checks.correct,
        ),
    },
    {
        "blind": checks.or_none(_BLIND),
        "majority": checks.record(_GUESS, {"kind": checks.text}),
        "parameters": checks.or_none(_count),
        "family": checks.text,
        "labels": _LABELS,
        "truth": _LABELS,
    },
)
_WORDS = checks.or_none(checks.named(_fraction))
_EXAMPLE = checks.record(
    {
        "model": checks.text,
        "image": checks.image,
        "prompt": checks.text,
        "answer": checks.text,
        "plain": checks.text,
    },
    {
        "tccd": checks.text,
        "plain_probability": _WORDS,
        "tccd_probability": _WORDS,
        "erased": checks.each(checks.record({"cell": _whole, "answer": checks.text})),
    },
)
_ESTIMATE: dict[str, Check] = {"ci95": checks.or_none(checks.interval), "reason": checks.or_none(checks.text)}
_RATIO = checks.record(
    {"layer": _whole, "ratio": checks.or_none(checks.number())},
    {
        **_ESTIMATE,
        "vision_layer": _whole,
        "k": _count,
        "alpha_interp": checks.number(),
        "dose_matched": checks.record({"ratio": checks.or_none(checks.number())}, _ESTIMATE),
    },
)
_QUESTIONS = checks.every(
    checks.record(
        {
            **dict.fromkeys(("id", "image_id", "task", "answer", "plain"), checks.each(checks.text)),
            "right": checks.bits,
        },
        {"blind_right": checks.bits, **dict.fromkeys(("picture", "prompt"), checks.each(checks.text))},
    ),
    checks.columns,
)
_DATA = checks.record(
    {
        "questions": _count,
        "images": _count,
        "pictures": _count,
        "copies": _whole,
        "banks": checks.named(
            checks.record({"pictures": checks.or_none(_whole), "overlap": checks.or_none(_whole)})
        ),
    }
)
_WARNING = checks.record(dict.fromkeys(("code", "model", "text"), checks.text))
_RESULT: dict[str, Check] = {
    "title": checks.text,
    "created": checks.time,
    "versions": checks.named(checks.text),
    "config": checks.mapping,
    "models": checks.named(_MODEL),
    "cells": checks.each(_CELL),
}
_RESULT_OPTIONAL: dict[str, Check] = {
    "ratio": checks.named(_RATIO),
    "tccd": checks.named(_TCCD),
    "examples": checks.each(_EXAMPLE),
    "items": checks.named(checks.each(checks.mapping)),
    "controls": checks.each(_CONTROL),
    "tccd_cells": checks.each(_CONTRAST),
    "protocols": checks.named(checks.each(_PROTOCOL)),
    "questions": checks.named(_QUESTIONS),
    "data": checks.named(_DATA),
    "warnings": checks.each(_WARNING),
}
_BY_MODEL = ("cells", *_RESULT_OPTIONAL)


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
