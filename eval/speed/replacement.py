"""Centroid replacement against `torch.cdist` + argmin + blend, in one run: `python -m eval.speed.replacement`.

`torch.cdist` subtracts row by row up to 25 rows and takes a GEMM above; the comparison is with what it does by
default. Runs alternate between the two and medians are compared, so that a busy machine slows both.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor

from eval.speed.timing import alternate, header, timed, write
from tccd.centroids.replacement import Centroids

OUT = Path("out/speed/replacement.json")

#: Least speed-up by number of rows.
BARS = {1: 3.0, 2: 3.0, 4: 3.0, 8: None, 2000: 1.6}


def reference(x: Tensor, centroids: Tensor, alpha_interp: float) -> Tensor:
    """The plain way."""
    mu = centroids[torch.cdist(x, centroids).argmin(-1)]
    return mu + alpha_interp * (x - mu)


def measure(rows: int, width: int, k: int, repeats: int, alpha_interp: float = 0.4) -> dict[str, Any]:
    """Medians in milliseconds a call, of alternating bursts: single calls would evict each other's centroids."""
    burst = 50 if rows < 100 else 1
    generator = torch.Generator().manual_seed(rows)
    x, vectors = torch.randn(rows, width, generator=generator), torch.randn(k, width, generator=generator)
    centroids = Centroids(vectors)
    ways = {
        "cdist": lambda: reference(x, vectors, alpha_interp),
        "tccd": lambda: centroids.replace(x, alpha_interp),
    }
    difference = float((ways["cdist"]() - ways["tccd"]()).abs().max())
    seconds = alternate(
        {n: timed(partial(_times, way, burst)) for n, way in ways.items()}, max(5, repeats // burst)
    )
    slow, fast = (1e3 / burst * statistics.median(seconds[name]) for name in ("cdist", "tccd"))
    return {
        "rows": rows,
        "cdist_ms": slow,
        "tccd_ms": fast,
        "speedup": slow / fast,
        "bar": BARS.get(rows),
        "max_difference": difference,
    }


def _times(run: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        run()


def main(width: int = 3_584, k: int = 256, repeats: int = 1000) -> None:
    """Measure, print and write out/speed/replacement.json."""
    with torch.inference_mode():
        cells = [measure(rows, width, k, repeats if rows < 100 else max(10, repeats // 30)) for rows in BARS]
    config = {"width": width, "k": k, "dtype": "float32", "repeats": repeats}
    found = header("Time of replacing states by centroids", config) | {"cells": cells}
    write(found, OUT)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    typer.run(main)
