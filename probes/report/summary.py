"""What a report says of each model, side by side: one row a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from probes.advise import advise, can_advise
from probes.report.headline import headline
from probes.statistics.intervals import wilson
from probes.statistics.protocols import (
    NOTES,
    SETTINGS,
    Protocol,
    Table,
    leave_one_model_out,
    mildest_first,
    settings_of,
)

Row = dict[str, Any]


def summarise(result: Mapping[str, Any]) -> list[Row]:
    """One row a model, ordered by family: what the summary table, its CSV and `tccd probe compare` show.

    Returns:
        `{"model", "family", "parameters", "accuracy": {...}, "blind", "majority", "text", "vision": headline
        cells, "headline", "ratio", "dose_matched", "entropy": {"truth", "clean", "text", "vision"}, "protocols":
        [{...}], "run": the demo's held-out block, "advice"}`, None where a report doesn't hold it.
    """
    across = leave_one_model_out_of(result)
    rows = []
    for name, model in result["models"].items():
        chosen = headline(result, name)
        ratio = (result.get("ratio") or {}).get(name)
        protocols = [dict(protocol) for protocol in (result.get("protocols") or {}).get(name, ())]
        if across:
            protocols.append(across[name])
        rows.append(
            {
                "model": name,
                "family": model.get("family"),
                "description": model["description"],
                "parameters": model.get("parameters"),
                "accuracy": model["accuracy"],
                "blind": _guess(model.get("blind")),
                "majority": _guess(model.get("majority")),
                "headline": chosen,
                "text": chosen and chosen.text,
                "vision": chosen and chosen.vision,
                "ratio": ratio,
                "dose_matched": ratio and ratio.get("dose_matched"),
                "entropy": {
                    "truth": _entropy(model, "truth"),
                    "clean": _entropy(model, "labels"),
                    "text": _entropy(chosen.text if chosen else None, "labels"),
                    "vision": _entropy(chosen.vision if chosen else None, "labels"),
                },
                "protocols": protocols,
                "run": (result.get("tccd") or {}).get(name),
                "advice": advise(result, name) if can_advise(result, name) else None,
            }
        )
    return sorted(rows, key=lambda row: row["family"] or "")


def leave_one_model_out_of(result: Mapping[str, Any]) -> dict[str, Row]:
    """Each model at the settings with the best mean over the *other* models of the report.

    Settings are compared where every model was measured at them. Where each model was measured at one layer
    only, or with one K, these are no part of the settings: what is carried over is then the dose.

    Returns:
        By model a protocol as the report's others; empty with fewer than two models or no setting in common.
    """
    cells: dict[str, Sequence[Mapping[str, Any]]] = {
        name: [c for c in result.get("tccd_cells") or () if c["model"] == name and c.get("by_task")]
        for name in result["models"]
    }
    if len(cells) < 2 or not all(cells.values()):
        return {}
    names = [
        name
        for name in SETTINGS
        if name != "bank"
        and not (name in ("layer", "k") and all(len({c.get(name) for c in row}) == 1 for row in cells.values()))
    ]
    by_key = {m: {tuple(_hashable(c.get(name)) for name in names): c for c in row} for m, row in cells.items()}
    first = next(iter(by_key.values()))
    shared = [key for key in first if all(key in row for row in by_key.values())]
    # Keys as ranks from the mildest: ties go to it.
    order = [id(cell) for cell in mildest_first([first[key] for key in shared])]
    ranked = sorted(shared, key=lambda key: order.index(id(first[key])))
    if not ranked:
        return {}
    tables: dict[str, Table] = {}
    for model, row in by_key.items():
        tasks: dict[str, dict[float, float]] = {}
        for rank, key in enumerate(ranked):
            for part in row[key]["by_task"]:
                tasks.setdefault(part["task"], {})[rank] = part["accuracy"] - part["baseline"]
        tables[model] = tasks
    protocol = leave_one_model_out(tables)
    return {model: _across(protocol, model, by_key[model][ranked[int(r)]]) for model, r in protocol.chosen.items()}


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def flat_model(row: Row) -> Row:
    """A row of `summarise` as one row of plain values, named as in `report-models.csv`."""
    chosen, advice, mean = row["headline"], row["advice"], {p["name"]: p["mean"] for p in row["protocols"]}
    flat = {name: row[name] for name in ("model", "family", "parameters")}
    flat |= {"n": row["accuracy"]["n"]} | _bounded("accuracy", row["accuracy"], "accuracy")
    flat |= {name: row[name] and row[name]["accuracy"] for name in ("blind", "majority")}
    if chosen:
        flat |= {name: getattr(chosen, name) for name in ("layer", "vision_layer", "k", "alpha_interp")}
    for modality in ("text", "vision"):
        flat |= _bounded(modality, row[modality], "cost", value=f"{modality}_cost")
    flat |= _bounded("ratio", row["ratio"], "ratio")
    flat |= _bounded("dose_matched", row["dose_matched"], "ratio", value="dose_matched_ratio")
    flat |= {f"entropy_{name}": value for name, value in row["entropy"].items()}
    for name in ("fixed", "cv", "leave-one-model-out"):
        flat["delta_" + name.replace("-", "_")] = mean.get(name)
    flat["delta_best_oracle_upper_bound"] = mean.get("best")
    if advice:
        flat |= {
            "advice": "on" if advice["on"] else "off",
            "runner_up": (advice["runner_up"] or {}).get("reference"),
        }
        flat |= {"advised_reference": (advice["settings"] or {}).get("reference")}
        flat |= {"held_out_p_value": advice["held_out"]["p_value"]}
        flat |= _bounded("held_out", advice["held_out"], "delta", value="held_out_delta")
    return flat


def _bounded(prefix: str, block: Mapping[str, Any] | None, key: str, value: str | None = None) -> Row:
    if not block:
        return {}
    low, high = block.get("ci95") or (None, None)
    return {value or prefix: block[key], f"{prefix}_low": low, f"{prefix}_high": high}


def protocol_names(summary: Sequence[Row]) -> list[dict[str, Any]]:
    """The protocols that any model has, in the order that they come in."""
    found = {
        p["name"]: {"name": p["name"], "title": title_of(p), "note": p["note"]}
        for row in summary
        for p in row["protocols"]
    }
    return list(found.values())


def title_of(protocol: Mapping[str, Any]) -> str:
    """An oracle never goes without its name."""
    return f"{protocol['name']} (oracle upper bound)" if protocol["oracle"] else protocol["name"]


def _across(protocol: Protocol, model: str, cell: Mapping[str, Any]) -> Row:
    values = {part["task"]: part["accuracy"] - part["baseline"] for part in cell["by_task"]}
    return {
        "name": protocol.name,
        "oracle": False,
        "note": NOTES[protocol.name],
        "settings": settings_of(cell),
        "values": values,
        "mean": protocol.values[model],
        "n_positive": sum(value > 0 for value in values.values()),
    }


def _guess(block: Mapping[str, Any] | None) -> Row | None:
    if not block:
        return None
    if block.get("ci95"):
        return dict(block)
    return {**block, "ci95": list(wilson(round(block["accuracy"] * block["n"]), block["n"]))}


def _entropy(of: Mapping[str, Any] | None, key: str) -> float | None:
    return ((of or {}).get(key) or {}).get("entropy")
