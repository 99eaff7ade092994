"""The page's charts: heat maps, curves and bars, each with the rows behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from probes.report import figures
from probes.report.figures import Bar, Group
from probes.report.prose import percent, points, shared, span
from probes.report.summary import Row
from probes.statistics.intervals import SIGNIFICANT

MOST_LABELS = 8
HEAT = 45
"""Per cent of colour in a heat map's strongest cell: text on it stays readable."""
PALE = 0.05
"""A heat map's scale reaches at least this far: a map of nothing but noise is pale."""
Markup = Callable[[str], Any]


def heats(summary: Sequence[Row]) -> list[dict[str, Any]]:
    """Layer x modality: a heat map a model."""
    shown = [row for row in summary if row["headline"]]
    costs = [c["cost"] for row in shown for of in row["headline"].by_layer.values() for c in of]
    top = max(map(abs, costs), default=0)
    found = []
    for row in shown:
        chosen = row["headline"]
        at = {m: {c["layer"]: c for c in of} for m, of in chosen.by_layer.items() if of}
        layers = sorted({layer for of in at.values() for layer in of})
        rows = [{"head": layer, "cells": [_heat(at[m].get(layer), "cost", top) for m in at]} for layer in layers]
        n = span(c["n"] for of in chosen.by_layer.values() for c in of)
        found.append({"model": row["model"], "columns": list(at), "rows": rows, "n": n, "slice": chosen})
    return found


def gains(result: Mapping[str, Any], summary: Sequence[Row]) -> list[dict[str, Any]]:
    """Layer x alpha_interp: what TCCD gained, at the `alpha_cd` of the fixed protocol, a heat map a model."""
    found = []
    # One scale for all models; changes of a point or two stay pale on it.
    top = max((abs(c["delta"]) for c in result.get("tccd_cells") or ()), default=0)
    for row in summary:
        cells = [c for c in result.get("tccd_cells") or () if c["model"] == row["model"]]
        if not cells:
            continue
        fixed = next((p for p in row["protocols"] if p["name"] == "fixed" and p["chosen"]), None)
        like = result["tccd_cells"][next(iter(fixed["chosen"].values()))] if fixed else cells[0]
        same = ("k", "bank", "alpha_cd", "beta", "gate", "gate_threshold", "gate_ramp")
        at = {(c["layer"], c["alpha_interp"]): c for c in cells if all(c.get(k) == like.get(k) for k in same)}
        alphas, layers = sorted({a for _, a in at}), sorted({layer for layer, _ in at})
        rows = [
            {"head": layer, "cells": [_heat(at.get((layer, a)), "delta", top) for a in alphas]} for layer in layers
        ]
        n = span(c["n"] for c in at.values())
        found.append({"model": row["model"], "columns": alphas, "rows": rows, "n": n, "like": like})
    return found


def curves(summary: Sequence[Row], over: str, markup: Markup) -> list[dict[str, Any]]:
    """Cost over layers, or over the dose, a drawing a model; a curve needs two points."""
    shown = []
    for row in summary:
        if chosen := row["headline"]:
            rows = chosen.by_layer if over == "layer" else chosen.by_dose
            if any(len(of) > 1 for of in rows.values()):
                shown.append((row["model"], chosen, rows))
    if not shown:
        return []
    limits = figures.limits([rows for _, _, rows in shown])
    draw = figures.cost_by_layer if over == "layer" else figures.cost_by_dose
    return [
        {
            "model": model,
            "slice": chosen,
            "rows": [cell for of in rows.values() for cell in of],
            "n": span(c["n"] for of in rows.values() for c in of),
            "baseline": _baseline([c for of in rows.values() for c in of]),
            "svg": markup(draw(chosen, limits, f"{over}{index}-")),
        }
        for index, (model, chosen, rows) in enumerate(shown)
    ]


def tasks(summary: Sequence[Row], markup: Markup) -> list[dict[str, Any]]:
    """Accuracy by task, clean and erased, with the blind baseline: a drawing and a table a model."""
    found = []
    for index, row in enumerate(summary):
        rows: dict[str, dict[str, Any]] = {}
        for modality in ("text", "vision"):
            for part in (row[modality] or {}).get("by_task") or ():
                kept = rows.setdefault(part["task"], {"n": part["n"], "baseline": part["baseline"]})
                cost = part.get("cost", part["baseline"] - part["accuracy"])
                kept[modality] = {"accuracy": part["accuracy"], "cost": cost, "ci95": part.get("ci95")}
        if not rows:
            continue
        blind = {part["task"]: part["accuracy"] for part in (row["blind"] or {}).get("by_task") or ()}
        groups = []
        for task, of in rows.items():
            of["blind"] = blind.get(task)
            bars = [Bar("plain", of["baseline"], of["n"])]
            bars += [Bar(m, of[m]["accuracy"], of["n"]) for m in ("text", "vision") if m in of]
            groups.append(Group(task, f"n = {of['n']:,}", bars, of["blind"]))
        label = f"Accuracy by task, clean and erased, {row['model']}."
        svg = markup(figures.bars(groups, label, f"task{index}-"))
        found.append({"model": row["model"], "slice": row["headline"], "rows": rows, "svg": svg})
    return found


