"""What charts of several sections share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from probes.report.figures import Bar
from probes.report.prose import percent, points
from probes.statistics.clusters import Clusters, clustered_wilson
from probes.statistics.intervals import SIGNIFICANT, wilson

HEAT = 45
"""Per cent of colour in a heat map's strongest cell: text on it stays readable."""
PALE = 0.05
"""A heat map's scale reaches at least this far: a map of nothing but noise is pale."""


def heat(cell: Mapping[str, Any] | None, key: str, top: float) -> dict[str, Any] | None:
    """A heat map's cell, or None where nothing was measured.

    Args:
        cell: with a cost or a gain.
        key: `cost` or `delta`.
        top: the largest absolute value of all maps that share a scale.
    """
    if cell is None:
        return None
    value = cell[key]
    harm = value > 0 if key == "cost" else value < 0
    adjusted = cell.get("p_holm")
    return {
        "value": value,
        "ci95": cell["ci95"],
        "hue": "harm" if harm else "help",
        "heat": round(HEAT * abs(value) / max(top, PALE)),
        "sure": adjusted is not None and adjusted < SIGNIFICANT,
    }


def share(
    colour: str, value: float, n: int, right: np.ndarray | None = None, clusters: Clusters | None = None
) -> Bar:
    """A bar with its 95 % interval: widened by what questions share where their outcomes are given.

    Args:
        colour: of the bar.
        value: its share.
        n: of so many.
        right: outcomes, boolean, shape (n,); None where the report doesn't hold them.
        clusters: of these questions.
    """
    if right is None or clusters is None:
        return Bar(colour, value, wilson(round(value * n), n))
    return Bar(colour, value, clustered_wilson(right, clusters))


def baseline(rows: Sequence[Mapping[str, Any]]) -> str:
    """Clean accuracy in a caption, or its range."""
    values = [cell["baseline"] for cell in rows]
    low, high = points(min(values)), percent(max(values))
    return high if high.startswith(low) else f"{low} to {high}"
