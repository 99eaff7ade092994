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
    which. It covers the {architectures} architectures that transformers {version} takes for "image and text to
    text", and {variants} variants whose layers differ: **{exact} are exact and {refused} are refused**;
    {neither}.""",
    """Each was built tiny from its config, with random weights, and decoded greedily for {steps} tokens under two
    references, `text-centroid` (after layer {layer}, counted from 0, of 5) and `no-vision`, in {scenes} scenes:
    {names}. Every logit was compared with that of two whole forwards without a cache. *Difference* is the largest
    difference found. *Plain* is the largest for plain cached decoding: what rounding does alone. A contrast is
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
    refused = {row: one for row, one in verdicts.items() if one.outcome != "exact"}
    neither = [row.name for row, one in refused.items() if one.outcome != "refused"]
    told = {
        "architectures": len({row.key for row in verdicts}),
        "variants": sum(":" in row.name for row in verdicts),
        "version": version,
        "exact": len(exact),
        "refused": len(refused) - len(neither),
        "neither": f"neither: {', '.join(neither)}" if neither else "none is wrong",
        "steps": STEPS,
        "layer": LAYER,
        "scenes": _number(len(SCENES)),
        "names": ", ".join(SCENES),
        "tolerance": f"{TOLERANCE:.0e}",
    }
    text = "# Which families\n" + "".join(f"\n{_paragraph(one.format(**told))}\n" for one in _INTRODUCTION)
    text += _EXACT + "".join(_line(row, _figure(one.error), _figure(one.noise)) for row, one in exact.items())
    text += _REFUSED + "".join(_line(row, _why(row, one)) for row, one in refused.items())
    left_out = {row: one.left_out for row, one in exact.items() if one.left_out}
    if left_out:
        text += _LEFT_OUT + "".join(f"- `{row.name}`: {'; '.join(some)}\n" for row, some in left_out.items())
    return text


def read(text: str) -> dict[str, tuple[str, str]]:
    """Of each row of a page, by its name: the outcome, and why.

    Args:
        text: what `written` returned.
    """
    found = {}
    for section in text.split("\n## ")[1:]:
        outcome = section.split("\n")[0].lower()
        for name, *cells in re.findall(r"^\| `(.*?)` \| `.*?` \| (.*?) \|(?: .*? \|)?$", section, re.MULTILINE):
            found[name] = outcome, "" if outcome == "exact" else cells[0].replace(r"\|", "|")
    return found


def _paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 115, break_on_hyphens=False)


def _line(row: Architecture, *cells: str) -> str:
    return f"| `{row.name}` | `{row.model}` | {' | '.join(cells)} |\n"


def _why(row: Architecture, verdict: Verdict) -> str:
    prefix = f"{row.model}: "
    told = verdict.reason if verdict.outcome == "refused" else f"**{verdict.outcome}** {verdict.reason}"
    return told.removeprefix(prefix).replace("|", r"\|")


def why(row: Architecture, verdict: Verdict) -> tuple[str, str]:
    """Outcome and reason as `read` finds them."""
    return verdict.outcome, "" if verdict.outcome == "exact" else _why(row, verdict).replace(r"\|", "|")


def _figure(value: float) -> str:
    return "0" if value == 0 else "-" if math.isnan(value) else f"{value:.0e}"


def _number(count: int) -> str:
    return {2: "two", 3: "three", 4: "four", 5: "five"}.get(count, str(count))
