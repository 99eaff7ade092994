"""Figures by task are as unsure as what their questions share makes them."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from probes.report.page import render
from probes.report.section import Report
from probes.report.sections import csv_tables
from probes.report.sections.chosen import ChosenSection
from probes.report.sections.tasks import TasksSection
from probes.statistics.clusters import Clusters, clustered_wilson
from probes.statistics.intervals import wilson
from probes.statistics.outcomes import cost, outcomes_of
from tests.probes.probed import TASKS, probed
from tests.probes.reports import result


def shared(n=240):
    """Outcomes that are the same for all questions of a picture, ten a picture, in two tasks and one wording."""
    generator = np.random.default_rng(1)
    pictures = np.repeat(np.arange(n // 10), 10)
    clean = np.repeat(generator.random(n // 10) < 0.8, 10)
    erased = clean & np.repeat(generator.random(n // 10) < 0.7, 10)
    tasks = [TASKS[i % 2] for i in range(n)]
    return clean, erased, tasks, Clusters.of(pictures, ["the same words"] * n)


def test_an_interval_by_task_is_widened_by_pictures_and_says_so():
    clean, erased, tasks, clusters = shared()
    alone = cost(clean, erased, tasks)["by_task"]
    together = cost(clean, erased, tasks, clusters)["by_task"]
    for one, other in zip(alone, together, strict=True):
        assert one["cost"] == other["cost"]
        assert np.diff(other["ci95"]) > 1.3 * np.diff(one["ci95"])
        # One wording is no sample of wordings, so what counts is the picture.
        assert (one["clustered_by"], other["clustered_by"]) == ("item", "picture")


def bars(monkeypatch, section, of):
    """The groups that a section's drawing is made of."""
    drawn = []
    monkeypatch.setattr("probes.report.figures.bars", lambda groups, *_: drawn.append(groups) or "<svg></svg>")
    section.context(Report(of))
    return drawn


def test_bars_are_as_wide_as_their_questions_share(monkeypatch):
    of = probed(n=200)
    asked = of["questions"]["competing"]
    (groups,) = bars(monkeypatch, TasksSection(), of)
    at = np.array([task == "colour" for task in asked["task"]])
    pictures = np.array(asked["image_id"])[at]
    group = next(group for group in groups if group.name == "colour")
    plain = outcomes_of(asked["right"])[at]
    assert group.bars[0].ci95 == clustered_wilson(plain, Clusters.of(pictures))
    del of["questions"]
    (groups,) = bars(monkeypatch, TasksSection(), of)
    group = next(group for group in groups if group.name == "colour")
    assert group.bars[0].ci95 == wilson(int(plain.sum()), len(plain))


def test_bars_of_a_run_are_those_of_its_single_questions(monkeypatch):
    of = result()
    task, n = of["tccd"]["competing"]["by_task"][0]["task"], 200
    right = np.arange(n) // 20 % 2 == 0
    of["tccd"]["competing"]["by_task"] = [{"task": task, "n": n, "baseline": 0.5, "accuracy": 1.0}]
    of["items"]["competing"] = [
        {"task": task, "picture": str(i // 20), "prompt": "p", "answer": "yes", "tccd": "yes"}
        | {"plain": "yes" if right[i] else "no"}
        for i in range(n)
    ]
    ((group,), _) = bars(monkeypatch, ChosenSection(), of)
    expected = clustered_wilson(right, Clusters.of(np.arange(n) // 20, ["p"] * n))
    assert group.bars[0].ci95 == expected
    assert expected[1] - expected[0] > 2 * np.diff(wilson(100, n))


@pytest.mark.parametrize("older", [False, True])
def test_the_table_says_what_an_interval_is_of(older):
    of = probed(n=80)
    if older:
        for row in (*of["cells"], *of["controls"], *of["tccd_cells"]):
            for task in row["by_task"]:
                del task["clustered_by"]
    rows = list(csv.DictReader(io.StringIO(csv_tables(of)["report-tasks.csv"])))
    assert {row["clustered_by"] for row in rows} == ({""} if older else {"item"})
    assert ("by an earlier version" in render(of)) == older
