"""The answer in plain sentences, computed from the numbers and right for either sign."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from probes.report.headline import Cell, headline
from probes.report.pairs import larger
from probes.statistics.intervals import SIGNIFICANT

NEAR_ZERO = (
    "The vision cost is near zero, so this ratio is unsure, and most of all upwards: the smaller the true vision "
    "cost, the larger the true ratio, without limit. A ratio is only given where the vision cost came out above "
    "zero, so where the true vision cost is smaller still, the ratio given is too small."
)


def points(value: float, signed: bool = False) -> str:
    """A fraction as points with one decimal, a true minus, and no negative zero."""
    number = round(100 * value, 1) + 0.0
    return (f"{number:+.1f}" if signed and number else f"{number:.1f}").replace("-", "\u2212")


def minus(text: str) -> str:
    """A text whose negative numbers have a true minus."""
    return re.sub(r"(?<![\w.])-(?=\d)", "\u2212", text)


def percent(value: float) -> str:
    """A fraction as a percentage with one decimal."""
    return f"{points(value)}\u202f%"


def interval(bounds: Sequence[float], signed: bool = False) -> str:
    """An interval of fractions, in points."""
    return f"{points(bounds[0], signed)} to {points(bounds[1], signed)}"


def span(counts: Iterable[int]) -> str:
    """Counts in a caption: `120`, or `90 to 120` where they differ."""
    found = sorted(set(counts))
    return f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,} to {found[-1]:,}"


def probability(value: float) -> str:
    """A p-value with its relation sign: `= 0.012`, `= 3 × 10⁻¹²`."""
    if value >= 0.0095:
        return f"= {value:.2f}" if value >= 0.095 else f"= {value:.3f}"
    if value < 1e-300:
        return "< 10\u207b\u00b3\u2070\u2070"
    digit, exponent = f"{value:.0e}".split("e")
    if int(exponent) >= -4:
        return f"= {value:.4f}"
    raised = str(-int(exponent)).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"= {digit}\u202f\u00d7\u202f10⁻{raised}"


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def outcome(change: float, p_value: float | None) -> str:
    """`gain`, `loss` or `none`: a change counts only where its test is significant."""
    if p_value is None or p_value >= SIGNIFICANT or change == 0:
        return "none"
    return "gain" if change > 0 else "loss"


def answer(result: Mapping[str, Any]) -> list[str]:
    """The whole result in at most a handful of sentences, over all models."""
    return _cost_answer(result) + _tccd_answer(result)


def _cost_answer(result: Mapping[str, Any]) -> list[str]:
    groups: dict[str, list[str]] = {
        "Erasing text costs more accuracy than erasing vision": [],
        "Erasing text costs less accuracy than erasing vision": [],
        "The costs of erasing text and of erasing vision can't be told apart": [],
    }
    more, less, alike = groups.values()
    single = []
    for model in result["models"]:
        chosen = headline(result, model)
        if chosen is None:
            continue
        if chosen.text is None or chosen.vision is None:
            single.append(f"In the {model} model, {_erasing(chosen.text or chosen.vision)}.")
            continue
        text, vision = chosen.text, chosen.vision
        which, difference = larger(result, text, vision)
        pair = (
            f"{points(text['cost'])} against {points(vision['cost'])} points in the {model} model ({chosen.where}"
        )
        if difference is not None:
            pair += (
                f"; difference {points(difference.value, True)}, 95\u202f% CI "
                f"{interval((difference.low, difference.high), True)}"
            )
        (alike, more, less)[which].append(f"{pair})")
    return [f"{verdict}: {listed(pairs)}." for verdict, pairs in groups.items() if pairs] + single


def _tccd_answer(result: Mapping[str, Any]) -> list[str]:
    runs = result.get("tccd") or {}
    groups: dict[str, list[str]] = {"gain": [], "loss": [], "none": []}
    for model, run in runs.items():
        p_value = f"p {probability(run['p_value'])}"
        kind = outcome(run["delta"], run["p_value"])
        if kind == "none":
            told = f"the {model} model ({points(run['delta'], True)} points, {p_value})"
        else:
            told = f"{points(abs(run['delta']))} points on the {model} model ({p_value})"
        groups[kind].append(told)
    accuracy = (
        "accuracy on held-out pictures" if all(run.get("chosen_on") for run in runs.values()) else "accuracy"
    )
    verdicts = (
        ("gain", f"TCCD raised {accuracy} by"),
        ("loss", f"TCCD lowered {accuracy} by"),
        ("none", "TCCD made no significant change on"),
    )
    return [f"{verdict} {listed(groups[kind])}." for kind, verdict in verdicts if groups[kind]]


def advised(advice: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is recommended, over all models: on where the held-out gain is above zero."""
    sentences = []
    for found in (one for one in advice if one["on"]):
        held_out = found["held_out"]
        bounds = interval(held_out["ci95"], True)
        gain = f"{points(held_out['delta'], True)} points on held-out pictures, 95\u202f% CI {bounds}"
        # In a sentence only what was turned on, and not where the bank lies.
        shown = {k: v for k, v in found["settings"].items() if k != "bank" and (k != "beta" or v)}
        sentences.append(f"TCCD is recommended for {found['model']} at {settings(shown)} ({gain}).")
    off = [
        f"{one['model']} ({points(one['held_out']['delta'], True)} points on held-out pictures, "
        f"95\u202f% CI {interval(one['held_out']['ci95'], True)})"
        for one in advice
        if not one["on"]
    ]
    if off:
        sentences.append(f"TCCD is best left off for {listed(off)}.")
    return sentences


