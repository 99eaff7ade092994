"""What a coverage report says in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probes.report.prose import listed, percent

NAMES = {
    "vision": "vision codes",
    "text": "text codes",
    "pairs": "pairs of a vision and a text code",
    "facts": "facts",
}


def answer(result: Mapping[str, Any]) -> list[str]:
    """The result in a few sentences."""
    cells = {(row["set"], row["codebook"]): row for row in result["coverage"]}
    names = [one["name"] for one in result["sets"]]
    found = []
    for name in names:
        told = [
            f"{percent(cells[name, book]['rarefied']['value'])} of the {NAMES[book]}"
            for book in ("vision", "text")
        ]
        told.append(f"{percent(cells[name, 'pairs']['rarefied']['value'])} of their pairs")
        found.append(f"{name}: {result['equal_n']:,} pictures cover {listed(told)}.")
    for row in result["between"]:
        if row["codebook"] == "pairs":
            found.append(
                f"Of the pairs that {row['set']} hits, {percent(row['novelty']['value'])} "
                f"are new to {row['given']}."
            )
    return found


def compared(result: Mapping[str, Any]) -> list[str]:
    """Differences that are larger than chance gives, one sentence each."""
    found = []
    for row in result["between"]:
        bounds = row["more"]["ci95"]
        if bounds and bounds[0] > 0 and row["codebook"] != "facts":
            found.append(
                f"{row['set']} covers {100 * row['more']['value']:.1f} points more of the "
                f"{NAMES[row['codebook']]} than {row['given']} (95 % interval "
                f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f})."
            )
    return found
