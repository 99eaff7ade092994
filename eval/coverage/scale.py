"""How time and memory of the coverage probe grow with the data: `python -m eval.coverage.scale [--out FILE]`.

Hidden states are drawn, not computed: a model's forwards take as long as they take. Everything behind them is the
probe's own: assignment to centroids, codes on disk, counts with 200 bootstrap draws, and the report's rows. Each
size is a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from probes.coverage.assigning import Lookup, look_up, records
from probes.coverage.measure import rows
from probes.coverage.probe import tally
from probes.coverage.store import Store
from probes.report.envelope import envelope
from tccd.centroids.replacement import Centroids

SIZES = (1_000, 10_000, 100_000)
WIDTH, K, BATCH = 256, 256, 32
#: Rows of an image, and how many kinds of row there are.
ROWS = {"text": 24, "vision": 64}
KINDS = 400


def measure(images: int, draws: int) -> dict[str, float | int]:
    """Seconds by part, and peak memory, for so many drawn images.

    Args:
        images: of the set.
        draws: bootstrap draws.
    """
    torch.set_num_threads(1)
    chance = torch.Generator().manual_seed(0)
    kinds = {name: torch.randn(KINDS, WIDTH, generator=chance) for name in ROWS}
    books = {name: Centroids(torch.randn(K, WIDTH, generator=chance)) for name in ROWS}
    # Kinds are met by Zipf's law, as words are: a set of any size meets some for the first time.
    often = 1 / torch.arange(1.0, KINDS + 1)
    store, spent = Store(), {"assign": 0.0, "count": 0.0}
    for start in range(0, images, BATCH):
        size = min(BATCH, images - start)
        states = {
            name: kinds[name][often.multinomial(size * count, True, generator=chance)]
            + 0.3 * torch.randn(size * count, WIDTH, generator=chance)
            for name, count in ROWS.items()
        }
        began = time.perf_counter()
        found: dict[str, Lookup] = {
            name: look_up(states[name], [count] * size, books[name]) for name, count in ROWS.items()
        }
        made: dict[str, Any] = {**found, "tokens": [ROWS["text"]] * size}
        store.add(records(made), [f"{number:016x}" for number in range(start, start + size)])
        spent["assign"] += time.perf_counter() - began
    began = time.perf_counter()
    told = rows(tally({"drawn": store}, {"text": K, "vision": K, "pairs": K * K}, draws=draws))
    spent["count"] = time.perf_counter() - began
    assert told["equal_n"] == images
    return {
        "images": images,
        "draws": draws,
        "assign_seconds": round(spent["assign"], 2),
        "count_seconds": round(spent["count"], 2),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    """Measure each size in a process of its own, and write a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("eval/results/coverage-scale.json"))
    parser.add_argument("--one", type=int, help="measure this size alone, in this process")
    parser.add_argument("--draws", type=int, default=200)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options.one, options.draws)))
        return
    found = []
    for draws in (options.draws, 0):
        for images in SIZES:
            command = [sys.executable, "-m", "eval.coverage.scale", "--one", str(images), "--draws", str(draws)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.append(json.loads(said.splitlines()[-1]))
            print(found[-1], flush=True)
    config = {"width": WIDTH, "k": K, "rows": ROWS, "batch": BATCH, "threads": 1}
    result = envelope("Coverage at scale", config, schema="tccd-coverage-scale/1") | {"sizes": found}
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
