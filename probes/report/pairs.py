"""Two costs of one model, and two models, by their difference over the same questions.

Intervals that overlap say little: two costs over the same questions share what is easy and hard in them. Their
paired difference doesn't, so it is what tells them apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from probes.pairing import Cell
from probes.report.headline import headline
from probes.statistics.clusters import Difference, clustered, clusters_of, mean_difference
from probes.statistics.intervals import SIGNIFICANT, holm
from probes.statistics.outcomes import outcomes_of

MEASURES = {"accuracy": "accuracy", "text": "text cost", "vision": "vision cost"}


def between_costs(result: Mapping[str, Any], one: Cell, other: Cell) -> Difference | None:
    """The cost of one cell less that of another of the same model, over the same questions.

    Args:
        result: the report of both.
        one, other: cells of one model.

    Returns:
        None where the report doesn't hold the outcomes of single questions.
    """
    asked = (result.get("questions") or {}).get(one["model"])
    if not asked or not one.get("right") or not other.get("right"):
        return None
    # Both costs leave from the same clean outcomes, so what differs is which erased stream is right.
    return clustered(outcomes_of(one["right"]), outcomes_of(other["right"]), clusters_of(asked))


def larger(result: Mapping[str, Any], one: Cell, other: Cell) -> tuple[int, Difference | None]:
    """Which of two costs is larger, 1 or -1, or 0 where that can't be told; and their paired difference.

    Told where the interval leaves zero out and the test is significant; of a report without the outcomes of
    single questions only where the two costs' own intervals are apart, which is stricter.
    """
    difference = between_costs(result, one, other)
    if difference is None:
        apart = one["ci95"][0] > other["ci95"][1], other["ci95"][0] > one["ci95"][1]
        return int(apart[0]) - int(apart[1]), None
    if difference.p_value >= SIGNIFICANT or difference.low <= 0 <= difference.high:
        return 0, difference
    return (1 if difference.value > 0 else -1), difference


def between_models(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every two models by the difference of accuracy, text cost and vision cost (of the cells shown first).

    Returns:
        `[{"models": [one, other], "measure": "accuracy" | "text" | "vision", "difference": one less other, "ci95",
        "p_value", "p_holm": adjusted over all rows, "n"}]`, fractions. Only of models that answered the same
        questions, and whose report holds the outcomes of single ones.
    """
    columns = {model: _columns(result, model) for model in result["models"]}
    rows: list[dict[str, Any]] = []
    for one, other in itertools.combinations((m for m, of in columns.items() if of), 2):
        order = _same_questions(result["questions"][one], result["questions"][other])
        if order is None:
            continue
        clusters = clusters_of(result["questions"][one])
        for measure in MEASURES:
            if measure in columns[one] and measure in columns[other]:
                found = mean_difference(columns[one][measure] - columns[other][measure][order], clusters)
                rows.append(
                    {"models": [one, other], "measure": measure, "difference": found.value}
                    | {"ci95": [found.low, found.high], "p_value": found.p_value, "n": len(order)}
                )
    for row, adjusted in zip(rows, holm([row["p_value"] for row in rows]).tolist(), strict=True):
        row["p_holm"] = adjusted
    return rows


def _columns(result: Mapping[str, Any], model: str) -> dict[str, np.ndarray]:
    """What each question adds to each measure, whole numbers of shape (n,)."""
    asked = (result.get("questions") or {}).get(model)
    if not asked:
        return {}
    clean = outcomes_of(asked["right"]).astype(int)
    found, chosen = {"accuracy": clean}, headline(result, model)
    for modality in ("text", "vision"):
        cell = chosen and getattr(chosen, modality)
        if cell and cell.get("right"):
            found[modality] = clean - outcomes_of(cell["right"])
    return found


def _same_questions(one: Mapping[str, Sequence[str]], other: Mapping[str, Sequence[str]]) -> np.ndarray | None:
    """Where each question of the first stands in the second, or None where they were asked others."""
    at = {name: i for i, name in enumerate(other["id"])}
    if len(at) != len(one["id"]) or set(at) != set(one["id"]):
        return None
    return np.array([at[name] for name in one["id"]])
