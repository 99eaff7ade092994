"""Settings of contrast, and the alpha protocols that choose among those a run measured.

`fixed`, `cv`, `best` and `leave_one_model_out` are pure functions of a table; `protocols` asks them about a
report's cells, whose settings stand in the table by their rank from the mildest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from probes.references import PARAMETERS, RULE, TEXT, name_of, rank_of
from tccd.errors import ConfigError, DataError

SETTINGS = ("reference", *PARAMETERS, *RULE)
"""What makes a setting of contrast."""

#: The published setting, TCCD's, which the protocol `fixed` holds to.
PUBLISHED = {"alpha_cd": 1.0, "alpha_interp": 0.4}

#: What each protocol's figures are, for whoever reads them.
NOTES = {
    "fixed": "one setting, chosen in advance: the nearest to the published one (text-centroid, alpha_cd 1, "
    "alpha_interp 0.4)",
    "cv": "leave one task out: each task at the setting with the best mean over the other tasks",
    "leave-one-model-out": "settings with the best mean over the other models",
    "best": "oracle upper bound: each task at its best setting, chosen on the outcomes that are reported",
}

Table = Mapping[str, Mapping[float, float]]
"""`{task: {alpha: value}}`: deltas or accuracies, higher is better, the same alphas for every task."""


@dataclass(frozen=True)
class Protocol:
    """What an alpha protocol chose, and what that gave: one alpha and one value a task (or a model).

    `oracle` is true where alpha was chosen on the very outcomes that are reported: an upper bound, never a
    result that a user can expect.
    """

    name: str
    chosen: Mapping[str, float]
    values: Mapping[str, float]
    oracle: bool = False

    @property
    def mean(self) -> float:
        """Unweighted mean of `values`."""
        return fmean(self.values.values())

    @property
    def n_positive(self) -> int:
        """How many values lie above zero (meaningful for deltas)."""
        return sum(value > 0 for value in self.values.values())


def fixed(table: Table, alpha: float) -> Protocol:
    """The value of every task at one alpha, fixed in advance.

    Raises:
        DataError: an empty or ragged table.
        ConfigError: an alpha that the table doesn't hold.
    """
    alphas = _alphas({"": table})
    if alpha not in alphas:
        raise ConfigError(f"alpha = {alpha!r} is not in the table; it holds {alphas}")
    return Protocol("fixed", dict.fromkeys(table, alpha), {task: row[alpha] for task, row in table.items()})


def cv(table: Table) -> Protocol:
    """Leave one task out: each task's value at the alpha with the best mean over the other tasks.

    Ties go to the smallest alpha, as in the published tables.

    Raises:
        DataError: an empty or ragged table, or fewer than two tasks.
    """
    alphas = _alphas({"": table})
    if len(table) < 2:
        raise DataError("leaving one task out needs at least two tasks; the table holds one")
    chosen = {}
    for task in table:
        others = [row for name, row in table.items() if name != task]
        chosen[task] = _best_alpha({alpha: fmean(row[alpha] for row in others) for alpha in alphas})
    return Protocol("cv", chosen, {task: table[task][alpha] for task, alpha in chosen.items()})


def best(table: Table) -> Protocol:
    """Each task's best alpha, chosen on the outcomes reported: an oracle upper bound, not a result.

    Ties go to the smallest alpha.

    Raises:
        DataError: an empty or ragged table.
    """
    _alphas({"": table})
    chosen = {task: _best_alpha(row) for task, row in table.items()}
    return Protocol("best", chosen, {task: table[task][a] for task, a in chosen.items()}, oracle=True)


def leave_one_model_out(tables: Mapping[str, Table]) -> Protocol:
    """Each model's mean over its tasks, at the alpha with the best mean over the other models.

    A model weighs the same whatever its number of tasks. Ties go to the smallest alpha.

    Args:
        tables: `{model: {task: {alpha: value}}}`, the same alphas everywhere.

    Raises:
        DataError: an empty or ragged table, or fewer than two models.
    """
    alphas = _alphas(tables)
    if len(tables) < 2:
        raise DataError("leaving one model out needs at least two models")
    means = {m: {a: fmean(row[a] for row in table.values()) for a in alphas} for m, table in tables.items()}
    chosen = {}
    for model in means:
        others = [row for name, row in means.items() if name != model]
        chosen[model] = _best_alpha({alpha: fmean(row[alpha] for row in others) for alpha in alphas})
    return Protocol("leave-one-model-out", chosen, {model: means[model][a] for model, a in chosen.items()})


def settings_of(cell: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be set to decode as in a report's setting."""
    gated = cell.get("gate") is not None
    names = [name for name in SETTINGS if gated or not name.startswith("gate_")]
    cell = {**cell, "reference": name_of(cell)}
    return {name: cell[name] for name in names if cell.get(name) is not None}


