"""All cells and all settings of contrast, one row a measurement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from probes.references import PARAMETERS, name_of
from probes.report.prose import shown
from probes.report.section import Report, Result, Section
from probes.report.tables import flat, table
from probes.report.values import Part
from probes.statistics.intervals import holm
from probes.statistics.protocols import SETTINGS

MOST_ROWS = 400
"""Rows of the tables on the page; the CSV has all of them."""
TESTS = ("low", "high", "p_value", "p_independent", "p_holm", "clustered_by")
CELLS = (
    *(
        "control",
        "model",
        "modality",
        "layer",
        "k",
        "bank",
        "alpha_interp",
        "segment",
        "n",
        "baseline",
        "accuracy",
    ),
    *("cost", *TESTS, "displacement", "entropy"),
)
GAINS = (
    "control",
    "model",
    *SETTINGS,
    "n",
    "baseline",
    "accuracy",
    "delta",
    *TESTS,
    "helped",
    "harmed",
    "entropy",
)


class ListingSection(Section):
    """Tables near the page's end; it holds no part of the JSON itself."""

    name = "listing"
    data = Part
    files: ClassVar[Mapping[str, str]] = {
        "report-cells.csv": "one row a cell or control",
        "report-tccd.csv": "one row a setting of contrast, or its control",
    }

    def context(self, report: Report) -> Mapping[str, Any] | None:
        """Both tables, a table a model."""
        shown = {"cells": _cells(report.result), "contrasts": _contrasts(report.result)}
        return shown if any(shown.values()) else None

    def tables(self, report: Report) -> Mapping[str, str]:
        """A row a cell or control, and a row a setting."""
        result = report.result
        erased = [{"control": None, **cell} for cell in result.get("cells") or ()]
        erased += [{**control, "control": control["kind"]} for control in result.get("controls") or ()]
        return {
            "report-cells.csv": table(CELLS, map(flat, erased)),
            "report-tccd.csv": table(GAINS, _gains(result)),
        }


def _cells(result: Result) -> list[dict[str, Any]]:
    tested = [cell for cell in result.get("cells") or () if cell["p_value"] is not None]
    # One family: every cell of the report, over all models.
    adjusted = dict(zip(map(id, tested), holm([c["p_value"] for c in tested]), strict=True))
    rows = [{**cell, "p_holm": adjusted.get(id(cell))} for cell in result.get("cells") or ()]
    return _cut(rows, family=len(tested))


def _contrasts(result: Result) -> list[dict[str, Any]]:
    """The largest gain first."""
    rows = sorted(result.get("tccd_cells") or (), key=lambda cell: -cell["delta"])
    tables = _cut(rows, family=len(rows))
    for one in tables:
        held = [name for name in PARAMETERS if any(row.get(name) is not None for row in one["rows"])]
        one["parameters"] = [name for name in held if name != "bank"]
    return tables


def _gains(result: Result) -> Iterator[dict[str, Any]]:
    controls = [{**row, "control": row["kind"]} for row in result.get("tccd_controls") or ()]
    for row in (*(result.get("tccd_cells") or ()), *controls):
        yield flat({**row, "reference": name_of(row), "weights": shown(row.get("weights"))})


def _cut(rows: Sequence[Mapping[str, Any]], family: int) -> list[dict[str, Any]]:
    by_model: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_model.setdefault(row["model"], []).append(row)
    most = MOST_ROWS // max(len(by_model), 1)
    return [
        {"model": model, "rows": of[:most], "n_rows": len(of), "family": family} for model, of in by_model.items()
    ]
