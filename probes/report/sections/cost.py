"""Centroid cost: the accuracy lost when a modality is replaced by its centroids, over layers and doses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from probes.pairing import Cell
from probes.report import figures
from probes.report.charts import baseline, heat
from probes.report.headline import headline
from probes.report.pairs import larger
from probes.report.prose import interval, listed, minus, outcome, points, probability, span
from probes.report.section import Report, Result, Section
from probes.report.summary import Row, summarise
from probes.report.values import (
    Count,
    Fraction,
    Interval,
    Outcome,
    Part,
    Positive,
    Signed,
    Tested,
    Whole,
    agrees,
    differs,
    model_validator,
)
from tccd.errors import ConfigError, require

NEAR_ZERO = (
    "The vision cost is near zero, so this ratio is unsure, and most of all upwards: the smaller the true vision "
    "cost, the larger the true ratio, without limit. A ratio is only given where the vision cost came out above "
    "zero, so where the true vision cost is smaller still, the ratio given is too small."
)


class Erased(Outcome, Tested):
    """An erasure of one modality after one layer, and what it cost. `displacement` is the mean norm of what it
    moved a state by.
    """

    model: str
    modality: Literal["text", "vision"]
    layer: Whole
    k: Count
    alpha_interp: float
    segment: str
    cost: Signed
    ci95: Interval
    p_value: Fraction | None
    displacement: Positive | None = None

    @model_validator(mode="after")
    def _agrees(self) -> Erased:
        differs(self, "cost", -1)
        agrees(self)
        return self


class Estimate(Part):
    """Text cost over vision cost, or the reason why it can't be estimated."""

    ratio: float | None
    ci95: Interval | None = None
    reason: str | None = None


class Ratio(Estimate):
    """That of the cells compared: at `layer` (text's) and `vision_layer`, where that is another one."""

    layer: Whole
    vision_layer: Whole = 0
    k: Count = 1
    alpha_interp: float = 0.0
    dose_matched: Estimate | None = None


class Cost(Part):
    """`cells` in the order that they were measured; other parts name them by their number."""

    cells: list[Erased] = []
    ratio: dict[str, Ratio] = {}


class CostSection(Section):
    """Cost by layer and modality, over the layers and over the dose."""

    name = "cost"
    data = Cost
    heavy = frozenset({"right"})
    adjusted = ("cells",)
    evidence = ("cells",)

    def check(self, result: Result) -> None:
        """What is measured beside cells has cells."""
        for part in ("ratio", "controls", "tccd_cells"):
            if result.get(part) and "cells" not in result:
                raise ConfigError(f"result lacks cells; it holds {part}, which is about cells")

    def answer(self, report: Report) -> list[str]:
        """Which modality costs more, over all models."""
        groups: dict[str, list[str]] = {
            "Erasing text costs more accuracy than erasing vision": [],
            "Erasing text costs less accuracy than erasing vision": [],
            "The costs of erasing text and of erasing vision can't be told apart": [],
        }
        more, less, alike = groups.values()
        single = []
        for model in report.result["models"]:
            chosen = headline(report.result, model)
            if chosen is None:
                continue
            text, vision = chosen.text, chosen.vision
            if text is None or vision is None:
                single.append(f"In the {model} model, {_erasing(text or vision or {})}.")
                continue
            which, difference = larger(report.result, text, vision)
            costs = f"{points(text['cost'])} against {points(vision['cost'])} points"
            pair = f"{costs} in the {model} model ({chosen.where}"
            if difference is not None:
                bounds = interval((difference.low, difference.high), True)
                pair += f"; difference {points(difference.value, True)}, 95\u202f% CI {bounds}"
            (alike, more, less)[which].append(f"{pair})")
        return [f"{verdict}: {listed(pairs)}." for verdict, pairs in groups.items() if pairs] + single

    def findings(self, report: Report, model: str) -> list[str]:
        """Both costs and their ratio."""
        chosen = headline(report.result, model)
        cells = [cell for cell in (chosen.text, chosen.vision) if cell] if chosen else []
        sentences = [(clause := _erasing(cell))[0].upper() + clause[1:] + "." for cell in cells]
        ratio = (report.result.get("ratio") or {}).get(model)
        if ratio and ratio["ratio"] is not None:
            sentences.append(_times(ratio))
            if unsure_ratio(chosen.vision if chosen else None):
                sentences.append(NEAR_ZERO)
        elif ratio:
            reason = (ratio.get("reason") or "no reason was recorded").removeprefix("not estimable: ")
            sentences.append(f"The ratio of text to vision cost is not estimable: {minus(reason)}.")
        return sentences

    def context(self, report: Report) -> Mapping[str, Any] | None:
        """Heat maps and curves of every model."""
        summary = report.of(summarise)
        heats = _heats(summary)
        markup = require("markupsafe", "report").Markup
        starred = any(cell and cell["sure"] for one in heats for row in one["rows"] for cell in row["cells"])
        shown = {"heats": heats, "starred": starred}
        shown |= {"layers": _curves(summary, "layer", markup), "doses": _curves(summary, "dose", markup)}
        return shown if heats else None


