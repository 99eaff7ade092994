"""What the schema refuses of a grid's parts: references that lead nowhere, outcomes that contradict figures."""

from __future__ import annotations

import copy

import pytest

from probes.report import SCHEMA, validate
from tccd.errors import ConfigError, DataError

COST = {"n": 4, "baseline": 0.75, "accuracy": 0.5, "cost": 0.25, "ci95": [-0.3, 0.7], "p_value": 1.0}
PLACE = {"model": "m", "layer": 1, "k": 4, "alpha_interp": 0.0}
MORE = {"right": "1010", "labels": {"counts": {"yes": 4}, "entropy": 0.0}, "p_holm": 1.0, "displacement": 2.0}


def cell(modality, **more):
    segment = "all" if modality == "text" else "tokens"
    return {"modality": modality, "segment": segment, **PLACE, **COST, **MORE, **more}


def result():
    gain = {"n": 4, "baseline": 0.75, "accuracy": 0.5, "delta": -0.25, "ci95": [-0.7, 0.3], "p_value": 1.0}
    setting = {"alpha_cd": 1.0, "beta": 0.0, "gate": None, "gate_threshold": 0.5, "gate_ramp": 0.0}
    return {
        "schema": SCHEMA,
        "title": "t",
        "created": "2026-01-31T12:00:00",
        "versions": {},
        "config": {},
        "models": {
            name: {
                "description": "d",
                "accuracy": {"n": 4, "correct": 3, "accuracy": 0.75, "ci95": [0.3, 0.9]},
                "blind": {"n": 4, "accuracy": 0.5, "by_task": [{"task": "all", "n": 4, "accuracy": 0.5}]},
            }
            for name in ("m", "other")
        },
        "cells": [cell("text"), cell("vision")],
        "controls": [{"kind": "dose-matched", "cell": 0, "against": 1, **cell("text", alpha_interp=0.5)}],
        "tccd_cells": [{**PLACE, **setting, **gain, "helped": 0, "harmed": 1, "right": "0011"}],
        "protocols": {
            "m": [
                {"name": "best", "oracle": True, "note": "n", "chosen": {"all": 0}, "values": {"all": -0.25}}
                | {"mean": -0.25, "n_positive": 0}
            ]
        },
        "examples": [],
        "questions": {
            "m": {name: ["x"] * 4 for name in ("id", "image_id", "task", "answer", "plain")}
            | {"right": "1110", "blind_right": "0011"}
        },
    }


def test_a_sound_result_passes():
    validate(result())


@pytest.mark.parametrize(
    ("path", "value", "error", "words"),
    [
        (("schema",), "tccd-report/1", ConfigError, "expected 'tccd-report/3'"),
        (("cells", 0, "right"), "1110", DataError, "3 of 4 right, but accuracy = 0.5"),
        (("cells", 0, "right"), "10", DataError, "1 of 2 right"),
        (("cells", 0, "right"), "1x10", ConfigError, "one 0 or 1 a question"),
        (("cells", 0, "displacement"), -1, DataError, "displacement"),
        (("cells", 0, "p_holm"), 1.5, DataError, "p_holm"),
        (("cells", 0, "labels", "counts", "yes"), 0.5, ConfigError, "whole number"),
        (("controls", 0, "kind"), "placebo", ConfigError, "random-direction, random-centroid"),
        (("controls", 0, "cell"), 2, DataError, "names cell 2, which is none of its model's"),
        (("controls", 0, "against"), 7, DataError, "names cell 7"),
        (("controls", 0, "model"), "other", DataError, "none of its model's"),
        (("controls", 0, "cost"), 0.5, DataError, "baseline - accuracy"),
        (("tccd_cells", 0, "delta"), 0.25, DataError, "accuracy - baseline"),
        (("tccd_cells", 0, "model"), "nobody", DataError, "names the model 'nobody'"),
        (("protocols", "m", 0, "name"), "worst", ConfigError, "fixed, cv, best"),
        (("protocols", "m", 0, "oracle"), 1, ConfigError, "true or false"),
        (("protocols", "m", 0, "chosen", "all"), 3, DataError, "chose tccd cell 3 for all"),
        (("questions", "m", "id"), ["x"] * 3, DataError, "has 3 entries, but right has 4"),
        (("questions", "m", "right"), "111", DataError, "has 4 entries, but right has 3"),
        (("questions", "nobody"), {}, ConfigError, "lacks id"),
    ],
)
def test_a_wrong_result_is_refused(path, value, error, words):
    wrong = copy.deepcopy(result())
    *way, last = path
    at = wrong
    for key in way:
        at = at[key]
    at[last] = value
    with pytest.raises(error, match=words):
        validate(wrong)


def test_outcomes_of_other_questions_are_refused():
    wrong = result()
    wrong["questions"]["m"] = {key: value[:3] for key, value in wrong["questions"]["m"].items()}
    with pytest.raises(DataError, match="has outcomes of 4 questions, not 3"):
        validate(wrong)
