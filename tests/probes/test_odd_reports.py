"""Files that are no report, or one of another kind: a plain error that names the file, and never much of it."""

from __future__ import annotations

import json

import pytest

from probes.compare import read_report
from probes.report import SCHEMA
from probes.report.page import render
from tccd.errors import ConfigError, DataError
from tests.probes.probed import probed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[" * 400 + "]" * 400, "schema None"),
        (json.dumps({"schema": SCHEMA})[:-1] + ', "config": ' + "[" * 700 + "]" * 700 + "}", "nested too deep"),
        (json.dumps({"schema": SCHEMA})[:-1] + ', "config": 1' + "0" * 10_000 + "}", "is not JSON"),
        (json.dumps({"schema": "x" * 10_000}), "schema 'xxx"),
        (json.dumps({"schema": SCHEMA, **dict.fromkeys(map(str, range(10_000)), 1)}), "lacks title"),
        (json.dumps({**probed(n=8), "title": ["x" * 10_000]}), "title = "),
        (json.dumps({**probed(n=8), "created": "x" * 10_000}), "created = "),
    ],
    ids=["empty", "endless", "deep", "deep-inside", "huge-number", "schema", "keys", "title", "time"],
)
def test_what_is_no_report_is_told_in_short(tmp_path, text, message):
    file = tmp_path / "report.json"
    file.write_text(text)
    with pytest.raises((ConfigError, DataError), match=message) as caught:
        read_report(tmp_path)
    assert str(file) in str(caught.value)
    assert len(str(caught.value)) < 600 + len(str(file))


def test_a_report_of_before_has_neither_pictures_nor_warnings(tmp_path):
    old = probed(n=8)
    assert not {"data", "warnings"} & set(old)
    (tmp_path / "report.json").write_text(json.dumps(old))
    assert read_report(tmp_path)["title"] == old["title"]


def test_a_report_of_the_schema_before_is_read_and_says_what_its_intervals_are(tmp_path):
    old = probed() | {"schema": "tccd-report/2"}
    for part in ("cells", "controls", "tccd_cells"):
        for row in old[part]:
            for task in row["by_task"]:
                del task["clustered_by"]
    (tmp_path / "report.json").write_text(json.dumps(old))
    read = read_report(tmp_path)
    assert read == old | {"schema": SCHEMA}
    told = "written by an earlier version, which may have taken the questions of a task as independent"
    assert told in render(read)
    assert told not in render(probed())


def test_a_report_of_any_other_schema_is_refused_by_its_name(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(probed(n=8) | {"schema": "tccd-report/1"}))
    with pytest.raises(ConfigError, match=r"'tccd-report/1'; expected 'tccd-report/3'.*measure it anew"):
        read_report(tmp_path)
