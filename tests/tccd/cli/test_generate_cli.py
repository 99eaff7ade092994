"""`tccd generate` as a user and as a program would run it."""

import json

from PIL import Image

from tccd.inputs import encode
from tests.tccd.cli.common import ESCAPE, ok, program, run


def test_generate_prints_json_for_each_prompt(model_dir, bank_file, picture, loaded):
    prompts = ["what shape is in the image?", "is there a red shape?", "is a circle present?"]
    args = (
        "--layer",
        1,
        "--image",
        picture,
        "--max-new-tokens",
        4,
        "--json",
        "--alpha-cd",
        3,
        "--alpha-interp",
        0,
    )
    asked = [part for prompt in prompts for part in ("--prompt", prompt)]
    result = ok(run("generate", "--model", model_dir, "--bank", bank_file, *args, *asked, "--batch-size", 2))
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["prompt"] for row in rows] == prompts
    assert {row["image"] for row in rows} == {str(picture)}
    inputs = encode(loaded.processor, [[Image.open(picture)]] * 3, prompts)
    tokens = loaded.model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert [row["plain"] for row in rows] == loaded.processor.batch_decode(tokens, skip_special_tokens=True)
    assert any(row["plain"] != row["contrasted"] for row in rows)
    alone = ok(run("generate", "--model", model_dir, "--bank", bank_file, *args, *asked))
    assert alone.stdout == result.stdout  # whatever the batch


def test_generate_off_is_plain(model_dir, bank_file, picture):
    lines = "\n".join(json.dumps({"prompt": p, "id": p}) for p in ("is there a circle?", "what is the red shape?"))
    args = (
        "--layer",
        3,
        "--image",
        picture,
        "--prompt",
        "-",
        "--max-new-tokens",
        3,
        "--alpha-cd",
        0,
        "--json",
    )
    result = ok(run("generate", "--model", model_dir, "--bank", bank_file, *args, stdin=lines))
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["id"] for row in rows] == ["is there a circle?", "what is the red shape?"]
    assert all(row["plain"] == row["contrasted"] for row in rows)


def test_generate_needs_a_layer_where_the_bank_has_several(model_dir, bank_file, picture):
    args = ("--image", picture, "--prompt", "?", "--json")
    result = run("generate", "--model", model_dir, "--bank", bank_file, *args)
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["type"] == "ConfigError"
    assert "layers [1, 3]" in result.stderr


def test_generate_in_a_pipe_has_neither_colors_nor_progress(model_dir, bank_file, picture):
    args = ("--layer", 1, "--image", picture, "--prompt", "is there a [bold] circle?", "--max-new-tokens", 2)
    result = program("generate", "--model", model_dir, "--bank", bank_file, *args)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert ESCAPE not in result.stdout
    words = result.stdout.split()
    assert {"Plain", "Contrasted", "red.png", "[bold]"} <= set(words)
