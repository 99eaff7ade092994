"""The census as a page of the documentation: rows to Markdown and back."""

from __future__ import annotations

import math
import re
import textwrap
from pathlib import Path

from tests.census.architectures import Architecture
from tests.census.judge import LAYER, SCENES, STEPS, TOLERANCE, Verdict

PAGE = Path(__file__).parents[2] / "docs" / "families.md"

_INTRODUCTION = (
    """A *family* is an architecture of transformers. tccd knows none by its name: it finds the parts of a model
    by their structure, and what it can't decode exactly it refuses before the first token. This page says which is
    which. Of the {architectures} architectures that transformers {version} takes for "image and text to text",
    **{exact} are exact and {refused} are refused**. Of {variants} variants, whose decoder layers differ from those
    of the default config, {exact_variants} are exact and {refused_variants} are refused. {neither}.""",
    """Each was built tiny from its config, with random weights, and decoded greedily for {steps} tokens under two
    references, `text-centroid` (after layer {layer}, counted from 0, of 5) and `no-vision`, in {scenes} scenes:
    {names}. Every logit was compared with that of two whole forwards without a cache. *Difference* is the largest
    difference found. *Plain* is the largest for plain cached decoding, or five fp32 roundings of the largest logit
    if that is more: what rounding does alone. A contrast is
    exact here if it differs by {tolerance} at most, or by 8 times what rounding does.""",
    """`make census` makes this page anew, in minutes on two CPU cores; `python -m tests.census llava` judges one
    row. `make test` judges a sample.""",
)
_EXACT = """
## Exact

| architecture | class | difference | plain |
|---|---|---|---|
"""
_REFUSED = """
## Refused

| architecture | class | why |
|---|---|---|
"""
_LEFT_OUT = """
## Scenes that a model can't do by itself

Transformers' own plain decoding fails there, so nothing was compared.

"""


def written(verdicts: dict[Architecture, Verdict], version: str) -> str:
    """The page.

    Args:
        verdicts: every row of the census.
        version: of transformers.
    """
    exact = {row: one for row, one in verdicts.items() if one.outcome == "exact"}
    others = {row: one for row, one in verdicts.items() if one.outcome != "exact"}
    refused = {row for row, one in others.items() if one.outcome == "refused"}
    variants = {row for row in verdicts if ":" in row.name}
    neither = [row.name for row in others if row not in refused]
    told = {
        "version": version,
        "architectures": len(verdicts) - len(variants),
        "exact": len(exact.keys() - variants),
        "refused": len(refused - variants),
        "variants": len(variants),
        "exact_variants": len(exact.keys() & variants),
        "refused_variants": len(refused & variants),
        "neither": f"**Neither: {', '.join(neither)}**" if neither else "None is wrong",
        "steps": STEPS,
        "layer": LAYER,
        "scenes": _number(len(SCENES)),
        "names": ", ".join(SCENES),
        "tolerance": f"{TOLERANCE:.0e}",
    }
    text = "# Which families\n" + "".join(f"\n{_paragraph(one.format(**told))}\n" for one in _INTRODUCTION)
    text += _EXACT + "".join(_line(row, _figure(one.error), _figure(one.noise)) for row, one in exact.items())
    text += _REFUSED + "".join(_line(row, _why(row, one)) for row, one in others.items())
    left_out = {row: one.left_out for row, one in exact.items() if one.left_out}
    if left_out:
        text += _LEFT_OUT + "".join(f"- `{row.name}`: {'; '.join(some)}\n" for row, some in left_out.items())
    return text


def read(text: str) -> dict[str, Verdict]:
    """The verdicts of a page by their rows' names, as far as it tells them.

    Args:
        text: what `written` returned.
    """
    found: dict[str, Verdict] = {}
    for section in text.split("\n## ")[1:]:
        title = section.split("\n")[0]
        for name, cells in re.findall(r"^\| `(.*?)` \| `.*?` \| (.*) \|$", section, re.MULTILINE):
            if title == "Exact":
                error, noise = map(float, cells.split(" | "))
                found[name] = Verdict("exact", "", error, noise)
            else:
                failed = re.match(r"\*\*(.*?)\*\* (.*)", cells)
                outcome, reason = failed.groups() if failed else ("refused", cells)
                found[name] = Verdict(outcome, reason.replace(r"\|", "|"))
        for name, scenes in re.findall(r"^- `(.*?)`: (.*)$", section, re.MULTILINE):
            found[name].left_out = scenes.split("; ")
    return found


def shown(row: Architecture, verdict: Verdict) -> Verdict:
    """A verdict as a page tells it: figures rounded, and the model's class not said twice."""
    figures = [float(_figure(value)) for value in (verdict.error, verdict.noise)]
    reason = verdict.reason.removeprefix(f"{row.model}: ")
    return Verdict(verdict.outcome, reason, *figures, list(verdict.left_out))


def _line(row: Architecture, *cells: str) -> str:
    return f"| `{row.name}` | `{row.model}` | {' | '.join(cells)} |\n"


def _why(row: Architecture, verdict: Verdict) -> str:
    told = shown(row, verdict).reason.replace("|", r"\|")
    return told if verdict.outcome == "refused" else f"**{verdict.outcome}** {told}"


def _figure(value: float) -> str:
    return "nan" if math.isnan(value) else f"{value:.0e}"


def _number(count: int) -> str:
    return {2: "two", 3: "three", 4: "four", 5: "five"}.get(count, str(count))


def _paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 115, break_on_hyphens=False)
