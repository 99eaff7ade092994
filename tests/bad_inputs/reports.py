"""Reports that are damaged, edited or of something else, for `advise` and `compare`."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from tests.bad_inputs.banks import DEEP
from tests.bad_inputs.case import Case
from tests.bad_inputs.world import World

GROUP = "reports"
#: Parts of a report that figures are made from.
PARTS = ("models", "cells", "tccd_cells", "questions")
#: Values that may be anything of their type, or missing.
FREE = {
    "description",
    "family",
    "parameters",
    "kind",
    "note",
    "reason",
    "task",
    "gate",
    "blind",
    "majority",
    "picture",
}


def cases(world: World) -> Iterator[Case]:
    """All of them."""
    whole = (world.report / "report.json").read_text()
    for name, content in _broken(whole):
        file = world.file(content, "report.json")
        yield Case(GROUP, f"advise: {name}", ["probe", "advise", file])
        yield Case(GROUP, f"compare: {name}", _compare(world, file))
    for name, result in _edited(json.loads(whole)):
        file = world.file(json.dumps(result), "report.json")
        yield Case(GROUP, f"advise: {name}", ["probe", "advise", file, "--json"])
    empty = world.fresh()
    for name, path in (("an empty folder", empty), ("nothing", empty / "nope"), ("a picture", world.picture)):
        yield Case(GROUP, f"advise: {name}", ["probe", "advise", path, "--json"])
        yield Case(GROUP, f"compare: {name}", _compare(world, path))
    other = world.fresh() / "asked-otherwise"
    yield Case(GROUP, "probe: a few other questions", world.probe(out=other, alpha_cd="0.5", limit=8), good=True)
    yield Case(GROUP, "compare: other questions", _compare(world, other), "question")


def _compare(world: World, report: Any) -> list[Any]:
    return ["probe", "compare", world.other_report, report, "--out", world.fresh()]


def _broken(whole: str) -> Iterator[tuple[str, bytes | str]]:
    yield "empty", ""
    yield "half of it", whole[: len(whole) // 2]
    yield "its last byte missing", whole.rstrip()[:-1]
    yield "twice", whole + whole
    yield "not UTF-8", whole.encode().replace(b"circle", b"circl\xff", 1)
    yield "a list", "[]"
    yield "a number", "5"
    yield "deep", DEEP
    yield "deep in it", whole.replace('"cells"', '"deep": ' + DEEP + ', "cells"', 1)
    yield "a huge integer", '{"schema": ' + "9" * 5000 + "}"
    yield "an empty object", "{}"
    yield "another schema", json.dumps(json.loads(whole) | {"schema": "tccd/replacement/999"})


def _edited(report: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for part in (*PARTS, "schema"):
        yield f"no {part}", {key: value for key, value in report.items() if key != part}
        yield f"{part} is a number", report | {part: 5}
    draw = random.Random(0)
    places = [path for part in PARTS for path in _leaves(report[part], (part,))]
    places = [path for path in places if not FREE & {key for key in path if isinstance(key, str)}]
    for path in sorted(draw.sample(places, min(40, len(places))), key=str):
        edited = deepcopy(report)
        at: Any = edited
        for key in path[:-1]:
            at = at[key]
        found = at[path[-1]]
        at[path[-1]] = "x" if isinstance(found, int | float) else {"a": 1}
        yield "edited at " + ".".join(map(str, path)), edited
    for name, value in (("NaN", float("nan")), ("1e999", float("inf")), ("-3", -3)):
        edited = deepcopy(report)
        edited["tccd_cells"][0]["accuracy"] = value
        yield f"an accuracy of {name}", edited
    for key, value in (("right", "!!!"), ("right", ""), ("id", []), ("answer", ["yes"]), ("image_id", [])):
        edited = deepcopy(report)
        next(iter(edited["questions"].values()))[key] = value
        yield f"questions with {key} {value!r}", edited


def _leaves(value: Any, path: tuple) -> Iterator[tuple]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    elif isinstance(value, list):
        if value:
            yield from _leaves(value[0], (*path, 0))
    elif value is not None:
        yield path
