"""The probe over a grid: its cells are those asked for, and its figures those of the outcomes it keeps."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from eval.zoo import load
from probes.asking.arms import Arm, answer
from probes.asking.blind import majority
from probes.asking.forward import encode_samples, run_streams
from probes.replacement import run
from probes.replacement.controls import random_direction
from probes.replacement.grid import Grid
from probes.report import validate
from probes.report.schema import plain
from tccd import CentroidBank
from tccd.data import Sample, load_samples
from tccd.decoder import find_decoder
from tccd.decoding.references import centroid_erasure
from tccd.errors import BankMismatchError, ConfigError, DataError

GRID = Grid(
    layers={"text": (1, 3), "vision": (3,)},
    alphas=(0.0, 0.4),
    segments={"text": ("all", "question")},
    alpha_cd=(1.0, 0.5),
    beta=(0.0, 0.1),
    gate="margin",
    gate_thresholds=(0.3,),
    controls=True,
)


@pytest.fixture(scope="module")
def zoo():
    return load("llava-competing")


@pytest.fixture(scope="module")
def bank(zoo):
    generator = torch.Generator().manual_seed(0)
    width = zoo[0].config.text_config.hidden_size
    keys = [(modality, layer) for modality in ("text", "vision") for layer in (1, 3, 5)]
    return CentroidBank.from_arrays(zoo[0], {key: torch.randn(8, width, generator=generator) for key in keys})


@pytest.fixture(scope="module")
def samples():
    return list(load_samples("easy-vqa", split="test", limit=48, seed=1))


@pytest.fixture(scope="module")
def seen():
    return []


@pytest.fixture(scope="module")
def result(zoo, bank, samples, seen):
    found = run(
        *zoo, samples, bank, GRID, name="m", batch_size=20, progress=lambda done, total: seen.append((done, total))
    )
    validate(found)
    return found


def right(bits):
    return np.array([bit == "1" for bit in bits])


def test_every_combination_is_a_cell(result, seen):
    assert seen == [(20, 48), (40, 48), (48, 48)]
    places = [(c["modality"], c["segment"], c["layer"], c["alpha_interp"]) for c in result["cells"]]
    assert places == [
        *(("text", s, layer, a) for s in ("all", "question") for layer in (1, 3) for a in (0.0, 0.4)),
        *(("vision", "tokens", 3, a) for a in (0.0, 0.4)),
    ]
    settings = {(c["layer"], c["alpha_interp"], c["alpha_cd"], c["beta"], c["gate"]) for c in result["tccd_cells"]}
    assert len(settings) == len(result["tccd_cells"]) == 2 * 2 * 2 * 2 * 2
    assert [c["alpha_cd"] for c in result["tccd_cells"]] == [0.5] * 16 + [1.0] * 16
    kinds = [(c["kind"], c["cell"], c.get("against")) for c in result["controls"]]
    assert kinds[:8] == [
        *(
            (kind, cell, None)
            for cell in (0, 2)
            for kind in ("random-direction", "random-centroid", "spare-answer")
        ),
        *((kind, 8, None) for kind in ("random-direction", "random-centroid")),
    ]
    assert [kind for kind, *_ in kinds[8:]] == ["dose-matched"]
    assert {kinds[8][1], kinds[8][2]} == {2, 8}


def test_figures_are_those_of_the_outcomes(result):
    asked = result["questions"]["m"]
    clean, tasks = right(asked["right"]), np.array(asked["task"])
    assert clean.mean() == pytest.approx(result["models"]["m"]["accuracy"]["accuracy"])
    assert [a == p for a, p in zip(asked["answer"], asked["plain"], strict=True)] == clean.tolist()
    for cell in result["cells"] + result["controls"]:
        other = right(cell["right"])
        assert cell["cost"] == pytest.approx(clean.mean() - other.mean())
        assert sum(cell["labels"]["counts"].values()) == cell["n"] == 48
        for row in cell["by_task"]:
            at = tasks == row["task"]
            assert row["cost"] == pytest.approx(clean[at].mean() - other[at].mean())
    for cell in result["tccd_cells"]:
        other = right(cell["right"])
        assert cell["helped"] - cell["harmed"] == other.sum() - clean.sum()
        assert sum(row["n"] * row["delta"] for row in cell["by_task"]) == pytest.approx(48 * cell["delta"])
    for part in ("cells", "controls", "tccd_cells", "tccd_controls"):
        assert all(c["p_holm"] >= c["p_value"] for c in result[part])


def test_each_contrast_with_centroids_has_one_with_a_random_direction(zoo, bank, samples, result):
    model, processor = zoo
    settings = result["tccd_cells"]
    assert [row["setting"] for row in result["tccd_controls"]] == list(range(len(settings)))
    inputs = encode_samples(model, processor, samples[:20])
    with torch.no_grad():
        clean = model(**inputs).logits[:, -1]
    changed = 0
    for row in result["tccd_controls"]:
        of = settings[row["setting"]]
        assert {key: row[key] for key in ("layer", "alpha_interp", "alpha_cd", "beta", "gate")} == {
            key: of[key] for key in ("layer", "alpha_interp", "alpha_cd", "beta", "gate")
        }
        changed += row["right"] != of["right"]
        if row["beta"] or row["gate"]:
            continue
        # The same draw by hand: the direction that the control cell of this layer was moved in.
        centroids = bank.centroids("text", row["layer"])
        draw = random_direction(centroids, row["alpha_interp"], GRID.seed)
        moved = replace(centroid_erasure(bank, row["layer"], row["alpha_interp"]), replace=draw)
        other = run_streams(find_decoder(model), inputs, [moved]).others[0]
        best = (clean + row["alpha_cd"] * (clean - other)).argmax(-1)
        said = [word.strip() for word in processor.batch_decode(best[:, None])]
        assert [bit == "1" for bit in row["right"][:20]] == [
            s.answer == word for s, word in zip(samples[:20], said, strict=True)
        ]
    assert changed


def test_doses(result):
    cells = result["cells"]
    assert cells[1]["displacement"] == pytest.approx(0.6 * cells[0]["displacement"], rel=1e-4)
    for control in result["controls"]:
        own = cells[control["cell"]]["displacement"]
        if control["kind"] == "random-direction":
            assert control["displacement"] == pytest.approx(own, rel=1e-4)
        if control["kind"] == "random-centroid":
            assert control["displacement"] > own
        if control["kind"] == "dose-matched":
            matched = cells[control["against"]]["displacement"]
            assert control["displacement"] == pytest.approx(matched, rel=1e-3)
            assert matched < own
    assert {"ratio", "reason", "ci95"} <= set(result["ratio"]["m"]["dose_matched"])


def test_protocols(result):
    found = {protocol["name"]: protocol for protocol in result["protocols"]["m"]}
    cells = result["tccd_cells"]
    assert [name for name, p in found.items() if p["oracle"]] == ["best"]
    assert found["best"]["note"].startswith("oracle upper bound")
    assert found["best"]["mean"] >= max(found["cv"]["mean"], found["fixed"]["mean"])
    (fixed,) = set(found["fixed"]["chosen"].values())
    chosen = {key: cells[fixed][key] for key in ("alpha_cd", "alpha_interp", "beta", "gate", "layer")}
    assert chosen == {"alpha_cd": 1.0, "alpha_interp": 0.4, "beta": 0.0, "gate": None, "layer": 3}
    for protocol in found.values():
        for task, index in protocol["chosen"].items():
            (row,) = [row for row in cells[index]["by_task"] if row["task"] == task]
            assert protocol["values"][task] == row["delta"]


def test_the_image_is_withheld_by_a_grey_one(zoo, samples, result):
    model, processor = zoo
    grey = [Image.new("RGB", s.image.size, (128, 128, 128)) for s in samples]
    inputs = encode_samples(model, processor, samples, grey)
    said = processor.batch_decode(model.generate(**inputs, max_new_tokens=1, do_sample=False)[:, -1:])
    blind = result["models"]["m"]["blind"]
    assert blind["correct"] == sum(s.answer == word for s, word in zip(samples, said, strict=True))
    assert "grey" in blind["kind"]
    assert sum(row["n"] for row in blind["by_task"]) == 48
    assert blind["accuracy"] < result["models"]["m"]["accuracy"]["accuracy"]


def test_majority():
    def sample(prompt, answer):
        return Sample("1", "1", prompt, answer, None, None, lambda: Image.new("RGB", (4, 4)))

    asked = [sample("a?", "yes"), sample("a?", "no"), sample("a?", "yes"), sample("b?", "no")]
    assert majority(asked).tolist() == [True, False, True, True]


def test_examples_are_answers_that_erasure_flips(result, samples):
    asked = {(s.prompt, s.answer) for s in samples}
    assert 0 < len(result["examples"]) <= 6
    for example in result["examples"]:
        assert example["plain"] == example["answer"]
        assert any(erased["answer"] != example["answer"] for erased in example["erased"])
        assert (example["prompt"], example["answer"]) in asked


def test_a_report_is_the_same_again(zoo, bank, samples, result):
    again = run(*zoo, samples, bank, GRID, name="m", batch_size=20)
    assert plain(again) | {"created": ""} == plain(result) | {"created": ""}


def test_all_layers_are_those_with_one_above_them(zoo, bank, samples):
    found = run(*zoo, samples[:8], {"one": bank, "two": bank}, Grid(), batch_size=8)
    places = [(c["modality"], c["bank"], c["layer"]) for c in found["cells"]]
    assert places == [(m, b, layer) for m in ("text", "vision") for b in ("one", "two") for layer in (1, 3)]
    assert found["controls"] == found["tccd_cells"] == []
    assert "protocols" not in found
    json.dumps(plain(found), allow_nan=False)


def test_text_and_vision_at_different_layers_have_a_ratio(zoo, bank, samples):
    found = run(*zoo, samples, bank, Grid(layers={"text": (1,), "vision": (3,)}, controls=True), name="m")
    block = found["ratio"]["m"]
    assert (block["layer"], block["vision_layer"]) == (1, 3)
    assert "dose_matched" in block
    validate(found)


def test_an_erasure_of_no_position_is_the_clean_stream_and_has_no_displacement(zoo, bank, samples):
    arm = Arm(replace(centroid_erasure(bank, 1, 0.0), spare=999))
    found = answer(*zoo, samples[:8], [arm], batch_size=4)
    assert (found.arms[0] == found.clean).all()
    assert np.isnan(found.displacement[0])


@pytest.mark.parametrize(
    ("grid", "error", "words"),
    [
        ({"layers": {"text": ()}}, ConfigError, "nothing to erase"),
        ({"layers": {"text": (2,)}}, BankMismatchError, "no text centroids at layer 2"),
        ({"layers": {"vision": (99,)}}, BankMismatchError, "no vision centroids at layer 99"),
        ({"layers": {"text": (5,)}}, ConfigError, "layer 5 is out of range"),
        ({"layers": {"vision": (1,)}, "alpha_cd": (1.0,)}, ConfigError, "no layer of text"),
        ({"alphas": ()}, ConfigError, "at least one value"),
        ({"alphas": (0.0, 0.0)}, ConfigError, "each once"),
        ({"alphas": (1.5,)}, ConfigError, "alpha_interp is 1.5; expected 0 to 1"),
        ({"alpha_cd": (float("nan"),)}, ConfigError, "alpha_cd is nan"),
        ({"references": ()}, ConfigError, "at least one value"),
        (
            {"references": ("no-image",)},
            ConfigError,
            "no reference is called 'no-image'; expected one of",
        ),
        ({"references": ("no-vision=1",)}, ConfigError, "takes nothing behind its name"),
        ({"references": ("blank-image=",)}, ConfigError, "expected blank-image=COLOR"),
        ({"references": ("no-vision+no-vision",)}, ConfigError, "each name once"),
        ({"references": ("noised-image=x",), "alpha_cd": (1.0,)}, ConfigError, "expected a step"),
        (
            {"references": ("noised-image=1000",), "alpha_cd": (1.0,)},
            ConfigError,
            "expected a step",
        ),
        ({"references": ("early-exit=middle",), "alpha_cd": (1.0,)}, ConfigError, "low, high or a decoder layer"),
        ({"references": ("early-exit=5",), "alpha_cd": (1.0,)}, ConfigError, "layer 5"),
        ({"references": ("mean-vision",), "alpha_cd": (1.0,)}, BankMismatchError, "no bank holds a vision mean"),
        ({"references": ("blank-image=gray-ish",), "alpha_cd": (1.0,)}, ConfigError, "expected a color"),
        ({"segments": {"text": ("tail",)}}, ConfigError, "text: all, question, options, system"),
        ({"segments": {"sound": ("all",)}}, ConfigError, "segments of sound"),
    ],
)
def test_bad_grids(zoo, bank, samples, grid, error, words):
    with pytest.raises(error, match=words):
        run(*zoo, samples[:4], bank, Grid(**grid))


def test_bad_data(zoo, bank, samples):
    with pytest.raises(DataError, match="no samples"):
        run(*zoo, [], bank)
    same = [s for s in samples if s.answer == "yes"]
    with pytest.raises(DataError, match=r"all \d+ right answers are 'yes'"):
        run(*zoo, same, bank)
    with pytest.raises(BankMismatchError, match="another model"):
        run(*load("llava-grounded"), samples, bank)
