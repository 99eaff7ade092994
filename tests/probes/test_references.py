"""The probe contrasts with any reference, with a bank and without, and answers as slow forwards do."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from eval.zoo import load
from probes.asking.forward import encode_samples
from probes.references import KINDS, cost_of, parse, rank_of
from probes.replacement import run
from probes.replacement.grid import Grid
from probes.report import validate
from tccd import CentroidBank
from tccd.__main__ import app
from tccd.centroids.replacement import Centroids
from tccd.cli.references import NAMES
from tccd.data import Sample, load_samples
from tccd.errors import ConfigError
from tests import oracle

BATCH = 8
WORDS = "prompt=look away, {prompt}"
ALONE = ("no-vision", "blank-image=black", "early-exit=1", "early-exit=low", "noised-image=400", WORDS)
BANKED = ("text-centroid", "vision-centroid", "mean-vision")
TOGETHER = ("mean-vision+-0.5*text-centroid",)


@pytest.fixture(scope="module")
def zoo():
    return load("qwen25vl-competing")


@pytest.fixture(scope="module")
def samples():
    return list(load_samples("easy-vqa", split="test", limit=16, seed=5))


@pytest.fixture(scope="module")
def bank(zoo, samples):
    """Centroids of two layers, and the mean input of each layer over some pictures' vision tokens."""
    model, processor = zoo
    inputs = encode_samples(model, processor, samples)
    vision = inputs["input_ids"] == model.config.image_token_id
    seen = []
    hooks = [
        layer.register_forward_pre_hook(lambda module, args, kwargs: seen.append(args[0]), with_kwargs=True)
        for layer in model.get_decoder().layers
    ]
    with torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    mean = torch.stack([states[vision].mean(0) for states in seen])
    draw = partial(torch.randn, 8, mean.shape[1], generator=torch.Generator().manual_seed(0))
    tensors = {(modality, layer): draw() for modality in ("text", "vision") for layer in (0, 2)}
    return CentroidBank.from_arrays(model, tensors, vision_mean=mean)


@pytest.fixture(scope="module")
def found(zoo, samples, bank):
    grid = Grid(
        layers={"text": (2,), "vision": (0,)},
        alphas=(0.3,),
        references=(*ALONE, *BANKED, *TOGETHER),
        alpha_cd=(2.0, -1.0),
        beta=(0.0, 0.1),
    )
    result = run(*zoo, samples, bank, grid, name="m", batch_size=BATCH)
    validate(result)
    return result


