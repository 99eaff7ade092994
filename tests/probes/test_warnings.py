"""Each warning where it belongs, and none on a sound report."""

from __future__ import annotations

import dataclasses

import torch

from probes.warnings import warn
from tccd import CentroidBank
from tccd.decoder import ModelIdentity
from tests.probes.probed import probed

MODEL = ModelIdentity("demo", None, "llava", hidden_size=4, num_layers=6, fingerprint=None)


def codes(result, banks=None):
    return [found["code"] for found in warn(result, banks)]


def bank(tensor, **entry):
    made = CentroidBank.from_arrays(MODEL, {("text", 2): tensor})
    entries = {key: dataclasses.replace(of, **entry) for key, of in made.entries.items()}
    return dataclasses.replace(made, entries=entries)


def test_a_sound_report_has_no_warnings():
    assert warn(probed(), {"bank": bank(torch.eye(4))}) == []


def test_a_model_at_its_blind_score_is_told():
    result = probed()
    questions = result["questions"]["competing"]
    questions["blind_right"] = questions["right"][::-1]
    result["models"]["competing"]["blind"]["accuracy"] = result["models"]["competing"]["accuracy"]["accuracy"]
    (found,) = warn(result)
    assert (found["code"], found["model"]) == ("blind", "competing")
    assert "check that the images reach the model" in found["text"]
    del result["questions"]
    assert codes(result) == ["blind"], "an older report has no outcomes, but it has intervals"


def test_a_text_cost_below_zero_is_told_with_its_layers():
    result = probed(layers=(1, 2, 3))
    for cell in result["cells"]:
        if cell["modality"] == "text" and cell["layer"] < 3:
            cell |= {"cost": -0.05, "ci95": [-0.08, -0.02]}
    (found,) = warn(result)
    assert found["code"] == "negative-text-cost"
    assert "may amplify the prior" in found["text"]
    assert "layer 1 (cost -5.0 points)" in found["text"]
    assert "2 more" in found["text"]


def test_a_text_cost_whose_interval_reaches_zero_is_none():
    result = probed()
    result["cells"][0] |= {"cost": -0.05, "ci95": [-0.12, 0.02]}
    assert codes(result) == []


def test_empty_clusters_and_repeated_centroids_are_told():
    assert codes(probed(), {"bank": bank(torch.eye(4), empty_clusters=2)}) == ["empty-clusters"]
    twice = torch.cat([torch.eye(4), torch.eye(4)[:1]])
    (found,) = warn(probed(), {"bank": bank(twice, empty_clusters=1)})
    assert found["code"] == "few-rows"
    assert "text at layer 2 (4 of K = 5 centroids differ)" in found["text"]
