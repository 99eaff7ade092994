"""What `advise` chooses on the default models, and what it gains there: `python -m eval.advice`.

Each model is measured once with every reference, signs and strengths together, on the questions that
`python -m eval.peers` reports. `advise` chooses on four fifths of their pictures and judges on the fifth left out,
each in turn. Beside its held-out gain stands that of the best reference in the table of peers, whose settings were
chosen on other questions, with both twins in sight.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from eval import zoo
from eval.banks import fit_banks
from eval.families import questions as drawn
from eval.peers.questions import SOURCES, questions
from eval.peers.table import DATA
from probes.advise import advise
from probes.compare import read_report
from probes.replacement import run
from probes.replacement.grid import Grid
from probes.report import write_report
from probes.report.envelope import envelope
from tccd.atomic import write_atomic
from tccd.data import Sample

PEERS = Path("eval/results/peers.json")
K = 16
WITHIN = 0.01
"""How far behind the best reference of the table of peers advice may be, as a fraction."""
GRID = Grid(
    layers={"text": (0, 1, 2, 3), "vision": ()},
    alphas=(0.0,),
    references=(
        *("early-exit=low", "early-exit=high", "text-centroid", "no-vision", "mean-vision", "blank-image"),
        *("noised-image", "no-vision+mean-vision"),
    ),
    alpha_cd=(-2.0, -1.0, -0.5, 0.5, 1.0, 2.0),
    beta=(0.0, 0.1),
    controls=True,
)


def measure(name: str, asked: Sequence[Sample], out: Path) -> None:
    """Fit a bank for one model, measure it and write its report."""
    model, processor = zoo.load(name)
    data = " and ".join(SOURCES)
    bank = fit_banks(model, processor, drawn("train", 400), [K], data=f"{data} train")[K]
    result = run(model, processor, asked, bank, GRID, name=name, batch_size=64, examples=0)
    result["config"] |= {"data": data, "split": "test", "limit": len(asked), "seed": 42}
    write_report(result, out)


def row(report: dict[str, Any], best: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Advice on one model, and how far behind the best of its peers it is; fractions."""
    found = advise(report)
    kept = ("model", "on", "settings", "cost", "runner_up", "reason", "warnings", "n_settings", "p_adjusted")
    told = {name: found[name] for name in kept} | {
        "held_out": found["held_out"],
        "references": found["by_reference"],
    }
    peer = best.get(found["model"])
    if peer is None:
        return told
    best_one = {name: peer[name] for name in ("method", "delta", "ci95")}
    gained = found["held_out"]["delta"] if found["on"] else 0.0
    return told | {"best_of_peers": best_one, "behind": peer["delta"] - gained}


def best_of_peers(file: Path) -> dict[str, dict[str, Any]]:
    """By model the reference that gained most in the table of peers, decoding greedily; none without the file."""
    if not file.exists():
        return {}
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    rows = [r for r in rows if (r["kind"], r["data"], r["decoding"]) == ("reference", DATA[0], "greedy")]
    return {r["model"]: r for r in sorted(rows, key=lambda r: r["delta"])}


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Advice by model, in points."""
    shown = Table(title="Advice, held-out gain in points")
    for head in ("model", "advice", "settings", "gain", "95 % interval", "runner-up", "best of peers", "behind"):
        shown.add_column(head)
    for one in rows:
        held, peer, second = one["held_out"], one.get("best_of_peers"), one["runner_up"]
        low, high = held["ci95"]
        at = {k: v for k, v in (one["settings"] or {}).items() if k not in ("reference", "bank")}
        shown.add_row(
            one["model"],
            one["settings"]["reference"] if one["on"] else "off",
            ", ".join(f"{name} {value}" for name, value in at.items()),
            f"{100 * held['delta']:+.1f}",
            f"{100 * low:+.1f} to {100 * high:+.1f}",
            f"{second['reference']} {100 * second['held_out']['delta']:+.1f}" if second else "",
            f"{peer['method']} {100 * peer['delta']:+.1f}" if peer else "",
            f"{100 * one['behind']:+.1f}" if peer else "",
        )
    return shown


def missed(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What is not as it should be: a grounded model told "on", a competing one told "off" or too far behind."""
    told = []
    for one in rows:
        if one["on"] != one["model"].endswith("competing"):
            told.append(f"{one['model']} is told {'on' if one['on'] else 'off'}")
        elif one["on"] and one.get("behind", 0.0) > WITHIN:
            told.append(f"{one['model']} is {100 * one['behind']:.1f} points behind the best of its peers")
    return told


def main() -> None:
    """Measure what is not measured yet, write advice.json, and say what is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/advice"))
    parser.add_argument("--models", nargs="+", choices=zoo.NAMES, default=list(zoo.NAMES), help="default: all")
    parser.add_argument(
        "--held-out", type=int, default=3000, help="questions, those that the peers are reported on"
    )
    parser.add_argument("--peers", type=Path, default=PEERS, help="what `eval.peers` wrote")
    options = parser.parse_args()
    torch.set_num_threads(1)
    every = questions(held_out=options.held_out)
    asked = [sample for sample, choosing in zip(every.samples, every.choosing, strict=True) if not choosing]
    found, best = [], best_of_peers(options.peers)
    for name in options.models:
        file = options.out / name / "report.json"
        if not file.exists():
            measure(name, asked, file.parent)
        found.append(row(read_report(file), best))
    config = {"data": SOURCES, "questions": len(asked), "grid": GRID.describe(), "within": WITHIN}
    head = envelope("Advice on the default models", config, schema="tccd-advice/1")
    written = json.dumps(head | {"rows": found}, indent=1) + "\n"
    write_atomic(options.out / "advice.json", written.encode())
    console = Console(width=180)
    console.print(table(found))
    for sentence in missed(found):
        console.print(f"Not as it should be: {sentence}")


if __name__ == "__main__":
    main()
