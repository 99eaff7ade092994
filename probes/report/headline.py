"""Which of a model's cells the answer rests on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Cell = Mapping[str, Any]


@dataclass(frozen=True)
class Headline:
    """One slice of a model's cells (same K, alpha_interp, segment) and, in it, one layer's two costs."""

    model: str
    k: int
    alpha_interp: float
    segment: str
    layer: int
    by_layer: Mapping[str, Sequence[Cell]]
    """Cells of the slice by modality, ordered by layer."""
    text: Cell | None
    vision: Cell | None

    @property
    def conditions(self) -> str:
        """The slice in words."""
        segment = "" if self.segment == "all" else f", text segment {self.segment}"
        return f"K = {self.k}, alpha_interp = {self.alpha_interp:g}{segment}"


def headline(result: Mapping[str, Any], model: str) -> Headline | None:
    """Choose the slice and the layer to show first; None for a model without cells.

    The slice is the one of the model's `ratio` where that names k, alpha_interp or segment; else the whole
    tail, the strongest erasure (lowest alpha_interp), and the K with the most cells (the smallest of equals).
    The layer is that of `ratio`; else the one with both modalities measured where text costs most.
    """
    cells = [cell for cell in result["cells"] if cell["model"] == model]
    ratio = (result.get("ratio") or {}).get(model, {})
    if not cells:
        return None

    def narrow(key: str, choose: Any) -> Any:
        values = [cell[key] for cell in cells]
        value = ratio[key] if ratio.get(key) in values else choose(values)
        # Vision cells have no text segment: they may carry another word there.
        cells[:] = [c for c in cells if c[key] == value or (key == "segment" and c["modality"] == "vision")]
        return value

    segment = narrow("segment", lambda v: "all" if "all" in v else _commonest(v))
    alpha = narrow("alpha_interp", min)
    k = narrow("k", _commonest)
    by_layer = {
        modality: sorted((c for c in cells if c["modality"] == modality), key=lambda c: c["layer"])
        for modality in ("text", "vision")
    }
    at = {modality: {c["layer"]: c for c in row} for modality, row in by_layer.items()}
    layers = sorted(set(at["text"]) & set(at["vision"])) or sorted(set(at["text"]) | set(at["vision"]))
    layer = ratio.get("layer")
    if layer not in layers:
        costs = at["text"] or at["vision"]
        layer = max(layers, key=lambda n: costs[n]["cost"] if n in costs else -1)
    return Headline(model, k, alpha, segment, layer, by_layer, at["text"].get(layer), at["vision"].get(layer))


def _commonest(values: Iterable[Any]) -> Any:
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))
