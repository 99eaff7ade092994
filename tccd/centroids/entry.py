"""One set of centroids of a bank: how it came about, and what it is called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tccd.errors import BankError
from tccd.modality import MODALITIES, Modality

Key = tuple[Modality, int]


@dataclass(frozen=True)
class Entry:
    """How one set of centroids came about; None where it is not known (centroids made elsewhere).

    Attributes:
        k: number of centroids.
        rows: rows that were fitted.
        seed: of k-means.
        iterations: of k-means, at most.
        inertia: sum of squared distances of the fitted rows to their centroids.
        backend: "faiss-gpu", "faiss-cpu" or "sklearn".
        backend_version: its version.
        empty_clusters: centroids that no row was nearest to.
        dropped_rows: rows left out because they held a value that is not finite.
        sampled_out_rows: finite rows left out to bound memory.
        distinct_rows: how many of the fitted rows differ from each other; below `k`, centroids repeat.
    """

    k: int
    rows: int | None = None
    seed: int | None = None
    iterations: int | None = None
    inertia: float | None = None
    backend: str | None = None
    backend_version: str | None = None
    empty_clusters: int | None = None
    dropped_rows: int | None = None
    sampled_out_rows: int | None = None
    distinct_rows: int | None = None


def key_name(key: Any) -> str:
    """`("text", 12)` -> `text.12`."""
    return f"{key[0]}.{key[1]}"


def key_names(keys: Any) -> str:
    """The names of several, for a message."""
    return ", ".join(key_name(key) for key in sorted(keys)) or "nothing"


def parse_key(name: str) -> Key:
    """`text.12` -> `("text", 12)`.

    Raises:
        BankError: no such name.
    """
    modality, _, layer = name.partition(".")
    if modality not in MODALITIES or not layer.isdecimal():
        raise BankError(f"tensor {name[:200]!r} is no centroid entry; expected names such as 'text.12'")
    return modality, int(layer)
