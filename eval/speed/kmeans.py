"""K-means against scikit-learn's MiniBatchKMeans, in one run: `python -m eval.speed.kmeans`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import typer

from eval.speed.timing import header, write
from tccd.centroids.kmeans import kmeans

OUT = Path("out/speed/kmeans.json")


def clusters(rows: int, width: int, k: int, seed: int = 0) -> np.ndarray:
    """Well-separated Gaussian clusters: unit noise around centres of standard deviation 4, fp32."""
    rng = np.random.default_rng(seed)
    centres = 4 * rng.standard_normal((k, width), dtype=np.float32)
    x = rng.standard_normal((rows, width), dtype=np.float32)
    x += centres[rng.integers(k, size=rows)]
    return x


def measure(rows: int, width: int, k: int, backend: str, seed: int) -> dict[str, Any]:
    """Fit both to the same rows; times are wall seconds."""
    from sklearn.cluster import MiniBatchKMeans

    x = clusters(rows, width, k)
    ours = kmeans(x, k, seed=seed, backend=backend)  # type: ignore[arg-type]
    started = time.perf_counter()
    reference = MiniBatchKMeans(k, batch_size=4096, n_init=3, random_state=seed).fit(x)
    seconds = time.perf_counter() - started
    gap = x - reference.cluster_centers_[reference.predict(x)]
    inertia = float(np.einsum("ij,ij->i", gap, gap).sum(dtype=np.float64))
    config = {"rows": rows, "width": width, "k": k, "seed": seed}
    return header("Time of k-means", config, "faiss-gpu") | {
        "tccd": {
            "backend": ours.backend,
            "version": ours.backend_version,
            "seconds": ours.seconds,
            "inertia": ours.inertia,
            "empty_clusters": ours.empty_clusters,
        },
        "minibatch": {"seconds": seconds, "inertia": inertia},
        "inertia_ratio": ours.inertia / inertia,
        "time_ratio": ours.seconds / seconds,
        "bar": {"inertia_ratio": 1.02, "time_ratio": 1 / 3},
    }


def main(rows: int = 32_000, width: int = 2_048, k: int = 256, backend: str = "faiss-cpu", seed: int = 42) -> None:
    """Measure, print and write out/speed/kmeans.json."""
    found = measure(rows, width, k, backend, seed)
    write(found, OUT)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    typer.run(main)