def slow(zoo, samples, row, bank):
    """The next-token logits of a row's reference, by whole forwards under a hook."""
    model, processor = zoo
    inputs = encode_samples(model, processor, samples)
    name = row["reference"]
    if name == "no-vision":
        return oracle.withheld_logits(model, inputs)[:, -1]
    if name == "mean-vision":
        return oracle.mean_image_logits(model, inputs, bank.vision_mean)[:, -1]
    if name == "blank-image":
        shown = [Image.new("RGB", s.image.size, (0, 0, 0)) for s in samples]
        return oracle.full_logits(model, encode_samples(model, processor, samples, shown))[:, -1]
    if name == "prompt":
        others = [replace(s, prompt=f"look away, {s.prompt}") for s in samples]
        return oracle.full_logits(model, encode_samples(model, processor, others))[:, -1]
    if name == "early-exit":
        half = (0, 2, 4) if row["layers"] == "low" else (row["layers"] + 1,)
        count = model.config.get_text_config().num_hidden_layers
        half = [n for n in half if n < max(count // 2, 3)] if row["layers"] == "low" else half
        tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        return oracle.exit_logits(model, inputs, [n - 1 for n in half if n or not tied])[:, -1]
    modality = name.removesuffix("-centroid")
    vision = inputs["input_ids"] == model.config.image_token_id
    tail = (vision.flip(-1).cumsum(-1).flip(-1) == 0) & inputs["attention_mask"].bool()
    centroids = Centroids(bank.tensors[modality, row["layer"]])
    erase = partial(centroids.replace, alpha_interp=row["alpha_interp"])
    where = vision if modality == "vision" else tail
    return oracle.full_logits(model, inputs, row["layer"], where, erase)[:, -1]


def test_what_every_reference_answers_is_what_slow_forwards_answer(zoo, samples, bank, found):
    model, processor = zoo
    compared = 0
    for start in range(0, len(samples), BATCH):
        asked = samples[start : start + BATCH]
        clean = oracle.full_logits(model, encode_samples(model, processor, asked))[:, -1]
        for row in found["tccd_cells"]:
            if row["reference"] == "noised-image":  # its noise is drawn: test_a_noised_picture below
                continue
            parts = [{**row, "reference": name} for name in row["reference"].split("+")]
            weights = row.get("weights", [1.0])
            others = [slow(zoo, asked, part, bank) for part in parts]
            mixed = clean + row["alpha_cd"] * sum(
                weight * (clean - other) for weight, other in zip(weights, others, strict=True)
            )
            if row["beta"]:
                probable = clean.softmax(-1)
                mixed = mixed.masked_fill(probable < row["beta"] * probable.amax(-1, keepdim=True), -torch.inf)
            said = [processor.tokenizer.decode([token]).strip() for token in mixed.argmax(-1).tolist()]
            right = [word == s.answer for word, s in zip(said, asked, strict=True)]
            assert [bit == "1" for bit in row["right"][start : start + BATCH]] == right, row["reference"]
            compared += row["right"] != found["questions"]["m"]["right"]
    assert compared > 20, "most references change some answer here"


def test_a_row_says_what_it_was_contrasted_with(found):
    rows = found["tccd_cells"]
    assert [row["alpha_cd"] for row in rows] == [-1.0] * 20 + [2.0] * 20, "the weakest contrast first"
    shown = [
        {
            key: row[key]
            for key in row
            if key in ("reference", "weights", "layer", "bank", "color", "step", "layers", "words")
        }
        for row in rows[:10]
    ]
    centroid = {"layer": 2, "bank": "bank"}
    assert shown == [
        {"reference": "no-vision"},
        {"reference": "blank-image", "color": "black"},
        {"reference": "early-exit", "layers": 1},
        {"reference": "early-exit", "layers": "low"},
        {"reference": "noised-image", "step": 400},
        {"reference": "prompt", "words": "look away, {prompt}"},
        {"reference": "text-centroid"} | centroid,
        {"reference": "vision-centroid", "layer": 0, "bank": "bank"},
        {"reference": "mean-vision", "bank": "bank"},
        {"reference": "mean-vision+text-centroid", "weights": [1.0, -0.5]} | centroid,
    ]


def test_nothing_fitted_is_needed_to_ask_whether_withholding_the_image_helps(zoo, samples, found):
    grid = Grid(references=ALONE, alpha_cd=(2.0, -1.0), beta=(0.0, 0.1))
    alone = run(*zoo, samples, grid=grid, name="m", batch_size=BATCH)
    validate(alone)
    assert alone["cells"] == alone["controls"] == []
    assert alone["ratio"] == {}
    assert alone["data"]["m"]["banks"] == {}
    kept = [row for row in found["tccd_cells"] if row["reference"] in {name.partition("=")[0] for name in ALONE}]
    assert [row["right"] for row in alone["tccd_cells"]] == [row["right"] for row in kept]
    with pytest.raises(ConfigError, match="nothing to measure"):
        run(*zoo, samples)
    for name in BANKED:
        with pytest.raises(ConfigError, match=f"{name} is made of a bank, and none was given"):
            run(*zoo, samples, grid=Grid(references=[name], alpha_cd=[1.0]))


def test_a_noised_picture_at_hardly_any_noise_is_the_picture(zoo, samples):
    grid = Grid(references=["noised-image=0", "noised-image=999"], alpha_cd=[50.0])
    found = run(*zoo, samples, grid=grid, name="m", batch_size=BATCH)
    hardly, all_of_it = found["tccd_cells"]
    plain = found["questions"]["m"]["right"]
    assert sum(a != b for a, b in zip(hardly["right"], plain, strict=True)) < sum(
        a != b for a, b in zip(all_of_it["right"], plain, strict=True)
    )


def test_answers_of_several_tokens_are_generated_by_contrast(zoo, samples, bank):
    """A made-up rule that answers have two words: every arm generates, from references made for these prompts."""
    model, processor = zoo
    longer = [
        Sample(s.id, s.image_id, s.prompt, f"{s.answer} one" if i % 2 else s.answer, None, s.task, s.load)
        for i, s in enumerate(samples[:8])
    ]
    grid = Grid(
        layers={"text": (2,), "vision": ()}, references=("no-vision", "blank-image"), alpha_cd=(2.0,), beta=(0.1,)
    )
    found = run(model, processor, longer, bank, grid, name="m", batch_size=4)
    by_token = run(model, processor, samples[:8], bank, grid, name="m", batch_size=4)
    assert found["config"]["scoring"]["kinds"]["generated"] == 8
    for ours, theirs in zip(found["tccd_cells"], by_token["tccd_cells"], strict=True):
        assert ours["right"][::2] == theirs["right"][::2], "the model says one word, then ends"
        assert set(ours["right"][1::2]) == {"0"}


def test_one_command_without_a_bank_then_advice(tmp_path):
    model = Path(__file__).parents[2] / "eval" / "zoo" / "llava-competing"

    def command(*args):
        found = CliRunner().invoke(app, ["probe", *map(str, args)], env={"COLUMNS": "160"})
        assert found.exit_code == 0, found.output
        return found.stdout

    asked = ["--model", model, "--data", "easy-vqa", "--limit", 24, "--seed", 3, "--batch-size", 12]
    told = command(
        "replacement", *asked, "--reference", "no-vision,blank-image=black", "--out", tmp_path, "--json"
    )
    rows = json.loads(told)["tccd_cells"]
    assert {(row["reference"], row.get("color")) for row in rows} == {
        ("no-vision", None),
        ("blank-image", "black"),
    }
    assert sorted({row["alpha_cd"] for row in rows}) == [0.5, 1.0, 2.0], "where no strength is given"
    config = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["config"]
    assert config["references"] == ["no-vision", "blank-image=black"]
    assert config["bank"] == []
    advice = command("advise", tmp_path)
    assert "Contrast for llava-competing: o" in advice
    assert "blank-image" in advice
    words = "prompt=You are blind, so say: {prompt}"
    told = command(
        *("replacement", *asked, "--reference", words, "--reference", "early-exit=1"),
        *("--alpha-cd=-1", "--out", tmp_path / "other", "--json"),
    )
    rows = json.loads(told)["tccd_cells"]
    assert [(row["reference"], row["alpha_cd"]) for row in rows] == [("prompt", -1.0), ("early-exit", -1.0)]
    assert rows[0]["words"] == "You are blind, so say: {prompt}"


def test_names():
    assert set(KINDS) == set(NAMES), "the probe and tccd generate know the same references"
    assert [term.value for term in parse("blank-image")] == ["grey"]
    (one, two) = parse("no-vision + -0.5*mean-vision")
    assert (one.kind.name, one.weight, two.kind.name, two.weight) == ("no-vision", 1.0, "mean-vision", -0.5)
    ranks = [rank_of(name) for name in KINDS]
    assert ranks == sorted(set(ranks))
    assert rank_of("no-vision+mean-vision") > max(ranks)
    assert cost_of("no-vision+early-exit").count(";") == 1
    assert cost_of("no-vision+mean-vision") == "the tail's rows, 2 times"
