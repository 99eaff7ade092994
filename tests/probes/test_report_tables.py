"""The CSV tables, beside the page and in it."""

from __future__ import annotations

import base64
import csv
import io
import json

from probes.report import write_report
from probes.report.page import render
from probes.report.schema import plain
from tests.probes.probed import probed
from tests.probes.reports import Reader, compared, result


def test_the_page_holds_its_data():
    merged = compared()
    links = {a["download"]: a["href"] for a in Reader(render(plain(merged))).all("a") if a.get("download")}
    assert set(links) == {"report.json"} | {
        f"report-{t}.csv" for t in ("models", "cells", "tccd", "tasks", "labels", "differences")
    }
    texts = {name: base64.b64decode(link.partition(",")[2]).decode() for name, link in links.items()}
    light = json.loads(texts["report.json"])
    assert light["cells"][3]["cost"] == merged["cells"][3]["cost"]
    assert "questions" not in light
    assert "right" not in light["cells"][0]
    tables = {
        name: list(csv.DictReader(io.StringIO(text))) for name, text in texts.items() if name.endswith("csv")
    }
    assert len(tables["report-cells.csv"]) == len(merged["cells"]) + len(merged["controls"])
    assert float(tables["report-cells.csv"][0]["cost"]) == merged["cells"][0]["cost"]
    assert [row["model"] for row in tables["report-models.csv"]] == list(merged["models"])
    assert {row["advice"] for row in tables["report-models.csv"]} == {"on", "off"}
    assert len(tables["report-tccd.csv"]) == len(merged["tccd_cells"])


def test_a_label_is_no_formula_in_a_spreadsheet(tmp_path):
    shown = probed()
    shown["models"]["competing"]["truth"]["counts"] = {"=1+1": 100, "@x": 100}
    paths = {path.name: path for path in write_report(shown, tmp_path)}
    labels = [row["label"] for row in csv.DictReader(paths["report-labels.csv"].open(encoding="utf-8"))]
    assert labels[:2] == ["'=1+1", "'@x"]


def test_a_table_of_an_earlier_report_does_not_stay(tmp_path):
    write_report(probed(), tmp_path)
    assert (tmp_path / "report-tccd.csv").exists()
    mine = tmp_path / "tasks.csv"
    mine.write_text("mine")
    write_report(result(), tmp_path)
    assert not (tmp_path / "report-tccd.csv").exists()
    assert mine.read_text() == "mine"
