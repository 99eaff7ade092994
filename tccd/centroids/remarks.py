"""What a reader of a bank has to know before they trust it, in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

#: Images that a vision mean should be a mean of, at least. Of 8 it harmed a real language model's answers about
#: ordinary pictures; of 100 it did not.
ENOUGH_IMAGES = 100


def remarks(entries: Mapping[Any, Any], provenance: Mapping[str, Any]) -> Iterator[str]:
    """Warnings on a bank: too few distinct rows, empty clusters, rows left out, few images, copies among them.

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
    yield from _of_vision_mean(provenance.get("vision_mean"))
    copies = provenance.get("copies")
    if isinstance(copies, int) and copies:
        yield (
            f"{copies} of its pictures are copies of others under another name; each copy counted once more in "
            "the fit"
        )


def _of_vision_mean(known: Any) -> Iterator[str]:
    if not isinstance(known, Mapping):
        return
    images, dropped = known.get("images"), known.get("dropped_states")
    if isinstance(images, int) and images < ENOUGH_IMAGES:
        yield (
            f"its vision mean is of {images} images; of fewer than {ENOUGH_IMAGES} the reference mean-vision may "
            "harm answers about ordinary pictures. Fit on more images (--images)"
        )
    if isinstance(dropped, int) and dropped:
        yield (
            f"its vision mean leaves out {dropped} states because they held a value that is not finite. Load the "
            "model in another precision (--dtype)"
        )
