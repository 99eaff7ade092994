"""The grid of routes on a few questions: every arm by task, and differences that are those of the answers."""

from __future__ import annotations

import json

import numpy as np
from rich.console import Console

from eval import zoo
from eval.routing import __main__ as command
from eval.routing.grid import Arm, answers, arms, measure, questions
from tccd.routing import Routed
from tccd.routing.training import Training


def test_every_arm_is_measured_by_task_against_the_plain_model():
    model, processor = zoo.load("llava-grounded")
    test, train = questions("test", 20), questions("train", 8)
    tried = [Arm("plain"), Arm("none", 1), Arm("identity", 2, 1), Arm("branch", 2, 1, 0)]
    rows = measure(model, processor, test, train, tried, Training(batch_size=8, learning_rate=2e-3))
    json.dumps(rows, allow_nan=False)
    plain = answers(model, processor, test, None)
    none = answers(model, processor, test, Routed(model, 1, branch="none"))
    assert rows[1]["tasks"]["all"]["to_plain"]["value"] == (none.astype(int) - plain).mean()
    read = np.array([one.task == "read" for one in test])
    assert rows[1]["tasks"]["read"]["accuracy"] == none[read].mean()
    assert 0.1 < rows[3]["share"] < 0.2
    assert "to_identity" in rows[3]["tasks"]["all"]
    console = Console(record=True, width=200, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(command.table({"config": {"model": "llava-grounded"}, "arms": rows}))
    assert "identity" in console.export_text()


def test_the_grid_holds_each_route_that_a_model_has_layers_for():
    found = list(arms(6, [(1, 1), (5, 1)], [0, 1]))
    assert len(found) == len(set(found)) == 1 + 5 + 4 + 3 + 4
    assert all(arm.split + arm.fuse <= 6 for arm in found)
