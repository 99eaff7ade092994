"""The replacement probe's result on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probes.references import PARAMETERS, name_of
from tccd.cli.console import output

if TYPE_CHECKING:
    from rich.table import Table

ROWS = 24
"""Settings of contrast that a terminal shows; the CSV has all of them."""


def show(result: Mapping[str, Any], files: Sequence[Path]) -> None:
    """Print a result's cells, controls and settings of contrast as tables, its answer and warnings, and where its
    files are.

    Args:
        result: as `probes.replacement.run` gives it.
        files: of its report.
    """
    from rich.table import Table

    from probes.report.prose import shared
    from probes.report.sections import answer

    console = output()
    for name, model in result["models"].items():
        figures = ", ".join(
            f"{title} {100 * model[key]['accuracy']:.1f} %"
            for key, title in (("accuracy", "accuracy"), ("blind", "image withheld"), ("majority", "majority"))
        )
        console.print(f"{name}: {figures}", markup=False)
        if "pictures" in model["accuracy"]:
            console.print(
                f"  {model['accuracy']['n']:,} questions about {shared(model['accuracy'])}", markup=False
            )
    for part, title in (("cells", "Centroid cost"), ("controls", "Controls")):
        if not result[part]:
            continue
        head = ("Modality", "Layer", "Segment", "K", "alpha_interp", "n", "Accuracy", "Cost", "95 % interval",
                "p (Holm)")  # fmt: skip
        table = Table(*((*head[:3], "Control", *head[3:]) if part == "controls" else head), title=title)
        for cell in result[part]:
            place = [str(cell[name]) for name in ("modality", "layer", "segment")]
            kind = [cell["kind"]] if part == "controls" else []
            kept = [str(cell["k"]), f"{cell['alpha_interp']:.3g}", str(cell["n"])]
            table.add_row(*place, *kind, *kept, f"{100 * cell['accuracy']:.1f}", *_change(cell, "cost", ".1f"))
        console.print(table)
    if result["tccd_cells"]:
        console.print(_contrasts(result["tccd_cells"]))
        for protocols in result["protocols"].values():
            for protocol in protocols:
                console.print(f"{protocol['name']}: mean gain {100 * protocol['mean']:+.1f} ({protocol['note']})")
    for sentence in answer(result):
        console.print(sentence, markup=False, soft_wrap=True)
    for warning in result.get("warnings") or ():
        console.print(f"Warning: {warning['model']}: {warning['text']}", markup=False, soft_wrap=True)
    for file in files:
        console.print(str(file), markup=False, soft_wrap=True)


def _contrasts(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The settings of contrast; of more than `ROWS` each reference's best."""
    from rich.table import Table

    from probes.report.prose import settings

    title = "Contrast"
    if len(rows) > ROWS:
        title = f"Contrast: of {len(rows)} settings each reference's best (oracle upper bound)"
        best: dict[str, Mapping[str, Any]] = {}
        for row in sorted(rows, key=lambda row: -row["delta"]):
            best.setdefault(name_of(row), row)
        rows = list(best.values())
    outcome = ("Accuracy", "Gain", "95 % interval", "p (Holm)")
    table = Table("Reference", "Made with", "alpha_cd", "beta", "Gate", *outcome, title=title)
    for row in rows:
        gate = "" if row["gate"] is None else f"{row['gate']} {row['gate_threshold']:g}"
        made = {name: row[name] for name in PARAMETERS if name != "bank" and row.get(name) is not None}
        place = [name_of(row), settings(made), f"{row['alpha_cd']:g}", f"{row['beta']:g}"]
        table.add_row(*place, gate, f"{100 * row['accuracy']:.1f}", *_change(row, "delta", "+.1f"))
    return table


def _change(cell: Mapping[str, Any], key: str, form: str) -> tuple[str, str, str]:
    low, high = (format(100 * bound, form) for bound in cell["ci95"])
    return format(100 * cell[key], form), f"{low} to {high}", f"{cell['p_holm']:.2g}"
