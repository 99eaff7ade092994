"""The alpha protocols over the settings of TCCD that a run measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from probes import statistics
from probes.grid import PUBLISHED

#: What each protocol's figures are, for whoever reads them.
NOTES = {
    "fixed": "one setting, chosen in advance: the nearest to the published one (alpha_cd 1, alpha_interp 0.4)",
    "cv": "leave one task out: each task at the setting with the best mean over the other tasks",
    "best": "oracle upper bound: each task at its best setting, chosen on the outcomes that are reported",
}


def protocols(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What each protocol would have chosen, and gained by task.

    Args:
        cells: the `tccd_cells` of one model, weak contrast first: ties go to the first.

    Returns:
        A report's `protocols` of the model, its cells numbered from 0; `cv` only where there are two tasks.
    """
    tasks = [row["task"] for row in cells[0]["by_task"]]
    table = {
        task: {float(i): cell["by_task"][t]["delta"] for i, cell in enumerate(cells)}
        for t, task in enumerate(tasks)
    }
    found = [statistics.fixed(table, float(published(cells)))]
    if len(tasks) > 1:
        found.append(statistics.cv(table))
    found.append(statistics.best(table))
    return [
        {
            "name": protocol.name,
            "oracle": protocol.oracle,
            "note": NOTES[protocol.name],
            "chosen": {task: int(index) for task, index in protocol.chosen.items()},
            "values": dict(protocol.values),
            "mean": protocol.mean,
            "n_positive": protocol.n_positive,
        }
        for protocol in found
    ]


def published(cells: Sequence[Mapping[str, Any]]) -> int:
    """The cell whose setting is nearest to the published one: first its alphas, no plausibility and no gate, then
    the middle one of the layers, then the largest K.
    """
    layers = sorted({cell["layer"] for cell in cells})
    middle = layers[len(layers) // 2]

    def distance(i: int) -> tuple:
        cell = cells[i]
        away = sum(abs(cell[name] - value) for name, value in PUBLISHED.items())
        return away, cell["beta"] + (cell["gate"] is not None), abs(cell["layer"] - middle), -cell["k"], i

    return min(range(len(cells)), key=distance)
