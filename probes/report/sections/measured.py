"""Which models were measured, on what, and what they do without the image: each model in numbers, side by side."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from probes.report.data import told
from probes.report.pairs import MEASURES, between_models
from probes.report.section import Report, Section
from probes.report.summary import flat_model, protocol_names, summarise
from probes.report.tables import flat, table
from probes.report.values import Count, Fraction, Interval, Labels, Part, Whole, impossible, model_validator

DIFFERENCES = ("model", "other_model", "measure", "n", "difference", "low", "high", "p_value", "p_holm")
MODELS = (
    *("model", "family", "parameters", "n", "accuracy", "accuracy_low", "accuracy_high", "blind", "majority"),
    *("layer", "vision_layer", "k", "alpha_interp", "text_cost", "text_low", "text_high", "vision_cost"),
    *("vision_low", "vision_high", "ratio", "ratio_low", "ratio_high", "dose_matched_ratio", "dose_matched_low"),
    *("dose_matched_high", "entropy_truth", "entropy_clean", "entropy_text", "entropy_vision"),
    *("delta_fixed", "delta_cv", "delta_best_oracle_upper_bound", "delta_leave_one_model_out"),
    *(
        "advice",
        "advised_reference",
        "runner_up",
        "held_out_delta",
        "held_out_low",
        "held_out_high",
        "held_out_p_value",
    ),
)


class Accuracy(Part):
    """Right answers of n, and how many pictures and question strings the questions share."""

    n: Count
    correct: Whole
    accuracy: Fraction
    ci95: Interval
    pictures: Count = 1
    question_strings: Count = 1

    @model_validator(mode="after")
    def _counts(self) -> Accuracy:
        if self.correct > self.n or not math.isclose(self.accuracy, self.correct / self.n, abs_tol=1e-3):
            raise impossible(f".accuracy = {self.accuracy!r}, but {self.correct} of {self.n} are correct")
        return self


class Guess(Part):
    """Accuracy of some other way to answer. `kind` says which."""

    n: Count
    accuracy: Fraction
    kind: str = ""


class TaskGuess(Part):
    """One task's share of it."""

    task: str
    n: Count
    accuracy: Fraction


class Blind(Guess):
    """Accuracy without the image. `kind` says how it was withheld."""

    correct: Whole = 0
    ci95: Interval = []
    by_task: list[TaskGuess] = []
    labels: Labels | None = None


class Model(Part):
    """One model: what it is, and what it answers. `labels` are its answers, `truth` the right ones."""

    description: str
    accuracy: Accuracy
    blind: Blind | None = None
    majority: Guess | None = None
    parameters: Count | None = None
    family: str = ""
    labels: Labels | None = None
    truth: Labels | None = None


class Fitted(Part):
    """Pictures that a bank was fitted on, and how many of the report's are among them; None where not known."""

    pictures: Whole | None
    overlap: Whole | None


class Data(Part):
    """Questions, distinct image ids, distinct pictures, ids beyond those, and the banks by name."""

    questions: Count
    images: Count
    pictures: Count
    copies: Whole
    banks: dict[str, Fitted]


class Measured(Part):
    """`models` describes each; every other part of a report is about these."""

    models: dict[str, Model]
    data: dict[str, Data] = {}

    @model_validator(mode="after")
    def _some(self) -> Measured:
        if not self.models:
            raise impossible(".models is empty; expected at least one model")
        return self


class MeasuredSection(Section):
    """The summary: one column a model, then what was found of each in words."""

    name = "measured"
    data = Measured
    files: ClassVar[Mapping[str, str]] = {
        "report-models.csv": "one row a model: costs, ratio, protocols, advice",
        "report-differences.csv": "one row a pair of models and a measure",
    }

    def context(self, report: Report) -> Mapping[str, Any]:
        """The summary table, and the models by their differences."""
        summary = report.of(summarise)
        conditions = {row["headline"].conditions for row in summary if row["headline"]}
        pairs = _differences(report.of(between_models))
        return {
            "conditions": next(iter(conditions)) if len(conditions) == 1 else None,
            "models": summary,
            "families": _families(summary),
            "differences": pairs,
            "measures": {
                key: title for key, title in MEASURES.items() if any(key in pair["by"] for pair in pairs)
            },
            "withheld": sorted({r["blind"]["kind"] for r in summary if r["blind"] and "kind" in r["blind"]}),
            "protocol_names": protocol_names(summary),
            "data": told(report.result),
        }

    def tables(self, report: Report) -> Mapping[str, str]:
        """A row a model, and a row a pair of models and a measure."""
        return {
            "report-models.csv": table(MODELS, map(flat_model, report.of(summarise))),
            "report-differences.csv": table(DIFFERENCES, _flat_differences(report.of(between_models))),
        }


def _families(summary: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Families side by side with how many models each has; empty where none is named."""
    counted = Counter(row["family"] for row in summary)
    return [{"name": n or "other", "models": c} for n, c in counted.items()] if any(counted) else []


def _differences(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a pair, a column a measure."""
    pairs: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        one, other = row["models"]
        pair = pairs.setdefault((one, other), {"one": one, "other": other, "n": row["n"], "by": {}})
        pair["by"][row["measure"]] = row
    return list(pairs.values())


def _flat_differences(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        one, other = row["models"]
        yield {**flat(row), "model": one, "other_model": other}
