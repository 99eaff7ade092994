"""`tccd probe replacement` as a program would run it."""

import json

import pytest

from tests.tccd.cli.common import ESCAPE, ok, program, run


@pytest.mark.slow
def test_probe_replacement(model_dir, bank_file, tmp_path):
    args = ("--model", model_dir, "--bank", bank_file, "--data", "easy-vqa", "--limit", 40)
    result = program("probe", "replacement", *args, "--out", tmp_path / "report", "--json")
    assert result.returncode == 0, result.stderr
    # On a slow machine it says how far it is; nothing else.
    assert [line for line in result.stderr.splitlines() if not line.startswith("ask ")] == []
    summary = json.loads(result.stdout)
    assert [(c["modality"], c["layer"], c["k"]) for c in summary["cells"]] == [
        ("text", 1, 8),
        ("text", 3, 8),
        ("vision", 2, 8),
    ]
    assert {c["n"] for c in summary["cells"]} == {40}
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["config"]["data"] == "easy-vqa"
    assert (tmp_path / "report" / "report.html").is_file()
    args = (*args, "--layers", "text=3,vision=all", "--out", tmp_path / "two")
    shown = ok(run("probe", "replacement", *args)).stdout
    cells = [line.split()[1] for line in shown.splitlines() if line.startswith("│")]
    assert (cells.count("text"), cells.count("vision")) == (1, 1)
    assert ESCAPE not in shown


def test_probe_needs_answers(model_dir, bank_file, picture, tmp_path):
    args = ("--model", model_dir, "--bank", bank_file, "--data", picture.parent, "--out", tmp_path / "report")
    result = run("probe", "replacement", *args)
    assert result.exit_code == 1
    assert "sample red.png has no answer" in result.stderr