def unsure_ratio(vision: Cell | None) -> bool:
    """Whether the vision cost is so near zero that a ratio to it is unsure: its interval reaches half of it."""
    return vision is not None and vision["ci95"][0] < vision["cost"] / 2


def _times(ratio: Mapping[str, Any]) -> str:
    bounds = ratio.get("ci95")
    within = f" (95\u202f% CI {bounds[0]:.1f} to {bounds[1]:.1f})" if bounds else ""
    times = f"{ratio['ratio']:.1f} times as much as vision{within}".replace("-", "\u2212")
    other = ratio.get("vision_layer", ratio["layer"])
    where = f"At layer {ratio['layer']}" + (f" (vision at layer {other})" if other != ratio["layer"] else "")
    return f"{where} text cost {times}."


def _erasing(cell: Cell) -> str:
    bounds = f"95\u202f% CI {interval(cell['ci95'])}"
    if cell["p_value"] is not None:
        bounds += f"; p {probability(cell['p_value'])}"
    where = f"erasing {cell['modality']} at layer {cell['layer']}"
    kind = outcome(-cell["cost"], cell["p_value"])
    if kind == "none":
        verdict = "made no significant change" if cell["p_value"] is not None else "was not tested"
        return f"{where} {verdict} (cost {points(cell['cost'])} points, {bounds})"
    if kind == "loss":
        return f"{where} cost {points(cell['cost'])} points of accuracy ({bounds})"
    raised = f"raised accuracy by {points(-cell['cost'])} points"
    return f"{where} {raised} (cost {points(cell['cost'])}, {bounds})"


def _heats(summary: Sequence[Row]) -> list[dict[str, Any]]:
    """Layer x modality: a heat map a model."""
    shown = [row for row in summary if row["headline"]]
    costs = [c["cost"] for row in shown for of in row["headline"].by_layer.values() for c in of]
    top = max(map(abs, costs), default=0)
    found = []
    for row in shown:
        chosen = row["headline"]
        at = {m: {c["layer"]: c for c in of} for m, of in chosen.by_layer.items() if of}
        layers = sorted({layer for of in at.values() for layer in of})
        rows = [{"head": layer, "cells": [heat(at[m].get(layer), "cost", top) for m in at]} for layer in layers]
        n = span(c["n"] for of in chosen.by_layer.values() for c in of)
        found.append({"model": row["model"], "columns": list(at), "rows": rows, "n": n, "slice": chosen})
    return found


def _curves(summary: Sequence[Row], over: str, markup: Callable[[str], Any]) -> list[dict[str, Any]]:
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
            "baseline": baseline([c for of in rows.values() for c in of]),
            "svg": markup(draw(chosen, limits, f"{over}{index}-")),
        }
        for index, (model, chosen, rows) in enumerate(shown)
    ]
