"""What the terminal says of a result."""

from __future__ import annotations

import csv
import json

from typer.testing import CliRunner

from probes.cli_tables import show
from probes.report import write_report
from tccd.__main__ import app
from tests.probes.probed import probed

WARNING = {"code": "blind", "model": "competing", "text": "with its images the model is right on 40.0 %"}


def test_the_terminal_says_what_questions_share_the_answer_and_the_warnings(capsys):
    result = probed() | {"warnings": [WARNING]}
    result["models"]["competing"]["accuracy"] |= {"pictures": 50, "question_strings": 20}
    show(result, [])
    told = capsys.readouterr().out
    assert "200 questions about 50 pictures, 20 question strings" in told
    assert "Erasing text costs more accuracy than erasing vision" in told
    assert "difference +" in told
    assert "Warning: competing: with its images" in told


def test_compare_tells_differences_and_warnings_of_its_reports(tmp_path):
    write_report(probed("one") | {"warnings": [WARNING | {"model": "one"}]}, tmp_path / "one")
    write_report(probed("other", seed=1), tmp_path / "other")

    def command(*args):
        paths = [str(tmp_path / name) for name in ("one", "other")]
        return CliRunner().invoke(app, ["probe", "compare", *paths, "--out", str(tmp_path / "out"), *args])

    told = command().output
    assert "Two models, by difference" in told
    assert "Warning: one: with its images" in told
    found = json.loads(command("--json").output)["differences"]
    assert [row["measure"] for row in found] == ["accuracy", "text", "vision"]
    with (tmp_path / "out" / "report-differences.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["other_model"]) for row in rows] == [("one", "other")] * 3
    assert float(rows[1]["difference"]) == found[1]["difference"]
