"""Figures as inline SVG: drawn by matplotlib, coloured by the page's CSS variables.

matplotlib draws in placeholder colours, which become `var(--name)`: one drawing serves light and dark.
Text stays text in the page's font. Ids get a prefix of the figure's own: several drawings share one page.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from typing import Any

from probes.report.headline import Headline
from probes.report.prose import percent, points
from probes.statistics import wilson
from tccd.errors import require

# Placeholder -> CSS variable of page.html.j2. Any distinct colours do.
_COLOURS = {
    "ink": "#010101",
    "soft": "#020202",
    "rule": "#030303",
    "text": "#040404",
    "vision": "#050505",
    "plain": "#060606",
    "tccd": "#070707",
}
_WIDTH = 4.1  # inches at 72 units each: near the width of a phone, so that 10.5 stays 10.5 there
_FONT = 10.5
_SVG = "{http://www.w3.org/2000/svg}"


def cost_by_layer(chosen: Headline, limits: tuple[float, float], prefix: str) -> str:
    """Text and vision centroid cost over the layers of one slice, with their 95 % bands.

    Args:
        chosen: the slice.
        limits: lowest and highest cost of the vertical axis, in points, shared by the page's panels.
        prefix: of every id in the drawing.
    """
    figure, axes = _blank(_WIDTH, 2.7, left=0.52, bottom=0.47)
    told = []
    layers = sorted({cell["layer"] for row in chosen.by_layer.values() for cell in row})
    axes.axhline(0, color=_COLOURS["soft"], linewidth=0.8)
    for modality, marker, dashes in (("vision", "s", (4, 2)), ("text", "o", ())):
        row = chosen.by_layer[modality]
        if not row:
            continue
        colour = _COLOURS[modality]
        x = [cell["layer"] for cell in row]
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
        told.append(f"{modality}: " + ", ".join(f"layer {c['layer']} {points(c['cost'])}" for c in row))
    axes.spines["bottom"].set_visible(False)
    axes.set_ylim(*limits)
    axes.set_xlim(layers[0] - 0.4, layers[-1] + 0.4)
    step = max(1, round(len(layers) / 12))
    axes.set_xticks(layers[::step], [str(layer) for layer in layers[::step]])
    axes.yaxis.set_major_locator(require("matplotlib.ticker", "report").MaxNLocator(5, integer=True))
    axes.grid(axis="y", color=_COLOURS["rule"], linewidth=0.6)
    axes.set_xlabel("decoder layer", color=_COLOURS["soft"])
    axes.set_ylabel("accuracy lost, points", color=_COLOURS["soft"])
    label = f"Centroid cost in points by layer, {chosen.model}, {chosen.conditions}. {'; '.join(told)}."
    return _inline(figure, prefix, label)


def cost_limits(slices: Sequence[Headline]) -> tuple[float, float]:
    """A vertical range, in points, that holds every interval of these slices."""
    bounds = [100 * b for s in slices for row in s.by_layer.values() for cell in row for b in cell["ci95"]]
    low, high = min(0.0, *bounds), max(1.0, *bounds)
    margin = 0.06 * (high - low)
    return low - margin, high + margin


def bars_by_task(model: str, rows: Sequence[Mapping[str, Any]], prefix: str) -> str:
    """Accuracy of each task, plain and with TCCD, with Wilson intervals.

    Args:
        model: name, for readers who can't see the drawing.
        rows: `by_task` of a TCCD run.
        prefix: of every id in the drawing.
    """
    height = 0.48 * len(rows) + 0.5
    figure, axes = _blank(_WIDTH, height, left=0.01, bottom=0.4)
    told = []
    for index, row in enumerate(rows):
        for value, offset, name in ((row["baseline"], 0.06, "plain"), (row["accuracy"], 0.29, "tccd")):
            colour, y = _COLOURS[name], index + offset
            low, high = wilson(round(value * row["n"]), row["n"])
            axes.barh(
                y, 100 * value, height=0.21, color=colour, alpha=0.55 if name == "plain" else 0.8, linewidth=0
            )
            axes.plot([100 * low, 100 * high], [y, y], color=_COLOURS["ink"], linewidth=1.1)
        told.append(f"{row['task']} {percent(row['baseline'])} to {percent(row['accuracy'])}, n = {row['n']}")
        top = index - 0.2
        axes.text(0, top, _short(row["task"]), color=_COLOURS["ink"], va="center", ha="left")
        values = f"{points(row['baseline'])} → {points(row['accuracy'])}"
        axes.text(100, top, values, color=_COLOURS["soft"], va="center", ha="right")
    axes.set_xlim(0, 100)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks([])
    axes.set_xticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"])
    for label, side in zip(axes.get_xticklabels(), ("left", *["center"] * 3, "right"), strict=True):
        label.set_horizontalalignment(side)
    axes.grid(axis="x", color=_COLOURS["rule"], linewidth=0.6)
    axes.spines["left"].set_visible(False)
    return _inline(figure, prefix, f"Accuracy by task, plain to TCCD, {model}. {'; '.join(told)}.")


def _blank(width: float, height: float, *, left: float, bottom: float) -> tuple[Any, Any]:
    figure = require("matplotlib.figure", "report").Figure(figsize=(width, height))
    right, top = 0.06, 0.08
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    )
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_COLOURS["soft"])
    axes.tick_params(length=0, labelsize=_FONT, colors=_COLOURS["soft"], pad=5)
    for item in (axes.xaxis.label, axes.yaxis.label):
        item.set_size(_FONT)
    return figure, axes


def _inline(figure: Any, prefix: str, label: str) -> str:
    matplotlib = require("matplotlib", "report")
    # Names come from data: `$` must not start a formula. A fixed salt keeps ids the same from run to run.
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": "tccd",
        "text.parse_math": False,
        "font.family": "DejaVu Sans",
        "font.size": _FONT,
        "axes.unicode_minus": True,
    }
    buffer = io.StringIO()
    with matplotlib.rc_context(style):
        for text in figure.findobj(require("matplotlib.text", "report").Text):
            text.set_parse_math(False)
            text.set_size(_FONT)
        empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=empty)
    ET.register_namespace("", _SVG.strip("{}"))
    root = ET.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            # `* {...}` would reach the whole page; the metadata only repeats defaults.
            if child.tag == f"{_SVG}metadata" or (
                child.tag == f"{_SVG}defs" and child.find(f"{_SVG}style") is not None
            ):
                parent.remove(child)
    for element in root.iter():
        for name, value in list(element.attrib.items()):
            if name == "id":
                element.set(name, prefix + value)
            elif name.endswith("}href"):
                del element.attrib[name]
                element.set("href", value.replace("#", f"#{prefix}", 1))
            else:
                element.set(name, _restyled(value, prefix))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", _printable(label))
    return ET.tostring(root, encoding="unicode")


def _restyled(value: str, prefix: str) -> str:
    value = value.replace("url(#", f"url(#{prefix}")
    for name, placeholder in _COLOURS.items():
        value = value.replace(placeholder, f"var(--{name})")
    return re.sub(r"font: [^;]*?([\d.]+)px [^;]*", r"font-size: \1px", value)


def _short(text: str, most: int = 30) -> str:
    text = _printable(text)
    return text if len(text) <= most else text[: most - 1] + "…"


def _printable(text: str) -> str:
    # XML can't hold most control characters, not even escaped.
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
