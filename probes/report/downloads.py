"""What the page holds of its data, for a reader who was sent nothing but the page."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

ROOM = 1_500_000
"""Characters of `data:` links on a page; what doesn't fit is linked as the file beside it alone."""
WHAT = {
    "report.json": "the whole report",
    "report-models.csv": "one row a model: costs, ratio, protocols, advice",
    "report-cells.csv": "one row a cell or control",
    "report-tccd.csv": "one row a TCCD setting",
    "report-tasks.csv": "one row a task of each of these",
    "report-labels.csv": "one row an answer given",
    "report-differences.csv": "one row a pair of models and a measure",
    "report-questions.csv": "one row a question",
}


def downloads(result: Mapping[str, Any], tables: Mapping[str, str]) -> list[dict[str, Any]]:
    """The files beside the page, and where there is room for it the same as a `data:` link.

    The JSON in the page leaves out the outcomes of single questions and the pictures, which the page shows.

    Args:
        result: a validated result.
        tables: CSV text by file name.
    """
    light = json.dumps(_light(result), ensure_ascii=False, allow_nan=False)
    links = {}
    for name, text in {"report.json": light, **tables}.items():
        kind = "application/json" if name.endswith(".json") else "text/csv"
        links[name] = f"data:{kind};charset=utf-8;base64," + base64.b64encode(text.encode()).decode()
    held, room = set(), ROOM
    for name in sorted(links.keys() - {"report-questions.csv"}, key=lambda name: len(links[name])):
        if len(links[name]) <= room:
            room -= len(links[name])
            held.add(name)
    return [{"name": n, "what": WHAT[n], "link": link if n in held else None} for n, link in links.items()]


def _light(result: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in result.items() if key not in ("questions", "items", "cost_items")}
    for part in ("cells", "controls", "tccd_cells"):
        if part in kept:
            kept[part] = [{k: v for k, v in row.items() if k != "right"} for row in kept[part]]
    if "examples" in kept:
        kept["examples"] = [{k: v for k, v in row.items() if k != "image"} for row in kept["examples"]]
    return kept
