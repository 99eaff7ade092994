"""Numbers, settings and lists in words: what the sentences of all sections are made of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from probes.statistics.intervals import SIGNIFICANT


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


def settings(values: Mapping[str, Any]) -> str:
    """Settings in one line, `layer = 3, k = 8`, without those that are None, or of a gate that is not there."""
    gated = values.get("gate") is not None
    shown = {k: v for k, v in values.items() if v is not None and (gated or not k.startswith("gate_"))}
    return ", ".join(f"{name}\u00a0=\u00a0{_value(value)}" for name, value in shown.items())


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def shown(value: Any) -> str:
    """One value of a setting in a table; nothing for None."""
    if isinstance(value, list):
        return " ".join(map(shown, value))
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def shared(block: Mapping[str, Any]) -> str:
    """What the questions of a block share: `500 pictures, 107 question strings`."""
    told = f"{block['pictures']:,} pictures"
    strings = block.get("question_strings")
    return told if strings is None else f"{told}, {strings:,} question strings"