def mildest_first(cells: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Settings ordered by what they cost and how much they change: the cheaper reference first, then the weaker
    contrast, of two signs the positive one, then the weaker erasure, then the higher layer.
    """
    return [cells[i] for i in _by_mildness(cells)]


def protocols(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What each protocol would have chosen, and gained by task.

    Args:
        cells: the `tccd_cells` of one model, with `by_task`. Ties go to the mildest.

    Returns:
        A report's `protocols` of the model, its cells numbered from 0; `cv` only where there are two tasks.
    """
    tasks = [row["task"] for row in cells[0]["by_task"]]
    order = _by_mildness(cells)
    table = {
        task: {float(rank): cells[i]["by_task"][t]["delta"] for rank, i in enumerate(order)}
        for t, task in enumerate(tasks)
    }
    found = [fixed(table, float(order.index(published(cells))))]
    if len(tasks) > 1:
        found.append(cv(table))
    found.append(best(table))
    return [
        {
            "name": protocol.name,
            "oracle": protocol.oracle,
            "note": NOTES[protocol.name],
            "chosen": {task: order[int(rank)] for task, rank in protocol.chosen.items()},
            "values": dict(protocol.values),
            "mean": protocol.mean,
            "n_positive": protocol.n_positive,
        }
        for protocol in found
    ]


def published(cells: Sequence[Mapping[str, Any]]) -> int:
    """The number of the cell nearest to the published setting: its reference before all others, of which the
    cheapest; then by its alphas, then no plausibility and no gate, then the middle one of the layers, then the
    largest K.
    """
    layers = sorted({cell["layer"] for cell in cells if cell.get("layer") is not None})
    middle = layers[len(layers) // 2] if layers else 0

    def distance(i: int) -> tuple[Any, ...]:
        cell, name = cells[i], name_of(cells[i])
        away = sum(abs(cell[key] - value) for key, value in PUBLISHED.items() if cell.get(key) is not None)
        plain = cell["beta"] + (cell["gate"] is not None)
        place = abs((cell.get("layer") or 0) - middle), -(cell.get("k") or 0)
        return name != TEXT, rank_of(name), away, plain, *place, i

    return min(range(len(cells)), key=distance)


def _by_mildness(cells: Sequence[Mapping[str, Any]]) -> list[int]:
    def mildness(i: int) -> tuple[Any, ...]:
        cell = cells[i]
        erased = -(cell.get("alpha_interp") or 0.0), -(cell.get("layer") or 0), cell.get("k") or 0
        return rank_of(name_of(cell)), abs(cell["alpha_cd"]), -cell["alpha_cd"], *erased

    return sorted(range(len(cells)), key=mildness)


def _best_alpha(scores: Mapping[float, float]) -> float:
    # A mean of equal deltas differs in its last bits with the order of its terms; ties must not.
    top = max(scores.values())
    return min(alpha for alpha, score in scores.items() if score >= top - 1e-12)


def _alphas(tables: Mapping[str, Table]) -> list[float]:
    rows = [(f"{model} {task}".strip(), row) for model, table in tables.items() for task, row in table.items()]
    if not rows or not rows[0][1] or not all(tables.values()):
        raise DataError("the table is empty; expected {task: {alpha: value}} with at least one of each")
    expected = sorted(rows[0][1])
    for name, row in rows:
        if sorted(row) != expected:
            raise DataError(f"task {name} holds alphas {sorted(row)}; expected {expected} as in {rows[0][0]}")
        if not all(math.isfinite(value) for value in row.values()):
            raise DataError(f"task {name} holds a value that is not finite")
    return expected
