"""With contrast: what every setting gained, what each protocol would have chosen, and what is advised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from probes.references import TEXT, VISION, name_of
from probes.report import figures
from probes.report.charts import heat
from probes.report.prose import interval, listed, points, probability, settings, span
from probes.report.section import Report, Result, Section
from probes.report.summary import Row, protocol_names, summarise, title_of
from probes.report.values import (
    Count,
    Fraction,
    Interval,
    Outcome,
    Part,
    Signed,
    Tested,
    Whole,
    agrees,
    differs,
    model_validator,
    unexpected,
)
from tccd.errors import DataError, require


class Setting(Outcome, Tested):
    """One setting of contrast and its gain: `helped` wrong answers put right, `harmed` right ones made wrong.

    `reference` says what was contrasted with; those of centroids have a layer, `k` and `alpha_interp`, others the
    settings of their kind (`probes.references`). Reports of before have TCCD's alone, and don't name it.
    """

    model: str
    reference: str = TEXT
    layer: Whole | None = None
    k: Count | None = None
    alpha_interp: Fraction | None = None
    weights: list[float] | None = None
    color: str | None = None
    step: Whole | None = None
    layers: str | int | None = None
    words: str | None = None
    alpha_cd: float
    beta: Fraction
    gate: str | None
    gate_threshold: Fraction
    gate_ramp: Fraction
    delta: Signed
    ci95: Interval
    p_value: Fraction
    helped: Whole
    harmed: Whole

    @model_validator(mode="after")
    def _agrees(self) -> Setting:
        missing = [name for name in ("layer", "k", "alpha_interp") if getattr(self, name) is None]
        if missing and self.reference in (TEXT, VISION):
            raise unexpected(f" lacks {', '.join(missing)}, which a reference of centroids has")
        differs(self, "delta", 1)
        agrees(self)
        return self


class Drawn(Setting):
    """A setting measured once more with something else in its reference's place.

    `kind` is `random-direction`: each state moved as far as its centroid would move it, in a random direction.
    `setting` is the number of the setting in `tccd_cells`.
    """

    kind: Literal["random-direction"]
    setting: Whole


class Protocol(Part):
    """What an alpha protocol chose: by task, the number of a setting in `tccd_cells` and its gain. One with
    `oracle` is an oracle upper bound.
    """

    name: Literal["fixed", "cv", "best"]
    oracle: bool
    note: str
    chosen: dict[str, Whole]
    values: dict[str, Signed]
    mean: Signed
    n_positive: Whole


class Contrast(Part):
    """Settings in the order that they were measured, their controls, and protocols by model."""

    tccd_cells: list[Setting] = []
    tccd_controls: list[Drawn] = []
    protocols: dict[str, list[Protocol]] = {}


#: What stands apart from a reference's settings: its name, and where its bank lies.
_APART = {"reference", "bank"}


class ContrastSection(Section):
    """Advice with its held-out evidence, gains by protocol, and gains by layer and dose."""

    name = "contrast"
    data = Contrast
    heavy = frozenset({"right"})
    adjusted = ("tccd_cells", "tccd_controls")
    evidence = ("tccd_cells",)

    def check(self, result: Result) -> None:
        """Protocols choose settings of their model, and controls are of such."""
        cells = result.get("tccd_cells") or ()
        for index, control in enumerate(result.get("tccd_controls") or ()):
            at = control["setting"]
            if at >= len(cells) or cells[at]["model"] != control["model"]:
                raise DataError(f"result.tccd_controls[{index}] names setting {at}, which is none of its model's")
        for model, protocols in (result.get("protocols") or {}).items():
            for protocol in protocols:
                for task, at in protocol["chosen"].items():
                    if at >= len(cells) or cells[at]["model"] != model:
                        raise DataError(
                            f"result.protocols.{model}: {protocol['name']} chose tccd cell {at} for {task}, which "
                            "is none of its model's"
                        )

    def shifted(self, result: Result, before: Mapping[str, int]) -> dict[str, Any]:
        """Settings are numbered on from those before."""
        found = super().shifted(result, before)
        if "tccd_controls" in found:
            first = before["tccd_cells"]
            found["tccd_controls"] = [{**row, "setting": row["setting"] + first} for row in found["tccd_controls"]]
        for model, protocols in found.get("protocols", {}).items():
            moved = [
                {**p, "chosen": {task: at + before["tccd_cells"] for task, at in p["chosen"].items()}}
                for p in protocols
            ]
            found["protocols"] = {**found["protocols"], model: moved}
        return found

    def answer(self, report: Report) -> list[str]:
        """What is recommended, over all models."""
        return advised([row["advice"] for row in report.of(summarise) if row["advice"]])

    def context(self, report: Report) -> Mapping[str, Any] | None:
        """Advice, protocols and gains of every model."""
        summary = report.of(summarise)
        shown = {
            "advice": [_told(index, row["advice"]) for index, row in enumerate(summary) if row["advice"]],
            "protocols": _protocols(summary),
            "protocol_names": protocol_names(summary),
            "gains": _gains(report.result, summary),
        }
        return shown if any(shown.values()) else None


def advised(advice: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is recommended, over all models: on where the held-out gain is above zero."""
    sentences = []
    for found in (one for one in advice if one["on"]):
        held_out = found["held_out"]
        bounds = interval(held_out["ci95"], True)
        gain = f"{points(held_out['delta'], True)} points on held-out pictures, 95\u202f% CI {bounds}"
        # In a sentence only what was turned on.
        shown = {k: v for k, v in found["settings"].items() if k not in _APART and (k != "beta" or v)}
        told = f"Contrast with {found['settings']['reference']} is recommended for {found['model']}"
        sentences.append(f"{told} at {settings(shown)} ({gain}).")
    off = [f"{one['model']} ({_unsure(one)})" for one in advice if not one["on"]]
    if off:
        sentences.append(f"Contrast is best left off for {listed(off)}.")
    return sentences


