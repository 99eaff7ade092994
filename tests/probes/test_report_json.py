"""A report as JSON: it comes back as it went, and what can't be is refused with its place."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.report import SCHEMA, validate, write_report
from probes.report.page import render
from probes.report.schema import dumps, plain
from tccd.errors import ConfigError, DataError
from tests.probes.reports import Reader, cell, result


def test_json_comes_back_as_it_went(tmp_path):
    given_result = result()
    path, page_path, *tables = write_report(given_result, tmp_path / "made" / "here")
    assert json.loads(path.read_text(encoding="utf-8")) == given_result
    assert sorted(path.parent.glob("[!.]*")) == sorted([path, page_path, *tables])
    assert [t.name for t in tables] == [f"report-{t}.csv" for t in ("models", "tasks", "cells")]
    assert page_path.read_text(encoding="utf-8").lstrip().startswith("<!doctype html>")


def test_numpy_and_tuples_become_json(tmp_path):
    given_result = result()
    given_result["config"] = {
        "a": np.float32(0.5),
        "b": np.arange(2),
        "c": (1, np.bool_(True)),
        "d": np.int64(3),
    }
    path, *_ = write_report(given_result, tmp_path)
    assert json.loads(path.read_text())["config"] == {"a": 0.5, "b": [0, 1], "c": [1, True], "d": 3}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)


@given(json_values)
def test_dumps_is_strict_json(value):
    assert json.loads(dumps(plain(value)), parse_constant=pytest.fail) == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float64("nan")])
def test_numbers_that_json_lacks_are_refused_with_their_place(value):
    bad = result()
    bad["items"]["competing"][0]["margin"] = value
    with pytest.raises(DataError, match=r"result\.items\.competing\[0\]\.margin"):
        validate(bad)


def test_a_result_that_is_not_one_writes_nothing(tmp_path):
    with pytest.raises(ConfigError):
        write_report({"schema": SCHEMA}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def edited(path, value):
    bad = copy.deepcopy(result())
    *parents, last = path
    target = bad
    for key in parents:
        target = target[key]
    if value is KeyError:
        del target[last]
    else:
        target[last] = value
    return bad


@pytest.mark.parametrize(
    ("path", "value", "error", "message"),
    [
        (("schema",), "tccd-report/9", ConfigError, "expected 'tccd-report/3'"),
        (("title",), KeyError, ConfigError, "result lacks title"),
        (("created",), "yesterday", ConfigError, "expected a time"),
        (("models",), {}, DataError, "at least one model"),
        (("models", "grounded"), KeyError, DataError, "result.cells names the model 'grounded'"),
        (("models", "grounded", "accuracy", "correct"), 801, DataError, "801 of 800"),
        (("models", "grounded", "accuracy"), 0.98, ConfigError, "expected a mapping"),
        (("cells",), {}, ConfigError, "expected a list"),
        (("cells", 0, "p_value"), KeyError, ConfigError, r"result.cells\[0\] lacks p_value"),
        (("cells", 0, "modality"), "audio", ConfigError, "expected one of text, vision"),
        (("cells", 0, "layer"), 1.5, ConfigError, "whole number"),
        (("cells", 0, "layer"), True, ConfigError, "whole number"),
        (("cells", 0, "n"), 0, DataError, r"cells\[0\].n = 0; expected at least 1"),
        (("cells", 0, "accuracy"), 97.0, DataError, "accuracy = 97.0; expected at most 1"),
        (("cells", 0, "cost"), -0.1, DataError, "baseline - accuracy"),
        (("cells", 0, "ci95"), [0.2, 0.1], DataError, "low <= high"),
        (("cells", 0, "ci95"), [0.2], ConfigError, r"\[low, high\]"),
        (("cells", 0, "by_task", 0, "task"), 3, ConfigError, "expected text"),
        (("cells", 0, "by_task", 0, "clustered_by"), {"a": 1}, ConfigError, "expected text"),
        (("cells", 0, "clustered_by"), 3, ConfigError, "expected text"),
        (("cells", 0, "by_task", 1, "n"), "many", ConfigError, r"by_task\[1\].n"),
        (("tccd", "competing", "delta"), -0.1, DataError, "accuracy - baseline"),
        (("tccd", "competing", "balanced", "p_value"), 2, DataError, "balanced.p_value = 2; expected at most 1"),
        (
            ("tccd", "unknown"),
            {},
            ConfigError,
            "result.tccd.unknown lacks n, baseline, .*settings; it holds nothing",
        ),
        (("ratio", "competing", "ratio"), "four", ConfigError, "expected a number"),
        (("examples", 0, "image"), "http://example.org/a.png", DataError, "PNG"),
        (("examples", 0, "image"), "data:image/png;base64,AAAA", DataError, "PNG"),
        (("examples", 0, "image"), "data:image/svg+xml;base64,AAAA", DataError, "PNG"),
        (("examples", 0, "model"), "third", DataError, "names the model 'third'"),
        (("items", "competing"), {}, ConfigError, "expected a list"),
        (("config", "x"), {1: 2}, DataError, "JSON keys are strings"),
        (("config", "x"), {1, 2}, DataError, "of type set"),
        (("config", "x"), "\ud800", DataError, "surrogate"),
    ],
)
def test_a_wrong_result_is_refused(path, value, error, message):
    with pytest.raises(error, match=message):
        validate(edited(path, value))


def test_nothing_measured_is_refused():
    with pytest.raises(DataError, match="nothing was measured"):
        validate({**result(), "cells": [], "tccd": {}})
    with pytest.raises(ConfigError, match="expected a mapping"):
        validate([])


def test_the_parts_are_optional():
    bare = {key: value for key, value in result().items() if key not in ("ratio", "tccd", "examples", "items")}
    validate(bare)
    Reader(render(plain(bare)))
    only_tccd = {**bare, "cells": [], "tccd": result()["tccd"]}
    validate(only_tccd)
    Reader(render(plain(only_tccd)))
    bare["cells"] = [cell("grounded", "vision", 2, 5, p_value=None)]
    del bare["models"]["grounded"]["blind"]
    validate(bare)
    Reader(render(plain(bare)))
