"""A few hundred of the simulated data sets: "on" no more often than the bound says, and where there is a gain."""

from __future__ import annotations

import numpy as np
import pytest

from eval.null_advice import Case, draw, simulate
from probes.statistics.outcomes import outcomes_of
from probes.statistics.signs import BOUND


def test_data_without_a_gain_is_seldom_on_though_a_held_out_interval_often_lies_above_zero():
    found = simulate(Case("nothing", 12, pictures=100, each=4, strings=30), 300, seed=3)
    assert found["on"] <= BOUND
    assert found["held_out"] > BOUND


def test_settings_that_harm_are_off_and_one_that_gains_is_on():
    assert simulate(Case("harm", 12), 30, seed=0)["on"] == 0
    found = simulate(Case("gain", 12, best=0.04), 30, seed=0)
    assert found["on"] > 0.5
    assert found["told"] < found["on"], "power is told for a gain of one setting alone"


def test_drawn_gains_are_those_asked_for():
    case = Case("gain", 3, best=0.04)
    gains = []
    for seed in range(25):
        report = draw(case, np.random.default_rng(seed))
        plain = outcomes_of(report["questions"]["drawn"]["right"])
        gains.append([outcomes_of(c["right"]).mean() - plain.mean() for c in report["tccd_cells"]])
    assert np.mean(gains, axis=0) == pytest.approx(case.gains(), abs=0.008)
