"""`tccd route` as a user and as a program would run it."""

import json

import pytest

from tccd.inputs import encode
from tccd.routing import Routed, load_branch
from tests.tccd.cli.common import ok, run

PROMPTS = ["what shape is in the image?", "is there a red shape?"]
ASKED = [part for prompt in PROMPTS for part in ("--prompt", prompt)]


@pytest.fixture(scope="module")
def trained(model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("branch")
    file = folder / "branch.safetensors"
    args = ("--data", "easy-vqa", "--split-layer", 2, "--limit", 8, "--learning-rate", 0.01, "--json")
    result = ok(run("route", "train", "--model", model_dir, "--out", file, "--work-dir", folder / "work", *args))
    return file, json.loads(result.stdout)


def test_training_says_what_it_did_and_the_file_remembers(trained, loaded):
    file, told = trained
    assert (told["steps"], told["samples"], told["split"]) == (2, 8, "train")
    branch = load_branch(file, loaded.model)
    assert told["parameters"] == branch.parameters_in_all
    assert told["share"] == pytest.approx(branch.share(loaded.model), abs=1e-6)
    assert 0.05 < told["share"] < 0.2  # a layer of six: 3 % is for those of 32


def test_answers_are_those_of_python(trained, model_dir, loaded, picture):
    from PIL import Image

    file, _ = trained
    args = ("--image", picture, "--max-new-tokens", 4, "--batch-size", 2, "--json")
    result = ok(run("route", "generate", "--model", model_dir, "--branch", file, *args, *ASKED))
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    inputs = encode(loaded.processor, [[Image.open(picture)]] * 2, PROMPTS)
    routed = Routed(loaded.model, branch=load_branch(file, loaded.model))
    for name, door in (("plain", None), ("routed", routed)):
        tokens = loaded.model.generate(**inputs, max_new_tokens=4, do_sample=False, custom_generate=door)
        texts = loaded.processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert [row[name] for row in rows] == texts
    assert {(row["cache_bytes"], row["plain_cache_bytes"]) for row in rows} == {tuple(routed.memory)}


def test_a_person_sees_a_table_and_what_the_cache_saves(model_dir, picture):
    args = ("--branch", "none", "--split-layer", 2, "--image", picture, "--max-new-tokens", 2)
    result = ok(run("route", "generate", "--model", model_dir, *args, *ASKED))
    assert "Routed" in result.stdout
    assert "59% less than the plain model's" in " ".join(result.stdout.split())


def test_what_contradicts_itself_is_refused_before_the_model_is_loaded(tmp_path, picture):
    for given, words in (
        (("--branch", "identity"), "give --split-layer"),
        (("--branch", "none", "--split-layer", 2, "--fuse", 1), "leave it out"),
        (("--branch", tmp_path / "none.safetensors"), "no such file"),
    ):
        result = run("route", "generate", "--model", "nowhere", "--image", picture, *ASKED, *given)
        assert result.exit_code == 2
        assert words in " ".join(result.stderr.split())