def labels(result: Mapping[str, Any], summary: Sequence[Row], markup: Markup) -> list[dict[str, Any]]:
    """Which answers were given, clean and erased, beside the right ones: a collapse onto one is seen here."""
    found = []
    for index, row in enumerate(summary):
        model = result["models"][row["model"]]
        given = {"plain": model.get("labels")} | {m: (row[m] or {}).get("labels") for m in ("text", "vision")}
        counts = {name: of["counts"] for name, of in given.items() if of}
        if not counts:
            continue
        truth = (model.get("truth") or {}).get("counts")
        total = Counter(truth or {})
        for of in counts.values():
            total.update(of)
        words = [word for word, _ in sorted(total.items(), key=lambda item: (-item[1], item[0]))]
        rows = []
        for word in words[:MOST_LABELS]:
            rows.append(_label(word, {word}, counts, truth))
        if rest := set(words[MOST_LABELS:]):
            rows.append(_label(f"{len(rest)} other answers", rest, counts, truth))
        groups = []
        for of in rows:
            bars = [Bar(name, part["share"], part["n"]) for name, part in of["given"].items()]
            groups.append(Group(of["label"], "", bars, of["truth"]))
        svg = markup(figures.bars(groups, f"Share of each answer, {row['model']}.", f"label{index}-"))
        n = span(part["n"] for of in rows for part in of["given"].values())
        entropy = {k: v for k, v in row["entropy"].items() if v is not None}
        found.append({"model": row["model"], "rows": rows, "n": n, "svg": svg, "entropy": entropy})
    return found


def runs(result: Mapping[str, Any], markup: Markup) -> list[dict[str, Any]]:
    """TCCD by really generating, at settings chosen elsewhere: a table and bars by task a model."""
    found = []
    for index, (name, run) in enumerate((result.get("tccd") or {}).items()):
        rows = [("all", run), ("balanced", run.get("balanced")), ("minority", run.get("minority"))]
        groups = [
            Group(
                part["task"],
                f"{points(part['baseline'])} → {points(part['accuracy'])}",
                [Bar("plain", part["baseline"], part["n"]), Bar("tccd", part["accuracy"], part["n"])],
            )
            for part in run.get("by_task") or ()
        ]
        label = f"Accuracy by task, plain to TCCD, {name}."
        found.append(
            {
                "model": name,
                "settings": run["settings"],
                "chosen_on": run.get("chosen_on"),
                "shared": shared(run) if "pictures" in run else None,
                "rows": [(title, row) for title, row in rows if row],
                "counted": any("helped" in row and "harmed" in row for _, row in rows if row),
                "n": span(part["n"] for part in run.get("by_task") or (run,)),
                "svg": markup(figures.bars(groups, label, f"run{index}-")) if groups else None,
            }
        )
    return found


def _heat(cell: Mapping[str, Any] | None, key: str, top: float) -> dict[str, Any] | None:
    if cell is None:
        return None
    value = cell[key]
    harm = value > 0 if key == "cost" else value < 0
    adjusted = cell.get("p_holm")
    return {
        "value": value,
        "ci95": cell["ci95"],
        "hue": "harm" if harm else "help",
        "heat": round(HEAT * abs(value) / max(top, PALE)),
        "sure": adjusted is not None and adjusted < SIGNIFICANT,
    }


def _label(
    title: str, words: set[str], counts: Mapping[str, Mapping[str, int]], truth: Mapping[str, int] | None
) -> dict[str, Any]:
    def share(of: Mapping[str, int]) -> dict[str, Any]:
        n = sum(of.values())
        return {"share": sum(of.get(word, 0) for word in words) / n, "n": n}

    given = {name: share(of) for name, of in counts.items()}
    return {"label": title or "(nothing)", "given": given, "truth": share(truth)["share"] if truth else None}


def _baseline(rows: Sequence[Mapping[str, Any]]) -> str:
    values = [cell["baseline"] for cell in rows]
    low, high = points(min(values)), percent(max(values))
    return high if high.startswith(low) else f"{low} to {high}"
