"""Reports of several models: merged into one that is as valid as they are, or refused with the reason."""

from __future__ import annotations

import copy
import csv
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from probes.advise import advise
from probes.compare import compare, read_report
from probes.report import validate, write_report
from probes.report.summary import leave_one_model_out_of, summarise
from probes.statistics.intervals import holm
from probes.statistics.protocols import leave_one_model_out
from tccd.__main__ import app
from tccd.errors import ConfigError, DataError
from tests.probes.probed import probed

NAMES = ("competing", "grounded", "third")


def command(*args):
    return CliRunner().invoke(app, ["probe", "compare", *map(str, args)], prog_name="tccd")


def three():
    families = ("llava", "qwen2_5_vl", "llava")
    return {
        f"{name}.json": probed(name, family, seed=i, n=120, helped=(0.6, 0.0, 0.3)[i])
        for i, (name, family) in enumerate(zip(NAMES, families, strict=True))
    }


@pytest.fixture(scope="module")
def reports():
    return three()


@pytest.fixture(scope="module")
def merged(reports):
    return compare(reports)


def test_a_merged_report_is_a_report_and_holds_all_of_each(reports, merged):
    validate(merged)
    assert list(merged["models"]) == list(NAMES)
    for part in ("cells", "controls", "tccd_cells", "examples"):
        assert len(merged[part]) == sum(len(report[part]) for report in reports.values())
    assert merged["config"] == {source: report["config"] for source, report in reports.items()}


def test_what_counts_cells_still_points_at_the_same_ones(reports, merged):
    def same(here, there):
        return all(here[key] == there[key] for key in ("model", "modality", "layer", "alpha_interp", "right"))

    parts = {part: iter(merged[part]) for part in ("controls", "examples")}
    for report in reports.values():
        for old in report["controls"]:
            new = next(parts["controls"])
            for key in ("cell", "against"):
                assert (key in new) == (key in old)
                assert key not in old or same(merged["cells"][new[key]], report["cells"][old[key]])
        for old in report["examples"]:
            new = next(parts["examples"])
            for before, after in zip(old["erased"], new["erased"], strict=True):
                assert same(merged["cells"][after["cell"]], report["cells"][before["cell"]])
        for model, protocols in report["protocols"].items():
            for before, after in zip(protocols, merged["protocols"][model], strict=True):
                for task, index in before["chosen"].items():
                    found = merged["tccd_cells"][after["chosen"][task]]
                    assert found["right"] == report["tccd_cells"][index]["right"]
                    assert found["model"] == model


def test_merging_changes_no_report_that_it_is_given():
    given_reports = three()
    before = copy.deepcopy(given_reports)
    compare(given_reports)
    assert given_reports == before


def test_p_values_are_adjusted_over_all_models(merged):
    for part in ("cells", "controls", "tccd_cells"):
        rows = merged[part]
        assert [row["p_holm"] for row in rows] == pytest.approx(holm([row["p_value"] for row in rows]).tolist())


def test_advice_is_the_same_alone_and_in_company(reports, merged):
    for name, report in zip(NAMES, reports.values(), strict=True):
        assert advise(merged, name) == advise(report)


@settings(max_examples=6)
@given(st.permutations(NAMES))
def test_the_order_of_reports_makes_no_difference(reports, merged, order):
    again = compare({f"{name}.json": reports[f"{name}.json"] for name in order})
    rows = {row["model"]: row for row in summarise(again)}
    for row in summarise(merged):
        assert rows[row["model"]]["text"] == row["text"]
        assert rows[row["model"]]["advice"] == row["advice"]
        for before, after in zip(row["protocols"], rows[row["model"]]["protocols"], strict=True):
            assert (before["name"], before["values"]) == (after["name"], after["values"])


def test_models_stand_by_family(merged):
    assert [row["family"] for row in summarise(merged)] == ["llava", "llava", "qwen2_5_vl"]


def test_leave_one_model_out_is_that_of_the_statistics(reports, merged):
    found = leave_one_model_out_of(merged)
    # Settings from the mildest, as ranks.
    tables = {}
    for report in reports.values():
        ranked = sorted(report["tccd_cells"], key=lambda c: (c["alpha_cd"], -c["alpha_interp"], -c["layer"]))
        for rank, cell in enumerate(ranked):
            for part in cell["by_task"]:
                tables.setdefault(cell["model"], {}).setdefault(part["task"], {})[rank] = part["delta"]
    expected = leave_one_model_out(tables)
    assert {model: protocol["mean"] for model, protocol in found.items()} == pytest.approx(expected.values)
    for model, protocol in found.items():
        assert protocol["oracle"] is False
        assert protocol["values"] == pytest.approx(
            {task: row[expected.chosen[model]] for task, row in tables[model].items()}
        )


