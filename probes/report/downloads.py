"""What the page holds of its data, for a reader who was sent nothing but the page."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from probes.report import sections

ROOM = 1_500_000
"""Characters of `data:` links on a page; what doesn't fit is linked as the file beside it alone."""


def downloads(result: Mapping[str, Any], tables: Mapping[str, str]) -> list[dict[str, Any]]:
    """The files beside the page, and where there is room for it the same as a `data:` link.

    What is in the page leaves out the outcomes of single questions, and the pictures, which the page shows.

    Args:
        result: a validated result.
        tables: CSV text by file name.
    """
    light = json.dumps(_light(result), ensure_ascii=False, allow_nan=False)
    what = {"report.json": "the whole report", **sections.files()}
    links = {}
    for name, text in {"report.json": light, **tables}.items():
        kind = "application/json" if name.endswith(".json") else "text/csv"
        links[name] = f"data:{kind};charset=utf-8;base64," + base64.b64encode(text.encode()).decode()
    held, room = set(), ROOM
    single = {name for s in sections.SECTIONS if s.heavy & set(s.parts) for name in s.files}
    for name in sorted(links.keys() - single, key=lambda name: len(links[name])):
        if len(links[name]) <= room:
            room -= len(links[name])
            held.add(name)
    return [{"name": n, "what": what[n], "link": link if n in held else None} for n, link in links.items()]


def _light(result: Mapping[str, Any]) -> dict[str, Any]:
    heavy = {key for section in sections.SECTIONS for key in section.heavy}
    parts = {part for section in sections.SECTIONS for part in section.parts}
    kept: dict[str, Any] = {key: value for key, value in result.items() if key not in heavy}
    for part in parts & kept.keys():
        if isinstance(kept[part], list):
            kept[part] = [{k: v for k, v in row.items() if k not in heavy} for row in kept[part]]
    return kept
