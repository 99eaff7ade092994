"""The benchmark of advice: how far behind the best of the peers it is, and what is said where it is too far."""

from __future__ import annotations

import json

import pytest

from eval.advice import GRID, best_of_peers, missed, row, table
from probes.replacement.sources import able
from tests.probes.probed import probed


@pytest.fixture
def peers(tmp_path):
    def one(model, method, delta, kind="reference", data="both", decoding="greedy"):
        return {"model": model, "method": method, "delta": delta, "kind": kind, "data": data, "decoding": decoding}

    rows = [
        one("a-competing", "no-vision", 0.3),
        one("a-competing", "mean-vision", 0.1),
        one("a-competing", "VCD", 0.9, kind="peer"),
        one("a-competing", "prompt", 0.8, data="digits"),
        one("a-competing", "prompt", 0.8, decoding="sampled"),
        one("a-grounded", "prompt", 0.004),
    ]
    file = tmp_path / "peers.json"
    file.write_text(json.dumps({"rows": [one | {"ci95": [0.0, 1.0]} for one in rows]}))
    return best_of_peers(file)


def test_advice_is_held_against_the_best_reference_of_the_table(peers, tmp_path):
    assert {model: one["method"] for model, one in peers.items()} == {
        "a-competing": "no-vision",
        "a-grounded": "prompt",
    }
    assert best_of_peers(tmp_path / "nothing.json") == {}
    on, off = row(probed("a-competing"), peers), row(probed("a-grounded", helped=0.0, harmed=0.3), peers)
    assert on["behind"] == pytest.approx(0.3 - on["held_out"]["delta"])
    assert off["behind"] == 0.004, "off gains nothing"
    assert "behind" not in row(probed("another"), peers)
    assert table([on, off]).row_count == 2


def test_what_is_not_as_it_should_be_is_said(peers):
    on, off = row(probed("a-competing"), peers), row(probed("a-grounded", helped=0.0, harmed=0.3), peers)
    (told,) = missed([on, off])
    assert told.startswith("a-competing is ")
    assert told.endswith("points behind the best of its peers")
    assert missed([on | {"behind": 0.01}, off]) == []
    assert missed([on | {"model": "a-grounded"}]) == ["a-grounded is told on"]
    assert missed([off | {"model": "a-competing"}]) == ["a-competing is told off"]


def test_every_reference_that_a_default_model_can_have_is_measured():
    named = {name.partition("=")[0] for reference in GRID.references for name in reference.split("+")}
    assert set(able(())) <= named
    assert {alpha > 0 for alpha in GRID.alpha_cd} == {True, False}
