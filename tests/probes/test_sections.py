"""The recipe for a section, tried: one that is made here is checked, shown, written and compared as all others."""

from __future__ import annotations

import csv
import io
import json

import pytest

from probes.compare import compare
from probes.report import sections, validate, write_report
from probes.report.page import load_templates, render
from tccd.errors import ConfigError, DataError
from tests.probes.ladder import LadderSection
from tests.probes.probed import probed


@pytest.fixture
def ladder(monkeypatch):
    monkeypatch.setattr(sections, "SECTIONS", (*sections.SECTIONS[:3], LadderSection(), *sections.SECTIONS[3:]))


def climbed(name="competing", seed=0):
    return probed(name, seed=seed, n=40) | {
        "ladder": [{"model": name, "shown": n, "accuracy": 0.5 + n / 10} for n in range(3)]
    }


@pytest.mark.usefixtures("ladder")
def test_it_is_on_the_page_in_its_place(tmp_path):
    load_templates()
    page = render(climbed())
    assert '<li><a href="#ladder">The ladder</a></li>' in page
    assert "<p>competing: 70.0\u202f%</p>" in page
    assert "The ladder has 3 rungs." in page.partition("<main>")[0]
    assert "Its highest rung is 2." in page
    at = [page.index(f'<h2 id="{name}">') for name in ("tasks", "ladder", "labels")]
    assert at == sorted(at)
    assert "ladder" not in render(probed(n=40))


@pytest.mark.usefixtures("ladder")
def test_its_tables_stand_beside_the_page_and_in_it(tmp_path):
    names = [path.name for path in write_report(climbed(), tmp_path)]
    assert "report-ladder.csv" in names
    with (tmp_path / "report-ladder.csv").open(encoding="utf-8", newline="") as file:
        assert [row["accuracy"] for row in csv.DictReader(file)] == ["0.5", "0.6", "0.7"]
    page = (tmp_path / "report.html").read_text()
    assert 'download="report-ladder.csv"' in page
    assert "one row a rung" in page
    write_report(probed(n=40), tmp_path)
    assert not (tmp_path / "report-ladder.csv").exists()


@pytest.mark.usefixtures("ladder")
@pytest.mark.parametrize(
    ("rung", "error", "message"),
    [
        (
            {"model": "competing", "shown": 1},
            ConfigError,
            r"result\.ladder\[3\] lacks accuracy; it holds model, shown",
        ),
        (
            {"model": "competing", "shown": 1, "accuracy": 2},
            DataError,
            r"ladder\[3\]\.accuracy = 2; expected at most",
        ),
        (
            {"model": "competing", "shown": "x", "accuracy": 0},
            ConfigError,
            r"shown = 'x'; expected a whole number",
        ),
        ({"model": "other", "shown": 1, "accuracy": 0}, DataError, "result.ladder names the model 'other'"),
        ("rung", ConfigError, r"result\.ladder\[3\] is of type str; expected a mapping"),
    ],
)
def test_its_part_is_checked(rung, error, message):
    wrong = climbed()
    wrong["ladder"].append(rung)
    with pytest.raises(error, match=message):
        validate(wrong)


@pytest.mark.usefixtures("ladder")
def test_alone_it_is_a_report():
    own = ("schema", "title", "created", "versions", "config", "models", "ladder")
    alone = {key: climbed()[key] for key in own}
    validate(alone)
    page = render(alone)
    assert "The ladder" in page
    assert "Cost by layer" not in page
    del alone["ladder"]
    with pytest.raises(DataError, match=r"none of .*ladder.*: nothing was measured"):
        validate(alone)


@pytest.mark.usefixtures("ladder")
def test_reports_that_have_it_are_compared():
    merged = compare({"a": climbed("one"), "b": climbed("other", seed=1)})
    validate(merged)
    assert [(rung["model"], rung["shown"]) for rung in merged["ladder"]] == [
        (name, n) for name in ("one", "other") for n in range(3)
    ]


def test_without_it_its_part_is_kept_in_the_json_alone(tmp_path):
    path, *_ = write_report(climbed(), tmp_path)
    assert json.loads(path.read_text())["ladder"] == climbed()["ladder"]
    assert "The ladder" not in (tmp_path / "report.html").read_text()


def test_every_section_says_what_its_files_are():
    for section in sections.SECTIONS:
        made = section.tables(sections.Report(probed(n=40)))
        assert set(made) == set(section.files), section.name
        assert all(next(csv.reader(io.StringIO(text))) for text in made.values() if text)


def test_a_part_belongs_to_one_section():
    parts = [part for section in sections.SECTIONS for part in section.parts]
    assert len(set(parts)) == len(parts)
    names = [section.name for section in sections.SECTIONS]
    assert len(set(names)) == len(names)
