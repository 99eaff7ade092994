"""The accuracy benchmark on a few questions, and its rule of choice."""

from __future__ import annotations

import numpy as np
import pytest

from eval import accuracy


def test_the_rule_of_choice():
    settings = list(accuracy.grid())
    competing, grounded = np.zeros(len(settings)), np.full(len(settings), -1.0)
    margins = [i for i, s in enumerate(settings) if s.rule == "margin"]
    competing[margins[3]], grounded[margins[3]] = 0.04, -0.001
    competing[margins[5]], grounded[margins[5]] = 0.09, -0.002
    tccd = [i for i, s in enumerate(settings) if s.rule == "tccd"]
    grounded[tccd[2]] = -0.5
    chosen = accuracy.choose(settings, competing, grounded)
    assert chosen["margin"] == margins[3]
    assert chosen["tccd"] == tccd[2]


@pytest.mark.slow
def test_the_benchmark_on_a_few_questions(tmp_path, monkeypatch):
    monkeypatch.setattr(accuracy, "LAYERS", (3,))
    monkeypatch.setattr(accuracy, "KS", (8,))
    report = accuracy.main(tmp_path, questions=60, fit=100)
    assert (tmp_path / "accuracy.json").exists()
    assert set(report["rules"]) == set(accuracy.RULES)
    for found in report["rules"].values():
        assert all(found["models"][name]["n"] == 60 for name in accuracy.MODELS)
