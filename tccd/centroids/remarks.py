"""What a reader of a bank has to know before they trust it, in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def remarks(entries: Mapping[Any, Any], provenance: Mapping[str, Any]) -> Iterator[str]:
    """Warnings on a bank: too few distinct rows, empty clusters, rows left out, copies among its pictures.

    Args:
        entries: `Entry` by (modality, layer).
        provenance: of the bank.
    """
    for (modality, layer), entry in entries.items():
        name = f"{modality}.{layer}"
        distinct = entry.distinct_rows
        if distinct is not None and distinct < entry.k:
            yield (
                f"{name}: only {distinct} of its {entry.rows} rows differ, fewer than its {entry.k} centroids, so "
                "centroids repeat. Fit on more images, or with a lower --k"
            )
        elif entry.empty_clusters:
            yield (
                f"{name}: {entry.empty_clusters} of its {entry.k} clusters are empty: no fitted row is nearest to "
                "their centroids. Fit on more images, or with a lower --k"
            )
        if entry.dropped_rows:
            yield (
                f"{name}: {entry.dropped_rows} rows were left out because they held a value that is not finite. "
                "Load the model in another precision (--dtype)"
            )
    copies = provenance.get("copies")
    if isinstance(copies, int) and copies:
        yield (
            f"{copies} of its pictures are copies of others under another name; each copy counted once more in "
            "the fit"
        )
