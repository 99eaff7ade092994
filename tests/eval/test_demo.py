"""The demo on a few questions: the same code, the same report, smaller."""

from __future__ import annotations

import json

import pytest

from eval.demo import MODELS, Sizes, main
from probes.report import validate

CELL = {"modality", "layer", "k", "alpha_interp", "n", "baseline", "accuracy", "cost", "ci95", "p_value"}


@pytest.mark.slow
def test_demo(tmp_path, capsys):
    report = main(tmp_path, Sizes(fit=200, cost=60, choose=60, held_out=100))
    written = json.loads((tmp_path / "report.json").read_text())
    assert (tmp_path / "report.html").stat().st_size > 50_000
    validate(written)
    assert written["cells"] == json.loads(json.dumps(report["cells"]))
    assert all(cell.keys() >= CELL for cell in written["cells"])
    for name in MODELS:
        block = written["tccd"][name]
        rows = written["items"][name]
        assert block["n"] == len(rows) == 100
        assert block["accuracy"] == pytest.approx(sum(r["tccd"] == r["answer"] for r in rows) / 100)
        assert block["delta"] == pytest.approx(block["accuracy"] - block["baseline"])
        assert block.keys() >= {"settings", "p_value", "ci95", "balanced", "minority", "by_task"}
    chosen_on = {r["image_id"] for r in written["items"]["competing"]}
    assert written["tccd"]["competing"]["chosen_on"]["n"] == 60
    assert len(chosen_on) < 60
    printed = capsys.readouterr().out
    assert "Centroid cost" in printed
    assert "held-out" in printed
