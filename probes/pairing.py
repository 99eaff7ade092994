"""Which two cells, one of text and one of vision, are compared: one rule for the probe, the report and benchmarks.

Cells are chosen by where they stand and never by their outcome: the largest of many costs would flatter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tccd.modality import MODALITIES

Cell = Mapping[str, Any]


@dataclass(frozen=True)
class Chosen:
    """Cells by their number in the list they were chosen from.

    Attributes:
        slice: those of one bank, K and alpha_interp, and of one segment a modality.
        doses: the slice's, and those that differ from them in alpha_interp alone.
        pair: modality -> the cell that is compared; what was not measured is missing.
    """

    slice: tuple[int, ...]
    doses: tuple[int, ...]
    pair: Mapping[str, int]


def choose_pair(cells: Sequence[Cell], asked: Mapping[str, Any] | None = None) -> Chosen:
    """The cells to compare, and the slice that they stand in.

    The slice is that of the first bank, its most frequent K (of equals the smallest), the lowest alpha_interp, and
    of each modality the first segment. In it the middle of the layers that hold both modalities is compared; where
    there is none, as in the published protocol, the middle layer of each.

    Args:
        cells: of one model, in the order that they were asked for; at least one.
        asked: what to take instead where the cells have it: `k`, `bank`, `alpha_interp`, `segment`, `layer` and
            `vision_layer`, as a report's `ratio` names them.
    """
    asked = asked or {}
    left = list(range(len(cells)))

    def narrow(key: str, value: Any, modality: str | None = None) -> None:
        if key in asked and any(cells[i].get(key) == asked[key] for i in left if _is(cells[i], modality)):
            value = asked[key]
        left[:] = [i for i in left if not _is(cells[i], modality) or cells[i].get(key) == value]

    for modality in MODALITIES:
        segments = [cell["segment"] for cell in cells if cell["modality"] == modality]
        if segments:
            narrow("segment", segments[0], modality)
    narrow("bank", cells[left[0]].get("bank"))
    narrow("k", _commonest(cells[i]["k"] for i in left))
    doses = tuple(left)
    narrow("alpha_interp", min(cells[i]["alpha_interp"] for i in left))
    at = {m: {cells[i]["layer"]: i for i in left if cells[i]["modality"] == m} for m in MODALITIES}
    common = set(at["text"]) & set(at["vision"])
    pair: dict[str, int] = {}
    for modality, by in at.items():
        layers = sorted(common or by)
        if layers:
            name = "vision_layer" if modality == "vision" and "vision_layer" in asked else "layer"
            wanted = asked.get(name)
            pair[modality] = by[wanted if wanted in layers else layers[len(layers) // 2]]
    return Chosen(tuple(left), doses, pair)


def _is(cell: Cell, modality: str | None) -> bool:
    return modality is None or cell["modality"] == modality


def _commonest(values: Iterable[Any]) -> Any:
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))
