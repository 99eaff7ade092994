"""The page's tables and examples: rows that its template fills in, from a result and its summary."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from probes.report.pairs import MEASURES, between_costs, between_models
from probes.report.pictures import small
from probes.report.prose import span
from probes.report.summary import Row
from probes.statistics.intervals import holm

MOST_ROWS = 400
"""Rows of a table on the page; the CSV has all of them."""
MOST_EXAMPLES = 24


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


def controls(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each controlled cell beside its controls, and text beside vision at an equal dose; by model."""
    tables: dict[str, dict[str, Any]] = {}
    for control in result.get("controls") or ():
        table = tables.setdefault(control["model"], {"kinds": [], "rows": {}, "matched": [], "counts": set()})
        cell, against = result["cells"][control["cell"]], control.get("against")
        table["counts"].add(control["n"])
        if against is not None:
            other = result["cells"][against]
            table["matched"].append(
                {**control, "other": other, "difference": between_costs(result, control, other)}
            )
            continue
        if control["kind"] not in table["kinds"]:
            table["kinds"].append(control["kind"])
        row = table["rows"].setdefault(control["cell"], {"cell": cell, "controls": {}})
        row["controls"][control["kind"]] = {**control, "difference": between_costs(result, control, cell)}
    return [
        {**of, "model": model, "rows": list(of["rows"].values()), "n": span(of["counts"])}
        for model, of in tables.items()
    ]


def differences(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every two models by their differences over the same questions: a row a pair, a column a measure."""
    pairs: dict[tuple[str, str], dict[str, Any]] = {}
    for row in between_models(result):
        one, other = row["models"]
        pair = pairs.setdefault((one, other), {"one": one, "other": other, "n": row["n"], "by": {}})
        pair["by"][row["measure"]] = row
    return list(pairs.values())


def measures(pairs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The measures that any pair of models has, with their titles."""
    return {key: title for key, title in MEASURES.items() if any(key in pair["by"] for pair in pairs)}


def protocols(summary: Sequence[Row]) -> list[dict[str, Any]]:
    """Mean gain of each protocol and its gain by task, a table a model."""
    found = []
    for row in summary:
        if row["protocols"]:
            names = list(dict.fromkeys(task for p in row["protocols"] for task in p["values"]))
            rows = [{**p, "title": _title(p)} for p in row["protocols"]]
            found.append({"model": row["model"], "tasks": names, "rows": rows})
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
