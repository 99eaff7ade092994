"""The page of the peers: a table between two marks of a Markdown file, and one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval import zoo
from probes.statistics.intervals import SIGNIFICANT
from tccd.atomic import write_atomic
from tccd.errors import ConfigError, require

INK, SOFT = "#1f2328", "#8c959f"
FAMILY = {"llava": "#0969da", "qwen25vl": "#bf8700", "idefics3": "#8250df"}
MARKER = {"reference": "o", "peer": "s", "control": "x", "oracle": "D"}
MARKS = {name: (f"<!-- {name}: begin -->", f"<!-- {name}: end -->") for name in ("greedy", "sampled")}
LEFT_AND_WIDTH = ((0.045, 0.36), (0.585, 0.22), (0.825, 0.165))
"""Of the three parts of the picture, as shares of its width."""
Row = Mapping[str, Any]


def ordered(rows: Sequence[Row]) -> list[str]:
    """Methods by kind, the largest mean gain of a kind first; plain decoding left out.

    Args:
        rows: of competing models, one data set and one way to decode.
    """
    kinds = {row["method"]: row["kind"] for row in rows if row["kind"] != "plain"}
    return sorted(kinds, key=lambda name: (list(MARKER).index(kinds[name]), -mean_gain(rows, name)))


def mean_gain(rows: Sequence[Row], method: str) -> float:
    """The mean over models, in points."""
    found = [100 * row["delta"] for row in rows if row["method"] == method]
    return sum(found) / len(found)


def select(rows: Sequence[Row], decoding: str, kind: str = "competing", data: str = "both") -> list[Row]:
    """Rows of one kind of model, one data set and one way to decode."""
    return [r for r in rows if r["decoding"] == decoding and r["data"] == data and r["model"].endswith(kind)]


def markdown(rows: Sequence[Row], decoding: str) -> str:
    """The table of one way to decode, both data sets together."""
    mine = select(rows, decoding)
    cells = {(row["method"], row["model"].split("-")[0]): row for row in mine}
    lines = [
        "| method | " + " | ".join(zoo.FAMILIES) + " | change of the grounded twins | CPU time | passes |",
        "|---|" + "---:|" * len(zoo.FAMILIES) + "---:|---:|---:|",
    ]
    for method in ordered(mine):
        gains, harms = [], []
        for family in zoo.FAMILIES:
            row = cells.get((method, family))
            if row is None:
                gains.append("-")
                continue
            low, high = (100 * bound for bound in row["ci95"])
            sure = "**" if row["p_holm"] is not None and row["p_holm"] < SIGNIFICANT else ""
            gains.append(f"{sure}{100 * row['delta']:+.1f}{sure} ({low:+.1f} to {high:+.1f})")
            harmed = row["harm"] < 0 and row["harm_p_value"] < SIGNIFICANT
            harms.append(f"{100 * row['harm']:+.1f}" + ("!" if harmed else ""))
            cost, passes = row["cpu_ratio"], row["passes"]
        ratio = "-" if cost is None else f"{cost:.2f}"
        tail = [" / ".join(harms), ratio, "-" if passes is None else f"{passes:g}"]
        lines.append("| " + " | ".join([method, *gains, *tail]) + " |")
    return "\n".join(lines)


def fill(file: Path, rows: Sequence[Row]) -> None:
    """Put the tables between their marks in the page.

    Raises:
        ConfigError: the page lacks a mark.
    """
    text = file.read_text(encoding="utf-8")
    for decoding, (begin, end) in MARKS.items():
        before, found, rest = text.partition(begin)
        _, also, after = rest.partition(end)
        if not found or not also:
            raise ConfigError(f"{file} has no place for the table of {decoding}; expected {begin} and {end}")
        text = f"{before}{begin}\n{markdown(rows, decoding)}\n{end}{after}"
    write_atomic(file, text.encode())


def draw(rows: Sequence[Row], file: Path) -> None:
    """Gain against cost, and beside it each method's gains and the harm of the grounded twins, by family."""
    mine = select(rows, "greedy")
    names = ordered(mine)
    width, height = 13.0, 0.27 * len(names) + 1.1
    figure = require("matplotlib.figure", "report").Figure(figsize=(width, height))
    bottom, top = 0.55 / height, 1 - 0.4 / height
    # Room for the methods' names stands between cost and gains.
    cost, gains, harm = (figure.add_axes((x, bottom, w, top - bottom)) for x, w in LEFT_AND_WIDTH)
    _cost(cost, mine, names)
    _intervals(gains, mine, names, "delta", "ci95", "gain of the competing twin, points")
    _intervals(harm, mine, names, "harm", "harm_ci95", "change of the grounded twin, points")
    labels = [f"{name}  {number}" for number, name in enumerate(names, 1)]
    gains.set_yticks(range(len(names)), labels, fontsize=9, color=INK)
    harm.set_yticks([])
    for family, color in FAMILY.items():
        gains.plot([], [], "o", color=color, markersize=5, label=family)
    for axis in (cost, gains):
        axis.legend(frameon=False, fontsize=8.5, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    for axis in (cost, gains, harm):
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(colors=INK, labelsize=9, length=0)
        axis.grid(axis="x", color="#eaeef2")
        axis.set_axisbelow(True)
    figure.savefig(file, dpi=160, facecolor="white")


def _cost(axis: Any, rows: Sequence[Row], names: Sequence[str]) -> None:
    ratios = {row["method"]: row["cpu_ratio"] for row in rows}
    kinds = {row["method"]: row["kind"] for row in rows}
    timed = [name for name in names if ratios[name] is not None]
    for kind in ("reference", "peer", "control"):
        mine = [name for name in timed if kinds[name] == kind]
        style = {"color": INK if kind == "reference" else SOFT, "markersize": 5, "label": kind}
        axis.plot([ratios[n] for n in mine], [mean_gain(rows, n) for n in mine], MARKER[kind], **style)
    spread = max([1.1, *(ratios[name] for name in timed)]) - 1
    placed: list[tuple[float, float]] = []
    for name in sorted(timed, key=lambda one: -mean_gain(rows, one)):
        x, y = ratios[name] + 0.025 * spread, mean_gain(rows, name)
        while any(abs(x - px) < 0.04 * spread and abs(y - py) < 0.5 for px, py in placed):
            x += 0.04 * spread
        placed.append((x, y))
        axis.text(x, y, str(names.index(name) + 1), fontsize=8, color=INK, va="center")
    axis.set_xlabel("CPU time of a request, times plain decoding's", fontsize=9, color=INK)
    axis.set_ylabel("mean gain of the competing models, points", fontsize=9, color=INK)
    axis.axhline(0, color=SOFT, linewidth=0.8)


def _intervals(axis: Any, rows: Sequence[Row], names: Sequence[str], key: str, bounds: str, label: str) -> None:
    for shift, (family, color) in zip((-0.22, 0.0, 0.22), FAMILY.items(), strict=True):
        for row in rows:
            if row["model"].startswith(family) and row["method"] in names:
                y = names.index(row["method"]) + shift
                low, high = (100 * bound for bound in row[bounds])
                axis.plot([low, high], [y, y], color=color, linewidth=1)
                axis.plot([100 * row[key]], [y], "o", color=color, markersize=3.5)
    axis.axvline(0, color=SOFT, linewidth=0.8)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlabel(label, fontsize=9, color=INK)