def settings(values: Mapping[str, Any]) -> str:
    """Settings in one line, `layer = 3, k = 8`, without those that are None, or of a gate that is not there."""
    gated = values.get("gate") is not None
    shown = {k: v for k, v in values.items() if v is not None and (gated or not k.startswith("gate_"))}
    return ", ".join(f"{name}\u00a0=\u00a0{_value(value)}" for name, value in shown.items())


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def shared(block: Mapping[str, Any]) -> str:
    """What the questions of a block share: `500 pictures, 107 question strings`."""
    told = f"{block['pictures']:,} pictures"
    strings = block.get("question_strings")
    return told if strings is None else f"{told}, {strings:,} question strings"


def unsure_ratio(vision: Cell | None) -> bool:
    """Whether the vision cost is so near zero that a ratio to it is unsure: its interval reaches half of it."""
    return vision is not None and vision["ci95"][0] < vision["cost"] / 2


def _erasing(cell: Cell | None) -> str:
    assert cell is not None
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


def findings(result: Mapping[str, Any], model: str) -> list[str]:
    """What was found for one model, in full sentences with n, interval and test."""
    sentences = []
    chosen = headline(result, model)
    if chosen is not None:
        for cell in (chosen.text, chosen.vision):
            if cell is not None:
                clause = _erasing(cell)
                sentences.append(clause[0].upper() + clause[1:] + ".")
    ratio = (result.get("ratio") or {}).get(model)
    if ratio and ratio["ratio"] is not None:
        bounds = ratio.get("ci95")
        within = f" (95\u202f% CI {bounds[0]:.1f} to {bounds[1]:.1f})" if bounds else ""
        times = f"{ratio['ratio']:.1f} times as much as vision{within}".replace("-", "\u2212")
        other = ratio.get("vision_layer", ratio["layer"])
        where = f"At layer {ratio['layer']}" + (f" (vision at layer {other})" if other != ratio["layer"] else "")
        sentences.append(f"{where} text cost {times}.")
        if unsure_ratio(chosen.vision if chosen else None):
            sentences.append(NEAR_ZERO)
    elif ratio:
        reason = (ratio.get("reason") or "no reason was recorded").removeprefix("not estimable: ")
        sentences.append(f"The ratio of text to vision cost is not estimable: {minus(reason)}.")
    run = (result.get("tccd") or {}).get(model)
    if run:
        sentences += _run_sentences(run)
    return sentences


def _run_sentences(run: Mapping[str, Any]) -> list[str]:
    on = "questions about held-out pictures" if run.get("chosen_on") else "questions"
    if "pictures" in run:
        on += f" ({shared(run)})"
    moved = f"from {percent(run['baseline'])} to {percent(run['accuracy'])}"
    evidence = f"95\u202f% CI {interval(run['ci95'], True)}; p {probability(run['p_value'])}"
    kind = outcome(run["delta"], run["p_value"])
    size = f"{points(run['delta'], True)} points, {evidence}"
    if kind == "none":
        first = f"TCCD made no significant change on {run['n']:,} {on}: {moved} ({size})."
    else:
        verb = "raised" if kind == "gain" else "lowered"
        first = f"TCCD {verb} accuracy on {run['n']:,} {on} {moved} ({size})."
    sentences = [first]
    if "helped" in run and "harmed" in run:
        sentences.append(
            f"It put {run['helped']:,} wrong answers right and {run['harmed']:,} right answers wrong."
        )
    return sentences
