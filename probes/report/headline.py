"""Which of a model's cells the answer rests on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Cell = Mapping[str, Any]


@dataclass(frozen=True)
class Headline:
    """One slice of a model's cells (same K, bank, alpha_interp, segments) and, in it, one layer's two costs."""

    model: str
    k: int
    alpha_interp: float
    segment: str
    layer: int
    """Where text was erased, or both; vision alone where text wasn't."""
    vision_layer: int
    """The same layer unless text and vision were erased at none in common."""
    by_layer: Mapping[str, Sequence[Cell]]
    """Cells of the slice by modality, ordered by layer."""
    by_dose: Mapping[str, Sequence[Cell]]
    """Cells like the slice's at these layers, of every alpha_interp, by modality, ordered by it."""
    text: Cell | None
    vision: Cell | None

    @property
    def conditions(self) -> str:
        """The slice in words."""
        segment = "" if self.segment == "all" else f", text segment {self.segment}"
        return f"K = {self.k}, alpha_interp = {self.alpha_interp:g}{segment}"

    @property
    def where(self) -> str:
        """The layer or layers in words."""
        if self.layer == self.vision_layer:
            return f"layer {self.layer}"
        return f"text at layer {self.layer}, vision at layer {self.vision_layer}"


def headline(result: Mapping[str, Any], model: str) -> Headline | None:
    """Choose the slice and the layer to show first; None for a model without cells.

    The slice is the one of the model's `ratio` where that names k, alpha_interp or segment; else the whole
    tail, the strongest erasure (lowest alpha_interp), and the K with the most cells (the smallest of equals).
    The layer is that of `ratio`; else the one with both modalities measured where text costs most. Where they
    were measured at no layer in common, as in the paper, each has its own.
    """
    cells = [cell for cell in result["cells"] if cell["model"] == model]
    ratio = (result.get("ratio") or {}).get(model, {})
    if not cells:
        return None

    def narrow(key: str, choose: Any, modality: str | None = None) -> Any:
        values = [c.get(key) for c in cells if modality in (None, c["modality"])]
        if not values:
            return None
        value = ratio[key] if key in ratio and ratio[key] in values else choose(values)
        cells[:] = [c for c in cells if c.get(key) == value or modality not in (None, c["modality"])]
        return value

    # Vision has no text segment and carries other words there.
    segment = narrow("segment", lambda v: "all" if "all" in v else _commonest(v), "text")
    narrow("segment", lambda v: "tokens" if "tokens" in v else _commonest(v), "vision")
    k = narrow("k", _commonest)
    narrow("bank", lambda v: v[0])
    doses = list(cells)
    alpha = narrow("alpha_interp", min)
    by_layer = {modality: _ordered(cells, modality, "layer") for modality in ("text", "vision")}
    at = {modality: {c["layer"]: c for c in row} for modality, row in by_layer.items()}
    common = set(at["text"]) & set(at["vision"])

    def pick(modality: str, asked: Any, candidates: set[int]) -> int:
        return asked if asked in candidates else max(sorted(candidates), key=lambda n: at[modality][n]["cost"])

    first = "text" if at["text"] else "vision"
    layer = pick(first, ratio.get("layer"), common or set(at[first]))
    vision_layer = layer
    if at["text"] and at["vision"] and not common:
        vision_layer = pick("vision", ratio.get("vision_layer"), set(at["vision"]))
    placed = {"text": layer, "vision": vision_layer}
    by_dose = {
        modality: _ordered((c for c in doses if c["layer"] == placed[modality]), modality, "alpha_interp")
        for modality in placed
    }
    text, vision = at["text"].get(layer), at["vision"].get(vision_layer)
    return Headline(model, k, alpha, segment or "all", layer, vision_layer, by_layer, by_dose, text, vision)


def _ordered(cells: Iterable[Cell], modality: str, key: str) -> list[Cell]:
    return sorted((c for c in cells if c["modality"] == modality), key=lambda c: c[key])


def _commonest(values: Iterable[Any]) -> Any:
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))
