"""The demo on a few questions: the same code, the same report, smaller."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from eval.datasets.easy_vqa import halves
from eval.demo import MODELS, Sizes, main
from probes.report import validate
from tccd.data import Sample

CELL = {"modality", "layer", "k", "alpha_interp", "n", "baseline", "accuracy", "cost", "ci95", "p_value"}


def asked(name: str, colour: int, number: int) -> Sample:
    image = Image.new("RGB", (4, 4), (colour, 0, 0))
    return Sample(f"{name}-{number}", name, f"Question {number}?", "yes", None, None, lambda: image)


def test_copies_under_other_names_are_on_one_side():
    samples = [asked(f"{copy}-{colour}.png", colour, n) for colour in range(20) for copy in "abc" for n in (1, 2)]
    one, other = halves(samples, 0)
    assert len(one) == len(other) == len(samples) / 2
    assert not {s.picture_digest for s in one} & {s.picture_digest for s in other}


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
        assert block["pictures"] == len({r["picture"] for r in rows})
        assert block["question_strings"] == len({r["prompt"] for r in rows})
        assert block["p_value"] >= block["p_independent"]
        assert block.keys() >= {"settings", "p_value", "ci95", "balanced", "minority", "by_task"}
    chosen_on = {r["image_id"] for r in written["items"]["competing"]}
    assert written["tccd"]["competing"]["chosen_on"]["n"] == 60
    assert len(chosen_on) < 60
    printed = capsys.readouterr().out
    assert "Centroid cost" in printed
    assert "TCCD on held-out pictures" in printed
    assert f"Held out: {len(chosen_on)} pictures, " in printed
