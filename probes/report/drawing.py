"""Inline SVG: drawn by matplotlib, coloured by the page's CSS variables.

matplotlib draws in placeholder colours, which become `var(--name)`: one drawing serves light and dark.
Text stays text in the page's font. Ids get a prefix of the figure's own: several drawings share one page.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from typing import Any

from tccd.errors import require

# Placeholder -> CSS variable of style.css. Any distinct colours do.
COLOURS = {
    "ink": "#010101",
    "soft": "#020202",
    "rule": "#030303",
    "text": "#040404",
    "vision": "#050505",
    "plain": "#060606",
    "tccd": "#070707",
}
WIDTH = 4.1
"""Inches at 72 units each: near the width of a phone, so that the font's size stays itself there."""
_FONT = 10.5
_SVG = "{http://www.w3.org/2000/svg}"


def blank(width: float, height: float, *, left: float, bottom: float) -> tuple[Any, Any]:
    """An empty figure and its axes; sizes in inches, `left` and `bottom` are the room for labels."""
    figure = require("matplotlib.figure", "report").Figure(figsize=(width, height))
    right, top = 0.06, 0.08
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    )
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(COLOURS["soft"])
    axes.tick_params(length=0, labelsize=_FONT, colors=COLOURS["soft"], pad=5)
    for item in (axes.xaxis.label, axes.yaxis.label):
        item.set_size(_FONT)
    return figure, axes


def inline(figure: Any, prefix: str, label: str) -> str:
    """The figure as an SVG element; `label` tells those who can't see it what it shows."""
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
    for name, placeholder in COLOURS.items():
        value = value.replace(placeholder, f"var(--{name})")
    return re.sub(r"font: [^;]*?([\d.]+)px [^;]*", r"font-size: \1px", value)


def short(text: str, most: int = 30) -> str:
    """Text that fits on a drawing."""
    text = _printable(text)
    return text if len(text) <= most else text[: most - 1] + "…"


def _printable(text: str) -> str:
    # XML can't hold most control characters, not even escaped.
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
