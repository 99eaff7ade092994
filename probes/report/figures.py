"""The page's figures: curves of cost over layers or dose, grouped bars of shares, and changes side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from probes.pairing import Cell
from probes.report.drawing import COLOURS, WIDTH, blank, inline, short
from probes.report.headline import Headline
from probes.report.prose import percent, points
from tccd.errors import require

_STYLES: tuple[tuple[str, str, tuple[int, ...]], ...] = (("vision", "s", (4, 2)), ("text", "o", ()))


@dataclass(frozen=True)
class Bar:
    """One bar of a group: a share, drawn with its interval."""

    colour: str
    share: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class Group:
    """Bars under one heading, and a mark across them: another share to hold them against, or None."""

    name: str
    note: str
    bars: Sequence[Bar]
    mark: float | None = None


def cost_by_layer(chosen: Headline, limits: tuple[float, float], prefix: str) -> str:
    """Text and vision centroid cost over the layers of one slice, with their 95 % bands.

    Args:
        chosen: the slice.
        limits: lowest and highest cost of the vertical axis, in points, shared by the page's panels.
        prefix: of every id in the drawing.
    """
    layers = sorted({cell["layer"] for row in chosen.by_layer.values() for cell in row})
    step = max(1, round(len(layers) / 12))
    label = f"Centroid cost in points by layer, {chosen.model}, {chosen.conditions}."
    shown = layers[::step], (layers[0] - 0.4, layers[-1] + 0.4)
    return _curves(chosen.by_layer, "layer", "decoder layer", shown, limits, label, prefix)


def cost_by_dose(chosen: Headline, limits: tuple[float, float], prefix: str) -> str:
    """Text and vision centroid cost at one layer over `alpha_interp`: from full collapse to the identity.

    Args:
        chosen: the slice; see `Headline.by_dose`.
        limits: as for `cost_by_layer`.
        prefix: of every id in the drawing.
    """
    alphas = sorted({cell["alpha_interp"] for row in chosen.by_dose.values() for cell in row})
    label = f"Centroid cost in points by alpha_interp ({chosen.where}), {chosen.model}, K = {chosen.k}."
    margin = 0.04 * (alphas[-1] - alphas[0] or 1)
    shown = alphas[:: max(1, round(len(alphas) / 8))], (alphas[0] - margin, alphas[-1] + margin)
    return _curves(chosen.by_dose, "alpha_interp", "alpha_interp", shown, limits, label, prefix)


def limits(rows: Sequence[Mapping[str, Sequence[Cell]]]) -> tuple[float, float]:
    """A vertical range, in points, that holds every interval of these cells by modality."""
    bounds = [100 * b for by in rows for row in by.values() for cell in row for b in cell["ci95"]]
    low, high = min(0.0, *bounds), max(1.0, *bounds)
    margin = 0.06 * (high - low)
    return low - margin, high + margin


def bars(groups: Sequence[Group], label: str, prefix: str) -> str:
    """Groups of horizontal bars from 0 to 100 %, with their intervals.

    Args:
        groups: from top to bottom.
        label: what the drawing shows, for readers who can't see it.
        prefix: of every id in the drawing.
    """
    thick, gap, head = 0.135, 0.03, 0.3  # inches
    tops, y = [], 0.0
    for group in groups:
        tops.append(y)
        y += head + len(group.bars) * (thick + gap) + 0.06
    figure, axes = blank(WIDTH, y + 0.45, left=0.01, bottom=0.4)
    for top, group in zip(tops, groups, strict=True):
        heading = top + head / 2 + 0.02
        axes.text(0, heading, short(group.name), color=COLOURS["ink"], va="center", ha="left")
        axes.text(100, heading, group.note, color=COLOURS["soft"], va="center", ha="right")
        for index, bar in enumerate(group.bars):
            middle = top + head + index * (thick + gap) + thick / 2
            low, high = bar.ci95
            opacity = 0.55 if bar.colour == "plain" else 0.8
            axes.barh(middle, 100 * bar.share, height=thick, color=COLOURS[bar.colour], alpha=opacity, linewidth=0)
            axes.plot([100 * low, 100 * high], [middle, middle], color=COLOURS["ink"], linewidth=1.1)
        if group.mark is not None:
            span = top + head - gap, top + head + len(group.bars) * (thick + gap)
            axes.vlines(100 * group.mark, *span, color=COLOURS["ink"], linewidth=1.4, linestyles=(0, (1.5, 1.5)))
    axes.set_xlim(0, 100)
    axes.set_ylim(y, 0)
    axes.set_yticks([])
    axes.set_xticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"])
    for tick, side in zip(axes.get_xticklabels(), ("left", *["center"] * 3, "right"), strict=True):
        tick.set_horizontalalignment(side)
    axes.grid(axis="x", color=COLOURS["rule"], linewidth=0.6)
    axes.spines["left"].set_visible(False)
    told = "; ".join(f"{g.name}: {', '.join(percent(b.share) for b in g.bars)}" for g in groups)
    return inline(figure, prefix, f"{label} {told}.")


def changes(rows: Sequence[tuple[str, float, Sequence[float]]], label: str, prefix: str) -> str:
    """Changes in accuracy with their intervals, a dot and a line each, and a rule at no change.

    Args:
        rows: name, change and its interval, as fractions, from top to bottom.
        label: what the drawing shows, for readers who can't see it.
        prefix: of every id in the drawing.
    """
    figure, axes = blank(WIDTH, 0.27 * len(rows) + 0.55, left=1.75, bottom=0.47)
    axes.axvline(0, color=COLOURS["soft"], linewidth=0.8)
    for y, (_, change, bounds) in enumerate(rows):
        colour = COLOURS["tccd" if bounds[0] > 0 else "text" if bounds[1] < 0 else "plain"]
        axes.plot([100 * bound for bound in bounds], [y, y], color=colour, linewidth=1.6)
        axes.plot([100 * change], [y], color=colour, marker="o", markersize=5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [short(name, 24) for name, *_ in rows])
    axes.xaxis.set_major_locator(require("matplotlib.ticker", "report").MaxNLocator(5, integer=True))
    axes.grid(axis="x", color=COLOURS["rule"], linewidth=0.6)
    axes.set_xlabel("gain on held-out pictures, points", color=COLOURS["soft"])
    told = "; ".join(f"{name} {points(change, True)}" for name, change, _ in rows)
    return inline(figure, prefix, f"{label} {told}.")


def _curves(
    rows: Mapping[str, Sequence[Cell]],
    key: str,
    title: str,
    shown: tuple[Sequence[float], tuple[float, float]],
    bounds: tuple[float, float],
    label: str,
    prefix: str,
) -> str:
    figure, axes = blank(WIDTH, 2.7, left=0.52, bottom=0.47)
    told = []
    axes.axhline(0, color=COLOURS["soft"], linewidth=0.8)
    for modality, marker, dashes in _STYLES:
        row = rows.get(modality)
        if not row:
            continue
        told.append(f"{modality}: " + ", ".join(f"{cell[key]:g} {points(cell['cost'])}" for cell in row))
        _curve(axes, row, key, COLOURS[modality], marker, dashes)
    ticks, extent = shown
    axes.spines["bottom"].set_visible(False)
    axes.set_ylim(*bounds)
    axes.set_xlim(*extent)
    axes.set_xticks(list(ticks), [f"{tick:g}" for tick in ticks])
    axes.yaxis.set_major_locator(require("matplotlib.ticker", "report").MaxNLocator(5, integer=True))
    axes.grid(axis="y", color=COLOURS["rule"], linewidth=0.6)
    axes.set_xlabel(title, color=COLOURS["soft"])
    axes.set_ylabel("accuracy lost, points", color=COLOURS["soft"])
    return inline(figure, prefix, f"{label} {'; '.join(told)}.")


def _curve(axes: Any, row: Sequence[Cell], key: str, colour: str, marker: str, dashes: tuple[int, ...]) -> None:
    x = [cell[key] for cell in row]
    low, high = ([100 * cell["ci95"][side] for cell in row] for side in (0, 1))
    axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    axes.vlines(x, low, high, color=colour, linewidth=1)
    axes.plot(
        x,
        [100 * cell["cost"] for cell in row],
        color=colour,
        marker=marker,
        markersize=4.5,
        linewidth=1.6,
        dashes=dashes or (None, None),
    )
