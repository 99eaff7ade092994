"""K-means on rows of activations: FAISS on every visible GPU, FAISS on the CPU, or scikit-learn."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch

from tccd.centroids.replacement import Centroids
from tccd.errors import ConfigError, FitError, MissingExtraError, require

Backend = Literal["auto", "faiss-gpu", "faiss-cpu", "sklearn"]
BACKENDS: tuple[str, ...] = get_args(Backend)

# Rows that the start is chosen from, and rows read at a time.
_START_ROWS = 4096
_CHUNK_ROWS = 4096


@dataclass(frozen=True)
class KMeansResult:
    """What a fit found, and how.

    Attributes:
        centroids: shape (K, hidden), fp32.
        sizes: rows nearest to each centroid, shape (K,), int64.
        inertia: sum of squared distances of the fitted rows to their centroids.
        empty_clusters: centroids that are nearest to no row.
        rows: rows that were fitted.
        dropped_rows: rows left out because they held a value that is not finite.
        sampled_out_rows: finite rows left out by `max_rows`.
        distinct_rows: how many of the fitted rows differ from each other; below K, centroids repeat.
        seed: of the start and of the sample.
        iterations: the limit that was asked for.
        backend: "faiss-gpu", "faiss-cpu" or "sklearn".
        backend_version: its version.
        seconds: wall time of the fit.
    """

    centroids: np.ndarray
    sizes: np.ndarray
    inertia: float
    empty_clusters: int
    rows: int
    dropped_rows: int
    sampled_out_rows: int
    distinct_rows: int
    seed: int
    iterations: int
    backend: str
    backend_version: str
    seconds: float


def kmeans(
    x: Any,
    k: int,
    seed: int = 42,
    iterations: int = 20,
    backend: Backend = "auto",
    max_rows: int | None = None,
) -> KMeansResult:
    """Fit K centroids by Lloyd's algorithm from a greedy k-means++ start.

    Every backend begins from the same start: greedy k-means++ (Arthur and Vassilvitskii, 2007, with the best
    of `8 (2 + ln K)` candidates a step) on a seeded sample of 4,096 rows, or 16 K if that is more. Rows are
    centred first, so that a component that is large in all of them costs no precision. The same seed, rows,
    backend and number of threads give the same centroids.

    The backends need the fitted rows in memory: one fp32 matrix is made, of at most `max_rows` rows. `x` is
    only ever read in parts, so it may be larger than memory.

    Args:
        x: shape (rows, hidden), floating point: an array, a memory map, or anything with `shape` that a slice
            and an ascending index array read from (`tccd.centroids.harvest.Rows`).
        k: number of centroids.
        seed: of the start and of the sample of rows.
        iterations: of Lloyd's algorithm, at most.
        backend: "auto" takes FAISS on GPUs if FAISS reports any, else FAISS, else scikit-learn, whichever is
            installed. A backend that fails is an error; no other takes its place.
        max_rows: fit a seeded sample of so many rows where there are more; all of them when None.

    Raises:
        ConfigError: a parameter is out of range, or the backend is unknown.
        FitError: x is no floating-point matrix, has fewer finite rows than `k`, or the backend finds no GPU.
        MissingExtraError: the backend is not installed; names the extra.

    Example:
        >>> import numpy as np
        >>> x = np.array([[0.0, 0.0], [0.0, 1.0], [9.0, 0.0], [9.0, 1.0]], dtype=np.float32)
        >>> found = kmeans(x, k=2)
        >>> sorted(found.centroids.tolist()), found.inertia
        ([[0.0, 0.5], [9.0, 0.5]], 1.0)
    """
    started = time.perf_counter()
    check_kmeans(k, seed, iterations, backend, max_rows)
    shape = tuple(getattr(x, "shape", ()))
    if len(shape) != 2 or not shape[1]:
        raise FitError(f"rows have shape {shape}; expected (rows, hidden)")
    run, backend_used, version = _backend(backend)

    finite = _finite_rows(x)
    available = int(finite.sum())
    if available < k:
        raise FitError(
            f"{available} finite rows of {shape[0]} are fewer than k = {k}; harvest more rows or lower k"
        )
    rng = np.random.default_rng(seed)
    used = np.flatnonzero(finite)
    if max_rows is not None and available > max_rows:
        used = np.sort(rng.choice(used, max_rows, replace=False))
    rows, mean, distinct = _centred(x, used)

    sample = rows
    if len(rows) > max(_START_ROWS, 16 * k):
        sample = rows[np.sort(rng.choice(len(rows), max(_START_ROWS, 16 * k), replace=False))]
    centroids = run(rows, greedy_start(sample, k, rng), iterations, seed)
    if not np.isfinite(centroids).all():
        raise FitError(f"{backend_used} returned centroids that are not finite; the rows' values are too large")
    sizes, inertia = _assess(rows, centroids)
    return KMeansResult(
        centroids=(centroids + mean).astype(np.float32),
        sizes=sizes,
        inertia=inertia,
        empty_clusters=int((sizes == 0).sum()),
        rows=len(rows),
        dropped_rows=shape[0] - available,
        sampled_out_rows=available - len(rows),
        distinct_rows=distinct,
        seed=seed,
        iterations=iterations,
        backend=backend_used,
        backend_version=version,
        seconds=time.perf_counter() - started,
    )


def check_kmeans(
    k: int, seed: int = 42, iterations: int = 20, backend: Backend = "auto", max_rows: int | None = None
) -> None:
    """Make sure that `kmeans` can run with these, before hours are spent on its rows.

    Args:
        k: as for `kmeans`; so are the others.

    Raises:
        ConfigError: a parameter is out of range, or the backend is unknown.
        FitError: the backend finds no GPU.
        MissingExtraError: the backend is not installed; names the extra.
    """
    for name, value, least in (("k", k, 1), ("seed", seed, 0), ("iterations", iterations, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{name} is {value!r}; expected an integer of at least {least}")
    if max_rows is not None:
        if not isinstance(max_rows, int) or isinstance(max_rows, bool) or max_rows < 1:
            raise ConfigError(f"max_rows is {max_rows!r}; expected a positive integer or None")
        if max_rows < k:
            raise ConfigError(
                f"k is {str(k)[:200]}, above the {max_rows} rows that one k-means fits (max_rows); take a smaller "
                "k, or fit from Python with a larger max_rows"
            )
    _backend(backend)


def greedy_start(x: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Choose K rows as a start by greedy k-means++.

    Args:
        x: shape (rows, hidden), fp32, at least K rows.
        k: number of rows to choose.
        rng: source of chance.

    Returns:
        Shape (K, hidden): rows of x. They repeat only where x has fewer than K distinct rows.
    """
    # Eight times scikit-learn's number: with 2 + ln K the start missed 2 or 3 of 256 well-separated clusters
    # (3 seeds), which Lloyd's algorithm never finds again (inertia 22 % above the best); with 64, none.
    candidates = 8 * (2 + int(np.log(k)))
    norms = np.einsum("ij,ij->i", x, x)
    chosen = [int(rng.integers(len(x)))]
    distance = np.maximum(norms - 2 * (x @ x[chosen[0]]) + norms[chosen[0]], 0)
    while len(chosen) < k:
        distance[chosen[-1]] = 0
        cumulative = np.cumsum(distance, dtype=np.float64)
        if not cumulative[-1] > 0:
            chosen.append(int(rng.integers(len(x))))
            continue
        picks = np.searchsorted(cumulative, rng.random(candidates) * cumulative[-1], side="right")
        picks = np.minimum(picks, len(x) - 1)
        trial = x @ x[picks].T  # this way round is several times as fast as the other
        trial *= -2
        trial += norms[:, None]
        trial += norms[picks]
        np.clip(trial, 0, distance[:, None], out=trial)
        best = int(trial.sum(0, dtype=np.float64).argmin())
        chosen.append(int(picks[best]))
        distance = trial[:, best].copy()
    return x[chosen]


