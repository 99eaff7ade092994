"""Measure the default models: `python -m eval.routing --out out/routing`. A model that is there is kept."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from eval import zoo
from eval.routing.grid import arms, measure, questions
from probes.report.envelope import envelope
from tccd.atomic import write_atomic
from tccd.decoder import find_decoder
from tccd.routing.training import Training

#: Chosen once, on train questions of one model; the paper's rate is that of a model a thousand times as large.
TRAINING = Training(epochs=1, batch_size=16, learning_rate=2e-3)

#: Splits and fusions of trained branches; the last routes nothing and trains as much.
TRAINED = ((1, 1), (2, 1), (3, 1), (1, 2), (5, 1))


def result(name: str, each: int, train: int, seeds: tuple[int, ...], console: Console) -> dict[str, Any]:
    """Measure one default model.

    Args:
        name: one of `eval.zoo.NAMES`.
        each: test questions of each source.
        train: train questions of each source.
        seeds: of each trained branch.
        console: told of progress.
    """
    model, processor = zoo.load(name)
    layers = find_decoder(model).num_layers
    tried = list(arms(layers, TRAINED, seeds))

    def told(done: int, total: int) -> None:
        console.print(f"{name}: {done} of {total}")

    rows = measure(model, processor, questions("test", each), questions("train", train), tried, TRAINING, told)
    config = {"model": name, "layers": layers, "each": each, "train": train, "training": asdict(TRAINING)}
    return envelope("Routes of a default model", config, schema="tccd-routing/1") | {"arms": rows}


def table(found: dict[str, Any]) -> Table:
    """Accuracy by arm and task, in percent; a star where the difference to the plain model has p < 0.01."""
    rows = found["arms"]
    tasks = list(rows[0]["tasks"])
    shown = Table(title=f"{found['config']['model']}: % right (* differs from plain, p < 0.01)")
    for head in ("kind", "split", "fuse", "seed", *tasks):
        shown.add_column(head)
    for row in rows:
        cells = (row["tasks"][task] for task in tasks)
        told = (f"{c['accuracy']:.1%}{'*' if c['to_plain']['p_value'] < 0.01 else ''}" for c in cells)
        seed = "" if row["seed"] is None else str(row["seed"])
        shown.add_row(row["kind"], str(row["split"]), str(row["fuse"]), seed, *told)
    return shown


def main() -> None:
    """Measure, print the tables, write a file for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/routing"))
    parser.add_argument("--models", nargs="+", choices=zoo.NAMES, default=list(zoo.NAMES), help="default: all")
    parser.add_argument("--each", type=int, default=500, help="test questions of each source (default 500)")
    parser.add_argument("--train", type=int, default=500, help="train questions of each source (default 500)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.models:
        file = options.out / f"{name}.json"
        if not file.exists():
            found = result(name, options.each, options.train, tuple(options.seeds), Console(stderr=True))
            write_atomic(file, (json.dumps(found, indent=1) + "\n").encode())
        Console(width=200).print(table(json.loads(file.read_text())))


if __name__ == "__main__":
    main()
