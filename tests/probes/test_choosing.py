"""Advice among references: which one, which sign, what it costs, how to decode so, and when not to trust it."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from probes.advise import advise
from probes.compare import compare
from probes.references import KINDS, recipes
from probes.report import validate, write_report
from probes.report.schema import upgraded
from probes.report.summary import summarise
from probes.statistics.outcomes import bits, gain, outcomes_of
from probes.warnings import warn
from tccd import CentroidBank
from tccd.__main__ import app
from tccd.decoding import references as makers
from tccd.decoding.config import TCCDConfig
from tccd.decoding.huggingface import TCCD, Contrast
from tccd.decoding.vllm.settings import KEYS
from tccd.errors import DataError
from tests.probes.probed import flipped, probed
from tests.tiny import Row, cached_tiny, inputs


def with_references(gains, *, n=400, seed=0, name="competing"):
    """A report whose contrasts are these: (reference, its parameters, alpha_cd, share helped, share harmed)."""
    result = probed(name, n=n, seed=seed, helped=0.0, harmed=0.05)
    plain = outcomes_of(result["questions"][name]["right"])
    generator = np.random.default_rng(seed + 1000)
    rows = []
    for reference, parameters, alpha, helped, harmed in gains:
        right = flipped(generator, plain, helped, harmed)
        rows.append(
            {"model": name, "reference": reference, **parameters, "alpha_cd": alpha, "beta": 0.0}
            | {"gate": None, "gate_threshold": 0.5, "gate_ramp": 0.0}
            | gain(plain, right, result["questions"][name]["task"])
            | {"right": bits(right)}
        )
    result["tccd_cells"] = rows
    del result["protocols"]
    validate(result)
    return result


CENTROID = {"layer": 1, "k": 16, "bank": "bank", "alpha_interp": 0.4}
SEVERAL = [
    ("text-centroid", CENTROID, 0.5, 0.05, 0.02),
    ("text-centroid", CENTROID, 1.0, 0.1, 0.02),
    ("no-vision", {}, 1.0, 0.7, 0.01),
    ("no-vision", {}, -1.0, 0.0, 0.3),
    ("blank-image", {"color": "black"}, 1.0, 0.5, 0.02),
]


def test_the_reference_that_helps_most_is_advised_and_the_next_one_named():
    advice = advise(with_references(SEVERAL))
    assert advice["on"]
    assert advice["settings"] == {"reference": "no-vision", "alpha_cd": 1.0, "beta": 0.0}
    assert advice["cost"] == "the tail's rows"
    second = advice["runner_up"]
    assert second["reference"] == "blank-image"
    assert second["cost"] == KINDS["blank-image"].cost
    assert second["behind"] == pytest.approx(advice["held_out"]["delta"] - second["held_out"]["delta"])
    low, high = second["behind_ci95"]
    assert 0 < low < second["behind"] < high
    each = advice["by_reference"]
    assert [one["reference"] for one in each] == ["no-vision", "blank-image", "text-centroid"]
    assert [one["n_settings"] for one in each] == [2, 1, 2]
    assert each[0]["p_adjusted"] == advice["p_adjusted"]
    assert each[1]["settings"] == {"reference": "blank-image", "color": "black", "alpha_cd": 1.0, "beta": 0.0}
    assert "vllm" not in advice["use"]


def test_of_equals_the_cheaper_reference_is_advised_whatever_the_order():
    result = with_references([("prompt", {"words": "?"}, 0.5, 0.6, 0.0), ("no-vision", {}, 2.0, 0.6, 0.0)])
    first, second = result["tccd_cells"]
    second["right"] = first["right"]
    assert advise(result)["settings"]["reference"] == "no-vision"
    result["tccd_cells"].reverse()
    assert advise(result)["settings"]["reference"] == "no-vision"


def test_nothing_is_advised_where_no_reference_helps():
    advice = advise(with_references([(name, more, alpha, 0.0, 0.2) for name, more, alpha, *_ in SEVERAL]))
    assert not advice["on"]
    assert (advice["settings"], advice["cost"], advice["use"], advice["runner_up"]) == (None, None, {}, None)
    assert [one["held_out"]["delta"] for one in advice["by_reference"]] == [0, 0, 0]


def test_a_sign_that_adds_the_reference_is_advised_with_a_warning():
    gains = [("text-centroid", CENTROID, alpha, *by) for alpha, by in ((1.0, (0.0, 0.1)), (-1.0, (0.6, 0.01)))]
    result = with_references(gains)
    advice = advise(result)
    assert advice["settings"]["alpha_cd"] == -1.0
    assert [one["code"] for one in advice["warnings"]] == ["negative-alpha"]
    assert "is added, not subtracted" in advice["warnings"][0]["text"]
    result["cells"][0] |= {"cost": -0.1, "ci95": [-0.2, -0.05]}
    assert [one["code"] for one in advise(result)["warnings"]] == ["negative-text-cost", "negative-alpha"]


def drawn(result, helped, harmed):
    """The same contrasts with a random direction."""
    plain = outcomes_of(result["questions"]["competing"]["right"])
    generator = np.random.default_rng(9)
    rows = []
    for number, cell in enumerate(result["tccd_cells"]):
        right = flipped(generator, plain, helped, harmed)
        rows.append(
            {**cell, "kind": "random-direction", "setting": number, **gain(plain, right), "right": bits(right)}
        )
        del rows[-1]["by_task"]
    return result | {"tccd_controls": rows}


def test_a_random_direction_that_gains_as_much_is_a_warning():
    result = with_references([("text-centroid", CENTROID, 1.0, 0.5, 0.01)])
    alike, worse = drawn(result, 0.5, 0.01), drawn(result, 0.02, 0.01)
    validate(alike)
    (warning,) = advise(alike)["warnings"]
    assert warning["code"] == "random-direction"
    assert re.search(r"gains \+\d+\.\d points at its best, centroids \+\d", warning["text"])
    assert [one["code"] for one in warn(alike) if one["code"] == "random-direction"] == ["random-direction"]
    assert advise(worse)["warnings"] == advise(result)["warnings"] == []
    neither = drawn(with_references([("text-centroid", CENTROID, 1.0, 0.01, 0.001)]), 0.01, 0.001)
    assert advise(neither)["warnings"] == [], "where nothing gains there is nothing to explain"
    merged = compare({"a": probed("other", n=400, helped=0.1), "b": alike})
    assert [row["setting"] for row in merged["tccd_controls"]] == [8]
    alike["tccd_controls"][0]["setting"] = 1
    with pytest.raises(DataError, match="names setting 1, which is none of its model's"):
        validate(alike)


def test_models_are_compared_at_two_references_at_once():
    both = ("no-vision+mean-vision", {"weights": [1.0, -0.5], "bank": "bank"}, 1.0, 0.7, 0.01)
    reports = {name: with_references([*SEVERAL, both], name=name) for name in ("one", "other")}
    for row in summarise(compare(reports)):
        across = next(p for p in row["protocols"] if p["name"] == "leave-one-model-out")
        assert across["settings"]["reference"] in ("no-vision", "no-vision+mean-vision")
        assert row["advice"]["on"]


def test_reports_of_before_are_advised_on_as_those_of_text_centroids():
    old = probed() | {"schema": "tccd-report/2"}
    assert all("reference" not in cell for cell in old["tccd_cells"])
    new = upgraded(old)
    validate(new)
    advice = advise(new)
    assert advice["settings"]["reference"] == "text-centroid"
    assert [one["reference"] for one in advice["by_reference"]] == ["text-centroid"]


def test_a_reference_of_centroids_says_where_it_erases():
    result = with_references([("text-centroid", CENTROID, 1.0, 0.5, 0.01)])
    del result["tccd_cells"][0]["layer"]
    with pytest.raises(Exception, match="lacks layer, which a reference of centroids has"):
        validate(result)


RULES = {"alpha_cd": 0.5, "beta": 0.1, "gate": "margin", "gate_threshold": 0.9, "gate_ramp": 0.0}


@pytest.mark.parametrize(
    "settings",
    [
        {"reference": "text-centroid", "layer": 1, "k": 6, "bank": "bank", "alpha_interp": 0.4, "alpha_cd": 2.0},
        {
            "reference": "vision-centroid",
            "layer": 1,
            "k": 6,
            "bank": "bank",
            "alpha_interp": 0.0,
            "alpha_cd": -1.0,
        },
        {"reference": "no-vision", **RULES},
        {"reference": "mean-vision", "bank": "bank", "alpha_cd": 1.0, "beta": 0.0},
        {"reference": "blank-image", "color": "black", "alpha_cd": 1.0, "beta": 0.1},
        {"reference": "noised-image", "step": 500, "alpha_cd": 1.0, "beta": 0.1},
        {"reference": "early-exit", "layers": "low", "alpha_cd": 1.0, "beta": 0.1},
        {"reference": "early-exit", "layers": 2, "alpha_cd": 1.0, "beta": 0.1},
        {"reference": "prompt", "words": "look away. {prompt}", "alpha_cd": 1.0, "beta": 0.1},
        {"reference": "no-vision+text-centroid", "weights": [1.0, -0.5], "layer": 1, "alpha_interp": 0.3}
        | {"k": 6, "bank": "bank", "alpha_cd": 1.0, "beta": 0.1},
    ],
    ids=lambda settings: settings["reference"],
)
def test_the_line_to_paste_is_python_that_decodes_so(monkeypatch, settings):
    model = cached_tiny("llava")
    batch = inputs("llava", [Row(), Row()])
    vectors = torch.randn(6, 64, generator=torch.Generator().manual_seed(1))
    mean = torch.randn(len(model.get_decoder().layers), 64, generator=torch.Generator().manual_seed(2))
    keys = [("text", 1), ("vision", 1)]
    names = {"model": model, "TCCD": TCCD, "Contrast": Contrast, "inputs": batch, "prompts": ["a", "b"]}
    names |= {"bank": CentroidBank.from_arrays(model, dict.fromkeys(keys, vectors), vision_mean=mean)}
    names |= {name: getattr(makers, name) for name in dir(makers) if not name.startswith("_")}
    line = recipes(settings)["transformers"]
    asks_for = set(re.findall(r"processor|images|other_words", line))
    if asks_for:  # tiny models have no processor: that these are really made is in test_references.py
        compile(line, "advice", "eval")
        made = getattr(makers, line.partition("Contrast(model, ")[2].partition("(")[0])
        assert asks_for <= {*made.__code__.co_varnames, "other_words"}
        return
    caught = []
    monkeypatch.setattr(model, "generate", lambda **how: caught.append(how["custom_generate"]), raising=False)
    eval(line, names)
    (contrast,) = caught
    assert contrast.rule.alpha_cd == settings["alpha_cd"]
    assert contrast.rule.beta == settings.get("beta", 0.0)
    assert contrast.rule.gate == settings.get("gate")
    assert contrast.rule.gate_threshold == settings.get("gate_threshold", 0.5)
    assert isinstance(contrast, TCCD) == (settings["reference"] == "text-centroid")


def test_the_page_and_the_terminal_tell_all_of_it(tmp_path):
    result = with_references(SEVERAL)
    result["models"]["competing"]["accuracy"] |= {"pictures": 100, "question_strings": 20}
    write_report(result, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for told in ("Contrast with no-vision is recommended", "Runner-up: blank-image", "no_vision(), alpha_cd=1.0"):
        assert told in page
    assert "Gain on held-out pictures by reference, competing. no-vision +" in page
    table = (tmp_path / "report-tccd.csv").read_text(encoding="utf-8").splitlines()
    assert table[0].startswith("control,model,reference,weights,layer,k,bank,alpha_interp,color,step,layers,words")
    assert table[3].startswith(",competing,no-vision,,,,,,")
    command = CliRunner().invoke(app, ["probe", "advise", str(tmp_path)], env={"COLUMNS": "200"})
    assert command.exit_code == 0, command.output
    for told in (
        "Contrast for competing: on",
        "reference = no-vision, alpha_cd = 1.0",
        "costs, beside plain decoding: the tail's rows",
        "transformers: model.generate(**inputs, custom_generate=Contrast(model, no_vision(), alpha_cd=1.0))",
        "runner-up: blank-image",
        "a second pass the first time",
    ):
        assert told in command.output
    machine = CliRunner().invoke(app, ["probe", "advise", str(tmp_path), "--json"])
    assert json.loads(machine.output)["advice"] == [advise(result)]


def test_vllm_takes_the_keys_that_are_advised():
    settings = {
        "reference": "text-centroid",
        "layer": 3,
        "alpha_interp": 0.4,
        "alpha_cd": 2.0,
        "beta": 0.1,
        "k": 8,
    }
    keys = json.loads(recipes(settings)["vllm"].partition(": ")[2])
    assert keys == {"tccd_layer": 3, "tccd_alpha_interp": 0.4, "tccd_alpha_cd": 2.0, "tccd_beta": 0.1}
    assert set(keys) <= set(KEYS)
    assert TCCDConfig.from_dict({key.removeprefix("tccd_"): value for key, value in keys.items()}).layer == 3
