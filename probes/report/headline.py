"""Which of a model's cells the answer rests on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from probes.pairing import Cell, choose_pair


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
    """The slice and the layer to show first, by `probes.pairing.choose_pair`; None for a model without cells.

    What the model's `ratio` names (k, bank, alpha_interp, segment, layers) is taken where it was measured.
    """
    cells = [cell for cell in result.get("cells") or () if cell["model"] == model]
    if not cells:
        return None
    chosen = choose_pair(cells, (result.get("ratio") or {}).get(model))
    text, vision = (cells[chosen.pair[m]] if m in chosen.pair else None for m in ("text", "vision"))
    first = text or vision
    assert first is not None
    placed = {"text": first["layer"], "vision": (vision or first)["layer"]}
    doses = [cells[i] for i in chosen.doses if cells[i]["layer"] == placed[cells[i]["modality"]]]
    return Headline(
        model=model,
        k=first["k"],
        alpha_interp=first["alpha_interp"],
        segment=text["segment"] if text else "all",
        layer=placed["text"],
        vision_layer=placed["vision"],
        by_layer=_by_modality([cells[i] for i in chosen.slice], "layer"),
        by_dose=_by_modality(doses, "alpha_interp"),
        text=text,
        vision=vision,
    )


def _by_modality(cells: Iterable[Cell], key: str) -> dict[str, list[Cell]]:
    ordered = sorted(cells, key=lambda cell: cell[key])
    return {modality: [c for c in ordered if c["modality"] == modality] for modality in ("text", "vision")}
