"""The replacement probe's result on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tccd.cli.console import output


def show(result: Mapping[str, Any], files: Sequence[Path]) -> None:
    """Print a result's cells, controls and settings of TCCD as tables, its answer and warnings, and where its
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
        table = Table("Layer", "K", "alpha_interp", "alpha_cd", "beta", "Gate", "Accuracy", "Gain",
                      "95 % interval", "p (Holm)", title="TCCD")  # fmt: skip
        for cell in result["tccd_cells"]:
            gate = "" if cell["gate"] is None else f"{cell['gate']} {cell['gate_threshold']:g}"
            place = [str(cell["layer"]), str(cell["k"])]
            place += [f"{cell[name]:g}" for name in ("alpha_interp", "alpha_cd", "beta")]
            table.add_row(*place, gate, f"{100 * cell['accuracy']:.1f}", *_change(cell, "delta", "+.1f"))
        console.print(table)
        for protocols in result["protocols"].values():
            for protocol in protocols:
                console.print(f"{protocol['name']}: mean gain {100 * protocol['mean']:+.1f} ({protocol['note']})")
    for sentence in answer(result):
        console.print(sentence, markup=False, soft_wrap=True)
    for warning in result.get("warnings") or ():
        console.print(f"Warning: {warning['model']}: {warning['text']}", markup=False, soft_wrap=True)
    for file in files:
        console.print(str(file), markup=False, soft_wrap=True)


def _change(cell: Mapping[str, Any], key: str, form: str) -> tuple[str, str, str]:
    low, high = (format(100 * bound, form) for bound in cell["ci95"])
    return format(100 * cell[key], form), f"{low} to {high}", f"{cell['p_holm']:.2g}"
