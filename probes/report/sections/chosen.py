"""TCCD by really generating, at settings that were chosen on other pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from probes.report import figures
from probes.report.charts import share
from probes.report.figures import Group
from probes.report.prose import interval, listed, outcome, percent, points, probability, shared, span
from probes.report.section import Report, Section
from probes.report.values import (
    Count,
    Fraction,
    Interval,
    Outcome,
    Part,
    Signed,
    TaskOutcome,
    Whole,
    differs,
    model_validator,
)
from probes.statistics.clusters import Clusters
from tccd.errors import require


class Gained(Outcome):
    """A gain over plain decoding: `helped` wrong answers put right, `harmed` right ones made wrong."""

    delta: Signed
    ci95: Interval
    p_value: Fraction
    helped: Whole = 0
    harmed: Whole = 0

    @model_validator(mode="after")
    def _agrees(self) -> Gained:
        differs(self, "delta", 1)
        return self


class Subset(Gained):
    """The gain on some of the questions; `note` says which."""

    note: str = ""


class ChosenOn(Part):
    """The questions that the settings were chosen on."""

    n: Count


class Run(Gained):
    """One model at the settings."""

    settings: dict[str, Any]
    balanced: Subset | None = None
    minority: Subset | None = None
    by_task: list[TaskOutcome] = []
    chosen_on: ChosenOn | None = None


class Chosen(Part):
    """Runs by model, and their single questions."""

    tccd: dict[str, Run] = {}
    items: dict[str, list[dict[str, Any]]] = {}


class ChosenSection(Section):
    """Accuracy plain and with TCCD, in all, on subsets and by task."""

    name = "chosen"
    data = Chosen
    heavy = frozenset({"items"})
    evidence = ("tccd",)

    def answer(self, report: Report) -> list[str]:
        """What contrast did to each model."""
        runs = report.result.get("tccd") or {}
        groups: dict[str, list[str]] = {"gain": [], "loss": [], "none": []}
        for model, run in runs.items():
            p_value = f"p {probability(run['p_value'])}"
            kind = outcome(run["delta"], run["p_value"])
            if kind == "none":
                told = f"the {model} model ({points(run['delta'], True)} points, {p_value})"
            else:
                told = f"{points(abs(run['delta']))} points on the {model} model ({p_value})"
            groups[kind].append(told)
        held_out = all(run.get("chosen_on") for run in runs.values())
        accuracy = "accuracy on held-out pictures" if held_out else "accuracy"
        verdicts = (
            ("gain", f"TCCD raised {accuracy} by"),
            ("loss", f"TCCD lowered {accuracy} by"),
            ("none", "TCCD made no significant change on"),
        )
        return [f"{verdict} {listed(groups[kind])}." for kind, verdict in verdicts if groups[kind]]

    def findings(self, report: Report, model: str) -> list[str]:
        """From where to where, with what certainty."""
        run = (report.result.get("tccd") or {}).get(model)
        return _sentences(run) if run else []

    def context(self, report: Report) -> Mapping[str, Any] | None:
        """A table and bars by task a model."""
        markup = require("markupsafe", "report").Markup
        items = report.result.get("items") or {}
        found = [
            _shown(index, name, run, _outcomes(items.get(name) or ()), markup)
            for index, (name, run) in enumerate((report.result.get("tccd") or {}).items())
        ]
        return {"runs": found} if found else None


def _sentences(run: Mapping[str, Any]) -> list[str]:
    on = "questions about held-out pictures" if run.get("chosen_on") else "questions"
    if "pictures" in run:
        on += f" ({shared(run)})"
    moved = f"from {percent(run['baseline'])} to {percent(run['accuracy'])}"
    evidence = f"95\u202f% CI {interval(run['ci95'], True)}; p {probability(run['p_value'])}"
    kind = outcome(run["delta"], run["p_value"])
    size = f"{points(run['delta'], True)} points, {evidence}"
    if kind == "none":
        sentences = [f"TCCD made no significant change on {run['n']:,} {on}: {moved} ({size})."]
    else:
        verb = "raised" if kind == "gain" else "lowered"
        sentences = [f"TCCD {verb} accuracy on {run['n']:,} {on} {moved} ({size})."]
    if "helped" in run and "harmed" in run:
        put = f"{run['helped']:,} wrong answers right and {run['harmed']:,} right answers wrong"
        sentences.append(f"It put {put}.")
    return sentences


#: Task -> the clusters of its questions, and their outcomes by arm.
Outcomes = Mapping[str, tuple[Clusters, Mapping[str, np.ndarray]]]


def _outcomes(items: Any) -> Outcomes:
    """Of a report that holds single questions with what they show and ask; else nothing."""
    by_task: dict[str, list[Mapping[str, Any]]] = {}
    for item in items:
        if not {"task", "picture", "prompt", "answer", "plain", "tccd"} <= item.keys():
            return {}
        by_task.setdefault(item["task"], []).append(item)
    return {
        task: (
            Clusters.of([item["picture"] for item in of], [item["prompt"] for item in of]),
            {arm: np.array([item[arm] == item["answer"] for item in of]) for arm in ("plain", "tccd")},
        )
        for task, of in by_task.items()
    }


def _shown(
    index: int, name: str, run: Mapping[str, Any], outcomes: Outcomes, markup: Callable[[str], Any]
) -> dict[str, Any]:
    rows = [("all", run), ("balanced", run.get("balanced")), ("minority", run.get("minority"))]
    groups = []
    for part in run.get("by_task") or ():
        clusters, right = outcomes.get(part["task"], (None, {}))
        bars = [
            share(arm, part[key], part["n"], right.get(arm), clusters)
            for arm, key in (("plain", "baseline"), ("tccd", "accuracy"))
        ]
        groups.append(Group(part["task"], f"{points(part['baseline'])} → {points(part['accuracy'])}", bars))
    label = f"Accuracy by task, plain to TCCD, {name}."
    return {
        "model": name,
        "settings": run["settings"],
        "chosen_on": run.get("chosen_on"),
        "shared": shared(run) if "pictures" in run else None,
        "rows": [(title, row) for title, row in rows if row],
        "counted": any("helped" in row and "harmed" in row for _, row in rows if row),
        "n": span(part["n"] for part in run.get("by_task") or (run,)),
        "svg": markup(figures.bars(groups, label, f"run{index}-")) if groups else None,
    }
