"""The page's parts: what its template fills in, from a result and its summary."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from probes.advise import outcomes_of
from probes.report import figures
from probes.report.figures import Bar, Group
from probes.report.pictures import small
from probes.report.prose import percent, points
from probes.report.summary import Row
from probes.statistics import PairedDifference, holm, paired_difference

MOST_ROWS = 400
"""Rows of a table on the page; the CSV has all of them."""
MOST_EXAMPLES = 24
MOST_LABELS = 8
HEAT = 45
"""Per cent of colour in a heat map's strongest cell: text on it stays readable."""
PALE = 0.05
"""A heat map's scale reaches at least this far: a map of nothing but noise is pale."""
Markup = Callable[[str], Any]


def families(summary: Sequence[Row]) -> list[dict[str, Any]]:
    """Families side by side with how many models each has; empty where none is named."""
    counted = Counter(row["family"] for row in summary)
    return [{"name": n or "other", "models": c} for n, c in counted.items()] if any(counted) else []


def protocol_names(summary: Sequence[Row]) -> list[dict[str, Any]]:
    """The protocols that any model has, in the order that they come in."""
    found = {
        p["name"]: {"name": p["name"], "title": _title(p), "note": p["note"]}
        for row in summary
        for p in row["protocols"]
    }
    return list(found.values())


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
        n = _range(c["n"] for of in chosen.by_layer.values() for c in of)
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
        n = _range(c["n"] for c in at.values())
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
            "n": _range(c["n"] for of in rows.values() for c in of),
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
        n = _range(part["n"] for of in rows for part in of["given"].values())
        entropy = {k: v for k, v in row["entropy"].items() if v is not None}
        found.append({"model": row["model"], "rows": rows, "n": n, "svg": svg, "entropy": entropy})
    return found


def controls(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each controlled cell beside its controls, and text beside vision at an equal dose; by model."""
    tables: dict[str, dict[str, Any]] = {}
    for control in result.get("controls") or ():
        table = tables.setdefault(control["model"], {"kinds": [], "rows": {}, "matched": [], "counts": set()})
        cell, against = result["cells"][control["cell"]], control.get("against")
        table["counts"].add(control["n"])
        if against is not None:
            other = result["cells"][against]
            table["matched"].append({**control, "other": other, "difference": _difference(other, control)})
            continue
        if control["kind"] not in table["kinds"]:
            table["kinds"].append(control["kind"])
        row = table["rows"].setdefault(control["cell"], {"cell": cell, "controls": {}})
        row["controls"][control["kind"]] = {**control, "difference": _difference(cell, control)}
    return [
        {**of, "model": model, "rows": list(of["rows"].values()), "n": _range(of["counts"])}
        for model, of in tables.items()
    ]


def _difference(cell: Mapping[str, Any], control: Mapping[str, Any]) -> PairedDifference | None:
    """The control's cost less the cell's, over the same questions."""
    if not cell.get("right") or not control.get("right"):
        return None
    return paired_difference(outcomes_of(cell["right"]), outcomes_of(control["right"]))


def protocols(summary: Sequence[Row]) -> list[dict[str, Any]]:
    """Mean gain of each protocol and its gain by task, a table a model."""
    found = []
    for row in summary:
        if row["protocols"]:
            names = list(dict.fromkeys(task for p in row["protocols"] for task in p["values"]))
            rows = [{**p, "title": _title(p)} for p in row["protocols"]]
            found.append({"model": row["model"], "tasks": names, "rows": rows})
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
                "rows": [(title, row) for title, row in rows if row],
                "counted": any("helped" in row and "harmed" in row for _, row in rows if row),
                "n": _range(part["n"] for part in run.get("by_task") or (run,)),
                "svg": markup(figures.bars(groups, label, f"run{index}-")) if groups else None,
            }
        )
    return found


def examples(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Examples with small pictures, the same number of each model."""
    by_model: dict[str, list[Mapping[str, Any]]] = {}
    for example in result.get("examples") or ():
        by_model.setdefault(example["model"], []).append(example)
    turns = itertools.zip_longest(*by_model.values())
    chosen = [example for turn in turns for example in turn if example is not None][:MOST_EXAMPLES]
    ordered = [example for model in by_model for example in chosen if example["model"] == model]
    return [_example(result, example) for example in ordered]


def cells(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All cells, a table a model."""
    tested = [cell for cell in result["cells"] if cell["p_value"] is not None]
    # One family: every cell of the report, over all models.
    adjusted = dict(zip(map(id, tested), holm([c["p_value"] for c in tested]), strict=True))
    rows = [{**cell, "p_holm": adjusted.get(id(cell))} for cell in result["cells"]]
    return _cut(rows, family=len(tested))


def contrasts(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All TCCD settings, a table a model, the largest gain first."""
    rows = sorted(result.get("tccd_cells") or (), key=lambda cell: -cell["delta"])
    return _cut(rows, family=len(rows))


def _cut(rows: Sequence[Mapping[str, Any]], family: int) -> list[dict[str, Any]]:
    by_model: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_model.setdefault(row["model"], []).append(row)
    most = MOST_ROWS // max(len(by_model), 1)
    return [
        {"model": model, "rows": of[:most], "n_rows": len(of), "family": family} for model, of in by_model.items()
    ]


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
        "sure": adjusted is not None and adjusted < 0.05,
    }


def _label(
    title: str, words: set[str], counts: Mapping[str, Mapping[str, int]], truth: Mapping[str, int] | None
) -> dict[str, Any]:
    def share(of: Mapping[str, int]) -> dict[str, Any]:
        n = sum(of.values())
        return {"share": sum(of.get(word, 0) for word in words) / n, "n": n}

    given = {name: share(of) for name, of in counts.items()}
    return {"label": title or "(nothing)", "given": given, "truth": share(truth)["share"] if truth else None}


def _title(protocol: Mapping[str, Any]) -> str:
    """An oracle never goes without its name."""
    return f"{protocol['name']} (oracle upper bound)" if protocol["oracle"] else protocol["name"]


def _example(result: Mapping[str, Any], example: Mapping[str, Any]) -> dict[str, Any]:
    truth = example["answer"].strip().casefold()

    def side(key: str, label: str, where: str, answer: str, words: Mapping[str, float] | None) -> dict[str, Any]:
        top = sorted((words or {}).items(), key=lambda word: (-word[1], word[0]))[:3]
        right = answer.strip().casefold() == truth
        return {"key": key, "label": label, "where": where, "answer": answer, "right": right, "words": top}

    clean = "nothing erased" if example.get("erased") else ""
    sides = [side("plain", "plain", clean, example["plain"], example.get("plain_probability"))]
    if "tccd" in example:
        sides.append(side("tccd", "TCCD", "", example["tccd"], example.get("tccd_probability")))
    for erased in example.get("erased") or ():
        cell = result["cells"][erased["cell"]]
        label = f"{cell['modality']} erased"
        sides.append(side(cell["modality"], label, f"layer {cell['layer']}", erased["answer"], None))
    return {**example, "image": small(example["image"]), "sides": sides}


def _baseline(rows: Sequence[Mapping[str, Any]]) -> str:
    values = [cell["baseline"] for cell in rows]
    low, high = points(min(values)), percent(max(values))
    return high if high.startswith(low) else f"{low} to {high}"


def _range(counts: Any) -> str:
    counts = sorted(set(counts))
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
