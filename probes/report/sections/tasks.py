"""Accuracy and cost by task, clean and erased, with the blind baseline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from probes.references import name_of
from probes.report import figures
from probes.report.charts import share
from probes.report.figures import Group
from probes.report.section import Report, Result, Section
from probes.report.summary import Row, summarise
from probes.report.tables import flat, table
from probes.report.values import Part
from probes.statistics.clusters import Clusters, clusters_of
from probes.statistics.outcomes import outcomes_of
from tccd.errors import require

COLUMNS = (
    *("control", "model", "modality", "layer", "k", "bank", "alpha_interp", "segment", "reference", "alpha_cd"),
    *("beta", "gate"),
    *("task", "n", "baseline", "accuracy", "cost", "delta", "low", "high", "clustered_by"),
)


class TasksSection(Section):
    """Bars and a table a model, of the cells that are compared; it holds no part of the JSON itself."""

    name = "tasks"
    data = Part
    files: ClassVar[Mapping[str, str]] = {
        "report-tasks.csv": "one row a task of a cell, control or setting of contrast"
    }

    def context(self, report: Report) -> Mapping[str, Any] | None:
        """A drawing and a table a model."""
        markup = require("markupsafe", "report").Markup
        tasks = []
        for index, row in enumerate(report.of(summarise)):
            rows = _rows(row)
            if rows:
                groups = [_group(report.result, row, task, of) for task, of in rows.items()]
                label = f"Accuracy by task, clean and erased, {row['model']}."
                svg = markup(figures.bars(groups, label, f"task{index}-"))
                tasks.append({"model": row["model"], "slice": row["headline"], "rows": rows, "svg": svg})
        blind = any(of["blind"] is not None for one in tasks for of in one["rows"].values())
        # Reports of before don't say what a task's interval is clustered by.
        older = any("clustered_by" not in of for cell in _cells(report.result) for of in cell.get("by_task") or ())
        return {"tasks": tasks, "blind_tasks": blind, "older": older} if tasks else None

    def tables(self, report: Report) -> Mapping[str, str]:
        """A row a task of each cell, control and setting."""
        return {"report-tasks.csv": table(COLUMNS, _flat(_cells(report.result)))}


def _cells(result: Result) -> Iterator[dict[str, Any]]:
    for cell in result.get("cells") or ():
        yield {"control": None, **cell}
    for control in result.get("controls") or ():
        yield {**control, "control": control["kind"]}
    for setting in result.get("tccd_cells") or ():
        yield {**setting, "reference": name_of(setting)}


def _flat(cells: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for cell in cells:
        for part in cell.get("by_task") or ():
            change = part["accuracy"] - part["baseline"]
            named = {"delta": change} if "alpha_cd" in cell else {"cost": -change}
            yield {**cell, "clustered_by": None, **named, **flat(part)}


def _rows(row: Row) -> dict[str, dict[str, Any]]:
    """By task what was measured of it."""
    rows: dict[str, dict[str, Any]] = {}
    for modality in ("text", "vision"):
        for part in (row[modality] or {}).get("by_task") or ():
            kept = rows.setdefault(part["task"], {"n": part["n"], "baseline": part["baseline"]})
            cost = part.get("cost", part["baseline"] - part["accuracy"])
            kept[modality] = {"accuracy": part["accuracy"], "cost": cost, "ci95": part.get("ci95")}
    blind = {part["task"]: part["accuracy"] for part in (row["blind"] or {}).get("by_task") or ()}
    return {task: {**of, "blind": blind.get(task)} for task, of in rows.items()}


def _group(result: Result, row: Row, task: str, of: Mapping[str, Any]) -> Group:
    asked = (result.get("questions") or {}).get(row["model"])
    clusters: Clusters | None = None
    right: dict[str, np.ndarray] = {}
    if asked:
        at = np.array([name == task for name in asked["task"]])
        clusters = clusters_of(asked)[at]
        outcomes = {"plain": asked["right"]} | {m: (row[m] or {}).get("right") for m in ("text", "vision")}
        right = {name: outcomes_of(bits)[at] for name, bits in outcomes.items() if bits}
    bars = [share("plain", of["baseline"], of["n"], right.get("plain"), clusters)]
    for modality in ("text", "vision"):
        if modality in of:
            bars.append(share(modality, of[modality]["accuracy"], of["n"], right.get(modality), clusters))
    return Group(task, f"n = {of['n']:,}", bars, of["blind"])