def _told(index: int, advice: Mapping[str, Any]) -> dict[str, Any]:
    """Advice whose settings stand beside their reference's name, with a drawing where there are several."""

    def own(of: Mapping[str, Any] | None) -> dict[str, Any]:
        return {key: value for key, value in (of or {}).items() if key not in _APART}

    each = [{**one, "own": own(one["settings"])} for one in advice["by_reference"]]
    rows = [(one["reference"], one["held_out"]["delta"], one["held_out"]["ci95"]) for one in each]
    svg = ""
    if len(rows) > 1:
        label = f"Gain on held-out pictures by reference, {advice['model']}."
        svg = require("markupsafe", "report").Markup(figures.changes(rows, label, f"reference{index}-"))
    return {**advice, "own": own(advice["settings"]), "by_reference": each, "svg": svg}


def _unsure(advice: Mapping[str, Any]) -> str:
    held_out, settings_tried = advice["held_out"], advice["n_settings"]
    gain = f"{points(held_out['delta'], True)} points on held-out pictures"
    bounds = f"95\u202f% CI {interval(held_out['ci95'], True)}"
    # The interval is of one choice; the test knows of all that were tried.
    many = f" for the best of {settings_tried} settings" if settings_tried > 1 else ""
    return f"{gain}, {bounds}; p {probability(advice['p_adjusted'])}{many}"


def _protocols(summary: Sequence[Row]) -> list[dict[str, Any]]:
    """Mean gain of each protocol and its gain by task, a table a model."""
    found = []
    for row in summary:
        if row["protocols"]:
            names = list(dict.fromkeys(task for p in row["protocols"] for task in p["values"]))
            rows = [{**p, "title": title_of(p)} for p in row["protocols"]]
            found.append({"model": row["model"], "tasks": names, "rows": rows})
    return found


def _gains(result: Result, summary: Sequence[Row]) -> list[dict[str, Any]]:
    """Layer x alpha_interp: what text-centroid gained at the `alpha_cd` of the fixed protocol, by model."""
    found = []
    # One scale for all models; changes of a point or two stay pale on it.
    every = result.get("tccd_cells") or ()
    erased = [c for c in every if name_of(c) == TEXT]
    top = max((abs(c["delta"]) for c in erased), default=0)
    for row in summary:
        cells = [c for c in erased if c["model"] == row["model"]]
        if not cells:
            continue
        fixed = next((p for p in row["protocols"] if p["name"] == "fixed" and p["chosen"]), None)
        like = every[next(iter(fixed["chosen"].values()))] if fixed else cells[0]
        same = ("k", "bank", "alpha_cd", "beta", "gate", "gate_threshold", "gate_ramp")
        at = {(c["layer"], c["alpha_interp"]): c for c in cells if all(c.get(k) == like.get(k) for k in same)}
        alphas, layers = sorted({a for _, a in at}), sorted({layer for layer, _ in at})
        rows = [
            {"head": layer, "cells": [heat(at.get((layer, a)), "delta", top) for a in alphas]} for layer in layers
        ]
        n = span(c["n"] for c in at.values())
        found.append({"model": row["model"], "columns": alphas, "rows": rows, "n": n, "like": like})
    return found