def test_leave_one_model_out_needs_settings_in_common(reports):
    assert leave_one_model_out_of(reports["competing.json"]) == {}
    # One layer each, but not the same one: what is carried over is the dose.
    one, other = probed("a", layers=(1,)), probed("b", layers=(7,), seed=1)
    found = leave_one_model_out_of(compare({"a": one, "b": other}))
    assert found["a"]["settings"]["layer"] == 1
    assert found["b"]["settings"]["layer"] == 7
    # Two layers each and none in common.
    one, other = probed("a", layers=(1, 2)), probed("b", layers=(7, 8), seed=1)
    assert leave_one_model_out_of(compare({"a": one, "b": other})) == {}


def test_the_same_model_twice_is_refused(reports):
    with pytest.raises(DataError, match=r"x.json and y.json both report the model competing"):
        compare({"x.json": reports["competing.json"], "y.json": reports["competing.json"]})


@pytest.mark.parametrize("column", ["id", "image_id", "answer"])
def test_other_data_is_refused(reports, column):
    other = copy.deepcopy(reports["grounded.json"])
    other["questions"]["grounded"][column][3] += "!"
    with pytest.raises(DataError, match=r"120 of easy-vqa test.*--limit and --seed"):
        compare({"a": reports["competing.json"], "b": other})


def test_reports_without_questions_are_told_apart_by_their_configuration(reports):
    bare = [{k: v for k, v in report.items() if k != "questions"} for report in reports.values()]
    compare({"a": bare[0], "b": bare[1]})
    other = copy.deepcopy(bare[1])
    other["config"]["seed"] = 43
    with pytest.raises(DataError, match="asked other questions"):
        compare({"a": bare[0], "b": other})


def test_one_report_is_nothing_to_compare(reports):
    with pytest.raises(ConfigError, match="at least two"):
        compare({"a": reports["competing.json"]})


def test_the_command_writes_one_page_and_tables(tmp_path, reports):
    for name, report in reports.items():
        write_report(report, tmp_path / name)
    out = tmp_path / "out"
    folders = [tmp_path / name for name in reports]
    found = command(*folders, "--out", out, "--title", "Three families")
    assert found.exit_code == 0, found.output
    assert "<h1>Three families</h1>" in (out / "report.html").read_text()
    assert read_report(out)["title"] == "Three families"
    machine = json.loads(command(*folders, "--out", out, "--json").output)
    with (out / "report-models.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in machine["models"]] == [row["model"] for row in rows]
    assert float(rows[0]["text_cost"]) == machine["models"][0]["text_cost"]
    assert sorted(machine["files"]) == sorted(str(path) for path in out.glob("[!.]*"))


def test_the_command_refuses_in_one_line_and_writes_nothing(tmp_path, reports):
    write_report(reports["competing.json"], tmp_path / "one")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "report.json").write_text('{"schema": "tccd-report/1"}')
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "report.json").write_text((tmp_path / "one" / "report.json").read_text()[:5000])
    (tmp_path / "file").write_text("")
    for args, code, message in (
        (("one", "one"), 2, "at least two"),
        (("one",), 2, "at least two"),
        (("one", "old"), 2, "expected 'tccd-report/3'"),
        (("one", "torn"), 1, "is not JSON"),
        (("one", "nowhere"), 1, "no such file"),
        (("one", "one/report.json"), 1, "both report the model competing"),
    ):
        found = command(*(tmp_path / arg for arg in args), "--out", tmp_path / "out")
        assert found.exit_code == code, (args, found.output, found.stderr)
        assert message in found.stderr
        assert len(found.stderr.strip().splitlines()) == 1
        assert not (tmp_path / "out").exists()
    found = command(tmp_path / "one", tmp_path / "one", "--out", tmp_path / "file")
    assert found.exit_code == 2
    assert "is a file" in found.stderr
    found = command(tmp_path / "one", tmp_path / "two", "--out", tmp_path / "one")
    assert found.exit_code == 2
    assert "would replace it" in found.stderr
