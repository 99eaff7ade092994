"""Folders of `tccd probe saturation` as one file and one table.

`python -m eval.saturation FOLDER... --out FILE`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from probes.saturation.command import FILE
from tccd.atomic import write_atomic


def merged(results: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Results without their outcomes by question."""
    return [
        {**one, "curve": [{k: v for k, v in row.items() if k != "right"} for row in one["curve"]]}
        for one in results
    ]


def table(results: Iterable[Mapping[str, Any]]) -> str:
    """Markdown, a row a model: points lost at each split, and attention to the image beside its uniform share."""
    rows = []
    for one in results:
        losses = " ".join(f"{100 * row['cost']:.1f}" for row in one["curve"])
        mass = " ".join(f"{row['tail']:.2f}" for row in one["layers"])
        uniform = f"{one['layers'][0]['tail_uniform']:.2f}"
        advised = one["advice"]["split"]
        advised, rule = "none" if advised is None else advised, one["advice"]["dpvr_split"]
        right = f"{100 * one['accuracy']['accuracy']:.1f}"
        rows.append(f"| {one['model']} | {right} | {losses} | {advised} | {mass} | {uniform} | {rule} |")
    head = (
        "| model | accuracy | loss at split 0, 1, ... | split advised | mass at layer 0, 1, ... | uniform | DPVR |"
    )
    return "\n".join([head, "|---|---|---|---|---|---|---|", *rows])


def main() -> None:
    """Write the file, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    results = merged(json.loads((folder / FILE).read_text()) for folder in given.folders)
    write_atomic(given.out, json.dumps(results, indent=1).encode() + b"\n")
    print(table(results))


if __name__ == "__main__":
    main()