def _finite_rows(x: Any) -> np.ndarray:
    finite = np.empty(x.shape[0], dtype=bool)
    for start in range(0, len(finite), _CHUNK_ROWS):
        part = _read(x, slice(start, start + _CHUNK_ROWS))
        finite[start : start + _CHUNK_ROWS] = np.isfinite(part).all(1)
    return finite


def _centred(x: Any, used: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Rows less their mean, the mean, and how many rows differ."""
    rows = np.empty((len(used), x.shape[1]), dtype=np.float32)
    total = np.zeros(x.shape[1])
    seen: set[bytes] = set()
    parts = [slice(start, start + _CHUNK_ROWS) for start in range(0, len(used), _CHUNK_ROWS)]
    for part in parts:
        rows[part] = _read(x, used[part])
        total += rows[part].sum(0, dtype=np.float64)
        # + 0: -0 is 0. 16 bytes of a hash keep a row of thousands of numbers apart from every other.
        seen.update(hashlib.blake2b(row, digest_size=16).digest() for row in rows[part] + np.float32(0))
    mean = total / len(used)
    for part in parts:
        rows[part] -= mean
    return rows, mean, len(seen)


def _read(x: Any, where: slice | np.ndarray) -> np.ndarray:
    part = np.asarray(x[where])
    if part.dtype.kind != "f":
        raise FitError(f"rows are of dtype {part.dtype}; expected floating point")
    with np.errstate(over="ignore"):  # a float64 beyond fp32 becomes infinite, and is counted as such
        return part.astype(np.float32, copy=False)


def _assess(rows: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, float]:
    # The search that replacement uses decides which clusters are empty, whatever the backend counted.
    search = Centroids(torch.from_numpy(centroids))
    sizes = np.zeros(len(centroids), dtype=np.int64)
    inertia = 0.0
    for start in range(0, len(rows), _CHUNK_ROWS):
        part = rows[start : start + _CHUNK_ROWS]
        nearest = search.nearest(torch.from_numpy(part)).numpy()
        sizes += np.bincount(nearest, minlength=len(sizes))
        gap = part - centroids[nearest]
        inertia += float(np.einsum("ij,ij->i", gap, gap).sum(dtype=np.float64))
    return sizes, inertia


_Run = Callable[[np.ndarray, np.ndarray, int, int], np.ndarray]


def _backend(name: str) -> tuple[_Run, str, str]:
    if name not in BACKENDS:
        raise ConfigError(f"unknown k-means backend {name!r}; expected one of {', '.join(BACKENDS)}")
    if name == "auto":
        name = _choose()
    if name == "sklearn":
        require("sklearn.cluster", "sklearn")
        return _sklearn, name, str(require("sklearn", "sklearn").__version__)
    faiss = require("faiss", "faiss-gpu" if name == "faiss-gpu" else "faiss")
    gpus = faiss.get_num_gpus() if name == "faiss-gpu" else 0
    if name == "faiss-gpu" and not gpus:
        raise FitError(
            f"backend faiss-gpu was asked for, but FAISS {faiss.__version__} reports no GPU; install "
            "'tccd[faiss-gpu]' in place of 'tccd[faiss]' and check the driver, or use faiss-cpu"
        )
    return (lambda *work: _faiss(faiss, gpus, *work)), name, str(faiss.__version__)


def _choose() -> str:
    try:
        faiss = require("faiss", "faiss")
    except MissingExtraError as error:
        try:
            require("sklearn", "sklearn")
        except MissingExtraError:
            raise MissingExtraError(
                "no k-means backend is installed; each comes with an extra: pip install 'tccd[faiss]', "
                "'tccd[faiss-gpu]' or 'tccd[sklearn]'"
            ) from error
        return "sklearn"
    return "faiss-gpu" if faiss.get_num_gpus() else "faiss-cpu"


def _faiss(faiss: Any, gpus: int, rows: np.ndarray, start: np.ndarray, iterations: int, seed: int) -> np.ndarray:
    k = len(start)
    found = faiss.Kmeans(
        rows.shape[1],
        k,
        niter=iterations,
        seed=seed % 2**31,
        gpu=gpus,
        # FAISS would fit a sample of 256 rows a centroid and warn below 39.
        max_points_per_centroid=-(-len(rows) // k),
        min_points_per_centroid=1,
    )
    found.train(rows, init_centroids=start)
    return np.array(found.centroids, dtype=np.float32)


def _sklearn(rows: np.ndarray, start: np.ndarray, iterations: int, seed: int) -> np.ndarray:
    cluster = require("sklearn.cluster", "sklearn")
    threadpoolctl = require("threadpoolctl", "sklearn")
    # Its threads add their sums in the order in which they finish; one thread gives the same bank twice.
    with threadpoolctl.threadpool_limits(1, user_api="openmp"):
        found = cluster.KMeans(
            len(start),
            init=start,
            n_init=1,
            max_iter=iterations,
            random_state=seed % 2**32,
            algorithm="lloyd",
        )
        found.fit(rows)
    return np.array(found.cluster_centers_, dtype=np.float32)
