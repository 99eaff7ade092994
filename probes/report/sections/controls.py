"""Controls: what the same dose does that erases nothing in particular, and erasure at an equal dose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from probes.report.pairs import between_costs
from probes.report.prose import span
from probes.report.section import Report, Result, Section
from probes.report.sections.cost import Erased
from probes.report.values import Part, Whole
from tccd.errors import DataError


class Control(Erased):
    """What was done instead of cell number `cell`; `against` is the other modality's, whose dose was matched."""

    kind: Literal["random-direction", "random-centroid", "dose-matched", "spare-answer"]
    cell: Whole
    against: Whole | None = None


class Controls(Part):
    """Rows as those of `cells`."""

    controls: list[Control] = []


class ControlsSection(Section):
    """Each controlled cell beside its controls, and text beside vision at an equal dose."""

    name = "controls"
    data = Controls
    heavy = frozenset({"right"})
    adjusted = ("controls",)

    def check(self, result: Result) -> None:
        """Controls are of cells of their model."""
        for index, control in enumerate(result.get("controls") or ()):
            for at in (control["cell"], control.get("against")):
                names_cell(result, f"controls[{index}]", control["model"], at)

    def shifted(self, result: Result, before: Mapping[str, int]) -> dict[str, Any]:
        """Cells are numbered on from those before."""
        found = super().shifted(result, before)
        return {
            part: [
                {
                    **row,
                    **{key: row[key] + before["cells"] for key in ("cell", "against") if row.get(key) is not None},
                }
                for row in rows
            ]
            for part, rows in found.items()
        }

    def context(self, report: Report) -> Mapping[str, Any] | None:
        """A table a model, and one of matched doses."""
        tables: dict[str, dict[str, Any]] = {}
        for control in report.result.get("controls") or ():
            table = tables.setdefault(control["model"], {"kinds": [], "rows": {}, "matched": [], "counts": set()})
            _sort_in(report.result, table, control)
        shown = [
            {**of, "model": model, "rows": list(of["rows"].values()), "n": span(of["counts"])}
            for model, of in tables.items()
        ]
        return {"controls": shown} if shown else None


def names_cell(result: Result, where: str, model: str, at: int | None) -> None:
    """Refuse the number of a cell that isn't there or is of another model.

    Raises:
        DataError: says where.
    """
    cells = result.get("cells") or ()
    if at is not None and (at >= len(cells) or cells[at]["model"] != model):
        raise DataError(f"result.{where} names cell {at}, which is none of its model's")


def _sort_in(result: Result, table: dict[str, Any], control: Mapping[str, Any]) -> None:
    cell, against = result["cells"][control["cell"]], control.get("against")
    table["counts"].add(control["n"])
    if against is not None:
        other = result["cells"][against]
        table["matched"].append({**control, "other": other, "difference": between_costs(result, control, other)})
        return
    if control["kind"] not in table["kinds"]:
        table["kinds"].append(control["kind"])
    row = table["rows"].setdefault(control["cell"], {"cell": cell, "controls": {}})
    row["controls"][control["kind"]] = {**control, "difference": between_costs(result, control, cell)}
