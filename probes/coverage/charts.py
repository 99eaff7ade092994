"""The page's drawings: growth of coverage with the number of pictures, and codes of sets laid over each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from probes.report.drawing import COLOURS, WIDTH, blank, inline
from tccd.errors import require

#: A set's colour and dashes by its place; from the fifth set on they repeat.
STYLES: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("vision", ()),
    ("text", (4, 2)),
    ("tccd", (1, 1)),
    ("plain", (6, 2, 1, 2)),
)


def style(place: int) -> tuple[str, tuple[int, ...]]:
    """Colour and dashes of a set by its place."""
    return STYLES[place % len(STYLES)]


def growth(rows: Sequence[Mapping[str, Any]], places: Mapping[str, int], equal: int, prefix: str) -> str:
    """Coverage of one codebook over the number of pictures, each set with its band.

    Args:
        rows: of the report's `growth`, of one codebook.
        places: of the sets, by name.
        equal: number of pictures at which sets are compared.
        prefix: of every id in the drawing.
    """
    figure, axes = blank(WIDTH, 2.7, left=0.55, bottom=0.47)
    open_ = rows[0]["codebook"] == "facts"
    scale = 1 if open_ else 100
    told = []
    for row in rows:
        colour, dashes = style(places[row["set"]])
        n, value = np.array(row["n"]), scale * np.array(row["value"])
        if row.get("low"):
            low, high = scale * np.array(row["low"]), scale * np.array(row["high"])
            axes.fill_between(n, low, high, color=COLOURS[colour], alpha=0.16, linewidth=0)
        axes.plot(n, value, color=COLOURS[colour], linewidth=1.6, dashes=dashes or (None, None))
        told.append(f"{row['set']}: {value[-1]:.1f} at {n[-1]} pictures")
    axes.axvline(equal, color=COLOURS["soft"], linewidth=0.8)
    most = max(row["n"][-1] for row in rows)
    if most > 30:
        axes.set_xscale("log")
        ticks = [10**i for i in range(8) if 10**i <= most]
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
    axes.set_ylim(0)
    axes.yaxis.set_major_locator(require("matplotlib.ticker", "report").MaxNLocator(5, integer=True))
    axes.grid(axis="y", color=COLOURS["rule"], linewidth=0.6)
    axes.set_xlabel("pictures", color=COLOURS["soft"])
    axes.set_ylabel("facts" if open_ else "% of codes", color=COLOURS["soft"])
    what = "Distinct facts" if open_ else f"Share of {rows[0]['codebook']} codes covered"
    return inline(figure, prefix, f"{what} by number of pictures. {'; '.join(told)}.")


def overlay(
    rows: Sequence[Mapping[str, Any]], places: Mapping[str, int], pictures: Mapping[str, int], prefix: str
) -> str:
    """By code, the share of each set's pictures that hit it; codes in the order of the first set.

    Args:
        rows: of the report's `codes`, of one codebook.
        places: as for `growth`; so is `prefix`.
        pictures: of each set.
        prefix: of every id in the drawing.
    """
    figure, axes = blank(WIDTH, 2.4, left=0.55, bottom=0.47)
    shares = {row["set"]: 100 * np.array(row["pictures"]) / pictures[row["set"]] for row in rows}
    first = next(iter(shares.values()))
    order = np.argsort(-first, kind="stable")
    for name, share in shares.items():
        colour, _ = style(places[name])
        if share is first:
            axes.fill_between(
                range(len(order)), share[order], step="mid", color=COLOURS[colour], alpha=0.3, linewidth=0
            )
        else:
            axes.plot(share[order], linestyle="", marker="o", markersize=2.6, color=COLOURS[colour], alpha=0.8)
    axes.set_xlim(-1, len(order))
    axes.set_ylim(0)
    axes.set_xticks([])
    axes.yaxis.set_major_locator(require("matplotlib.ticker", "report").MaxNLocator(5, integer=True))
    axes.grid(axis="y", color=COLOURS["rule"], linewidth=0.6)
    axes.set_xlabel(f"{rows[0]['codebook']} codes, most frequent first", color=COLOURS["soft"])
    axes.set_ylabel("% of pictures", color=COLOURS["soft"])
    told = "; ".join(
        f"{name}: {int((share > 0).sum())} of {len(share)} codes hit" for name, share in shares.items()
    )
    return inline(figure, prefix, f"Share of pictures that hit each {rows[0]['codebook']} code. {told}.")
