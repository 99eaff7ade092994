"""A report as CSV tables: what the page shows, for other programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from probes.report.pairs import between_models
from probes.report.summary import Row
from probes.statistics.protocols import SETTINGS

_CELL = ("model", "modality", "layer", "k", "bank", "alpha_interp", "segment")


def csv_tables(result: Mapping[str, Any], summary: Sequence[Row]) -> dict[str, str]:
    """CSV text by file name; a table without rows is left out.

    `report-models.csv`: one row a model; `report-cells.csv`: one a measured cell or control;
    `report-tccd.csv`: one a TCCD setting; `report-tasks.csv`: one a task of any of these; `report-labels.csv`:
    one an answer given; `report-differences.csv`: one a pair of models and a measure; `report-questions.csv`:
    one a question.
    Accuracies, costs, deltas and their bounds are fractions.

    Args:
        result: a validated result.
        summary: of `probes.report.summary.summarise`.
    """
    erased = [{"control": None} | dict(c) for c in result["cells"]]
    erased += [{**c, "control": c["kind"]} for c in result.get("controls") or ()]
    contrasted = list(result.get("tccd_cells") or ())
    cells = (
        "control",
        *_CELL,
        "n",
        "baseline",
        "accuracy",
        "cost",
        "low",
        "high",
        "p_value",
        "p_independent",
        "p_holm",
        "clustered_by",
    )
    gains = (
        "model",
        *SETTINGS,
        "n",
        "baseline",
        "accuracy",
        "delta",
        "low",
        "high",
        "p_value",
        "p_independent",
        "p_holm",
        "clustered_by",
    )
    tables = {
        "report-models.csv": _csv(_MODEL, map(flat_model, summary)),
        "report-cells.csv": _csv((*cells, "displacement", "entropy"), map(_flat, erased)),
        "report-tccd.csv": _csv((*gains, "helped", "harmed", "entropy"), map(_flat, contrasted)),
        "report-tasks.csv": _csv(_TASK, _tasks([*erased, *contrasted])),
        "report-labels.csv": _csv(("model", "answered_by", "label", "questions"), _labels(result, summary)),
        "report-differences.csv": _csv(_DIFFERENCE, _differences(result)),
        "report-questions.csv": _csv(_QUESTION, _questions(result)),
    }
    return {name: text for name, text in tables.items() if text}


_MODEL = (
    *("model", "family", "parameters", "n", "accuracy", "accuracy_low", "accuracy_high", "blind", "majority"),
    *("layer", "vision_layer", "k", "alpha_interp", "text_cost", "text_low", "text_high", "vision_cost"),
    *("vision_low", "vision_high", "ratio", "ratio_low", "ratio_high", "dose_matched_ratio", "dose_matched_low"),
    *("dose_matched_high", "entropy_truth", "entropy_clean", "entropy_text", "entropy_vision"),
    *("delta_fixed", "delta_cv", "delta_best_oracle_upper_bound", "delta_leave_one_model_out"),
    *("advice", "held_out_delta", "held_out_low", "held_out_high", "held_out_p_value"),
)
_TASK = (
    *("control", *_CELL, "alpha_cd", "beta", "gate", "task", "n", "baseline", "accuracy", "cost", "delta"),
    *("low", "high"),
)
_DIFFERENCE = ("model", "other_model", "measure", "n", "difference", "low", "high", "p_value", "p_holm")
_QUESTION = ("model", "id", "image_id", "picture", "prompt", "task", "answer", "plain", "right", "blind_right")


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
        flat |= {"advice": "on" if advice["on"] else "off", "held_out_p_value": advice["held_out"]["p_value"]}
        flat |= _bounded("held_out", advice["held_out"], "delta", value="held_out_delta")
    return flat


def _bounded(prefix: str, block: Mapping[str, Any] | None, key: str, value: str | None = None) -> Row:
    if not block:
        return {}
    low, high = block.get("ci95") or (None, None)
    return {value or prefix: block[key], f"{prefix}_low": low, f"{prefix}_high": high}


def _flat(cell: Mapping[str, Any]) -> Row:
    low, high = cell.get("ci95") or (None, None)
    return {**cell, "low": low, "high": high, "entropy": (cell.get("labels") or {}).get("entropy")}


def _tasks(cells: Iterable[Mapping[str, Any]]) -> Iterable[Row]:
    for cell in cells:
        for part in cell.get("by_task") or ():
            change = part["accuracy"] - part["baseline"]
            named = {"delta": change} if "alpha_cd" in cell else {"cost": -change}
            yield {**cell, **named, **_flat(part)}


def _labels(result: Mapping[str, Any], summary: Iterable[Row]) -> Iterable[Row]:
    for row in summary:
        model = result["models"][row["model"]]
        for source, of, key in (
            ("truth", model, "truth"),
            ("clean", model, "labels"),
            ("text erased", row["text"], "labels"),
            ("vision erased", row["vision"], "labels"),
        ):
            for label, count in (((of or {}).get(key) or {}).get("counts") or {}).items():
                yield {"model": row["model"], "answered_by": source, "label": label, "questions": count}


def _differences(result: Mapping[str, Any]) -> Iterable[Row]:
    for row in between_models(result):
        one, other = row["models"]
        yield {**_flat(row), "model": one, "other_model": other}


def _questions(result: Mapping[str, Any]) -> Iterable[Row]:
    for model, columns in (result.get("questions") or {}).items():
        for index in range(len(columns["id"])):
            yield {"model": model} | {name: of[index] for name, of in columns.items() if name in _QUESTION}


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """CSV by RFC 4180, or nothing for no rows; a spreadsheet must not take a label for a formula."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\r\n")
    writer.writeheader()
    empty = True
    for row in rows:
        empty = False
        writer.writerow({name: _inert(row.get(name)) for name in columns})
    return "" if empty else out.getvalue()


def _inert(value: Any) -> Any:
    return "'" + value if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value
