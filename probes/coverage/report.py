"""A coverage result -> `coverage.json`, `coverage.csv` and `coverage.html`, one page that needs nothing else."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from probes.coverage import charts, words
from probes.coverage.schema import checked
from probes.report.page import page_environment
from probes.report.publish import publish
from probes.report.schema import dumps
from probes.report.tables import table
from tccd.errors import require

JSON, PAGE, CSV = "coverage.json", "coverage.html", "coverage.csv"
_BODY = "coverage.html.j2"
_HEADING = re.compile(r'<h2 id="([^"]+)">(.*?)</h2>')
COLUMNS = ("set", "codebook", "k", "n", "hit", "share", *(
    f"{name}{end}" for name in ("rarefied", "effective", "unseen", "redundancy") for end in ("", "_low", "_high")
))  # fmt: skip


def write(result: Mapping[str, Any], folder: Path, page: bool = True) -> tuple[Path, ...]:
    """Write a result's files; they replace those of an earlier one together. The caller holds the folder.

    Args:
        result: of `probes.coverage.coverage`.
        folder: which is there.
        page: whether to draw the page.

    Returns:
        Paths: the JSON, the table, then the page.

    Raises:
        ConfigError, DataError: the result is not one; see `probes.coverage.schema`.
        MissingExtraError: jinja2 or matplotlib is not installed.
        WriteError: the folder can't be written, or the disk is full.
    """
    result = checked(result)
    text = dumps(result)
    contents = {CSV: table(COLUMNS, map(_flat, result["coverage"]))}
    if page:
        contents[PAGE] = render(result, text)
    contents[JSON] = text
    publish(folder, {name: one.encode() for name, one in contents.items()}, (JSON, PAGE, CSV))
    return tuple(folder / name for name in (JSON, CSV, *([PAGE] if page else [])))


def render(result: Mapping[str, Any], source: str | None = None) -> str:
    """The page of a checked result; every string in it is escaped.

    Args:
        result: see `probes.coverage.schema`.
        source: text of the JSON beside the page; the page tells its digest.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    markup = require("markupsafe", "report").Markup
    environment = page_environment({_BODY: files("probes.coverage").joinpath(_BODY).read_text(encoding="utf-8")})
    environment.globals.update(names=words.NAMES, files={"json": JSON, "csv": CSV})
    body = environment.get_template(_BODY).render(**_context(result, source, markup))
    warnings = [f"{text[:1].upper()}{text[1:]}." for text in result["warnings"]]
    return str(
        environment.get_template("page.html.j2").render(
            title=result["title"],
            created=datetime.fromisoformat(result["created"]).strftime("%d %B %Y, %H:%M").lstrip("0"),
            answer=words.answer(result),
            warnings=warnings,
            headings=[(at, markup(title)) for at, title in _HEADING.findall(body)],
            bodies=[markup(body)],
        )
    )


def _context(result: Mapping[str, Any], source: str | None, markup: Any) -> dict[str, Any]:
    places = {one["name"]: place for place, one in enumerate(result["sets"])}
    pictures = {one["name"]: one["pictures"] for one in result["sets"]}
    books = list(dict.fromkeys(row["codebook"] for row in result["coverage"]))

    def of(part: str, book: str) -> list[Any]:
        return [row for row in result.get(part, ()) if row["codebook"] == book]

    return {
        "result": {"subset": [], "vendi": [], **result},
        "key": [(name, charts.style(place)[0]) for name, place in places.items()],
        "cells": {(row["set"], row["codebook"]): row for row in result["coverage"]},
        "books": books,
        "sets": list(places),
        "grown": {
            book: markup(charts.growth(of("growth", book), places, result["equal_n"], f"growth-{book}-"))
            for book in books
        },
        "laid": {
            book: markup(charts.overlay(of("codes", book), places, pictures, f"codes-{book}-"))
            for book in ("vision", "text")
        },
        "density": _by_measure(result),
        "compared": words.compared(result),
        "digest": None if source is None else hashlib.sha256(source.encode()).hexdigest(),
        "config": json.dumps(result["config"], indent=2, ensure_ascii=False),
    }


def _by_measure(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What is measured -> by set."""
    found: dict[str, dict[str, Any]] = {}
    for row in result["density"]:
        found.setdefault(row["what"], {})[row["set"]] = row
    return found


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    flat = dict(row)
    for name in ("rarefied", "effective", "unseen", "redundancy"):
        flat[name] = row[name]["value"]
        flat[f"{name}_low"], flat[f"{name}_high"] = row[name]["ci95"] or (None, None)
    return flat
