"""The `tccd` command, run as a user and as a program would."""

import inspect
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from eval.zoo.build import FAMILIES, save
from tccd.__main__ import app
from tccd.centroids.bank import CentroidBank
from tccd.centroids.kmeans import BACKENDS
from tccd.cli.fit import Backend, fit
from tccd.cli.generate import Gate, Tokens, generate, read_questions
from tccd.cli.options import parse_columns, parse_layers, settle_layers, single_layers
from tccd.decoding.config import TOKENS, TCCDConfig
from tccd.decoding.gates import GATES
from tccd.errors import ConfigError, DataError, TCCDError
from tccd.inputs import encode
from tccd.loading import load_model

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "",
    "fit",
    "generate",
    "probe",
    "probe replacement",
    "probe advise",
    "probe compare",
    "bank",
    "bank show",
    "bank verify",
    "bank import-npz",
)
ESCAPE = "\x1b"


def run(*args, stdin=""):
    """The command in this process."""
    return CliRunner().invoke(app, [str(arg) for arg in args], input=stdin, prog_name="tccd")


def program(*args, stdin=""):
    """The command as a program of its own, in a pipe."""
    command = [sys.executable, "-m", "tccd", *map(str, args)]
    # What a terminal or a CI system may set would color a pipe's output too.
    env = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "GITHUB_ACTIONS", "TTY_COMPATIBLE")}
    return subprocess.run(command, input=stdin, capture_output=True, text=True, cwd=ROOT, env=env, timeout=300)


def ok(result):
    """The result of a run that has to succeed."""
    assert result.exit_code == 0, (result.stdout, result.stderr, result.exception)
    return result


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """The zoo's model before its training: right in shape, random in what it says."""
    torch.manual_seed(0)
    family = FAMILIES["llava"]
    model, processor = family.build()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)  # else all answers are alike
    folder = tmp_path_factory.mktemp("zoo") / "untrained"
    save(family, model, processor, folder)
    return folder


@pytest.fixture(scope="module")
def loaded(model_dir):
    return load_model(str(model_dir))


@pytest.fixture(scope="module")
def bank_file(loaded, tmp_path_factory):
    """Random centroids: text at layers 1 and 3, vision at layer 2."""
    draw = np.random.default_rng(0)
    arrays = {
        (modality, layer): draw.standard_normal((8, 128)).astype(np.float32)
        for modality, layer in (("text", 1), ("text", 3), ("vision", 2))
    }
    file = tmp_path_factory.mktemp("bank") / "bank.safetensors"
    CentroidBank.from_arrays(loaded.model, arrays, data="drawn at random").save(file)
    return file


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    file = tmp_path_factory.mktemp("pictures") / "red.png"
    Image.new("RGB", (64, 64), "red").save(file)
    return file


# --- help and usage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command):
    result = ok(run(*command.split(), "--help"))
    _, found, after = result.stdout.partition("Examples:")
    assert found
    assert f"tccd {command}".strip() in after


def test_help_and_version_need_no_torch():
    code = (
        "import sys; from typer.testing import CliRunner; from tccd.__main__ import app\n"
        "for args in (['--help'], ['fit', '--help'], ['probe', 'replacement', '--help'], ['--version']):\n"
        "    assert CliRunner().invoke(app, args).exit_code == 0\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert result.stdout.strip() == "[]", result.stderr


def test_version():
    assert ok(run("--version")).stdout.startswith("tccd ")


def test_completion_is_offered():
    assert "--install-completion" in run("--help").stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fitt"], "No such command"),
        (["fit"], "Missing option"),
        (["fit", "--model", "m", "--data", "d", "--out", "o", "--k", "0"], "--k"),
        (["fit", "--model", "m", "--data", "d", "--out", "o", "--backend", "cuml"], "faiss-gpu"),
        (
            ["fit", "--model", "m", "--data", "d", "--out", "o", "--layers", "audio=3"],
            "unknown modality 'audio'",
        ),
        (["fit", "--model", "m", "--data", "d", "--out", "o", "--column", "x"], "expected FIELD=NAME"),
        (["fit", "--model", "m", "--data", "d", "--out", "o", "--prompt", " "], "--prompt is empty"),
        (["fit", "--model", "m", "--data", "d", "--out", "/"], "is a folder"),
        (["generate", "--model", "m", "--bank", "b", "--prompt", "p"], "expected --image FILE"),
        (
            ["generate", "--model", "m", "--bank", "b", "--prompt", "p", "--alpha-interp", "2"],
            "alpha_interp is 2.0",
        ),
        (["generate", "--model", "m", "--bank", "b", "--prompt", "p", "--prompt", "-"], "no other --prompt"),
        (["generate", "--model", "m", "--bank", "b", "--prompt", "p", "--gate", "x"], "margin"),
        (["bank", "import-npz", "f", "--model", "m", "--out", "o", "--layers", "all"], "expected one layer"),
        (
            [
                "probe",
                "replacement",
                "--model",
                "m",
                "--bank",
                "b",
                "--data",
                "d",
                "--out",
                "o",
                "--limit",
                "0",
            ],
            "--limit",
        ),
    ],
)
def test_wrong_usage_is_exit_code_2(args, message):
    result = run(*args)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert result.stdout == ""


def test_defaults_are_those_of_the_library():
    names = ("alpha_cd", "alpha_interp", "layer", "beta", "gate", "gate_threshold", "gate_ramp", "tokens")
    defaults = {name: inspect.signature(generate).parameters[name].default for name in names}
    assert TCCDConfig(**defaults) == TCCDConfig()
    assert parse_layers(inspect.signature(fit).parameters["layers"].default) == {
        "text": (12,),
        "vision": (16,),
    }
    assert tuple(Gate) == tuple(GATES)
    assert tuple(Tokens) == TOKENS
    assert tuple(Backend) == BACKENDS


# --- failures --------------------------------------------------------------------------------------------


def test_a_failure_is_exit_code_1_and_one_line(picture):
    result = program("bank", "show", "no-such-bank.safetensors")
    assert result.returncode == 1
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("tccd: ")
    assert "no-such-bank.safetensors" in line


def test_a_failure_with_json_is_told_to_the_program_too(tmp_path):
    file = tmp_path / "bank.safetensors"
    file.write_bytes(b"no bank")
    result = run("bank", "show", file, "--json")
    assert result.exit_code == 1
    error = json.loads(result.stdout)["error"]
    assert error["type"] == "BankError"
    assert result.stderr.strip() == f"tccd: {error['message']}"


def test_a_file_that_cannot_be_written_is_one_line(model_dir, tmp_path, bank_file, monkeypatch):
    def refuse(self, file):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(CentroidBank, "save", refuse)
    np.savez(tmp_path / "a.npz", text_centroids=np.eye(4, 128, dtype=np.float32))
    args = ("--model", model_dir, "--layers", "text=2", "--out", tmp_path / "b.safetensors")
    result = run("bank", "import-npz", tmp_path / "a.npz", *args)
    assert result.exit_code == 1
    assert result.stderr.startswith("tccd: [Errno 13] Permission denied")


def test_no_such_model(tmp_path, bank_file, picture):
    result = run("generate", "--model", tmp_path, "--bank", bank_file, "--image", picture, "--prompt", "?")
    assert result.exit_code == 1
    assert f"can't load model '{tmp_path}'" in result.stderr


def test_no_such_device(model_dir, bank_file):
    for device, message in (
        ("tpu9", "unknown device 'tpu9'"),
        ("cuda:99", "device 'cuda:99' is not there"),
        ("meta", "device 'meta' can't be used"),
    ):
        result = run("bank", "verify", bank_file, "--model", model_dir, "--device", device)
        assert result.exit_code == 2
        assert message in result.stderr


def test_no_such_data(tmp_path):
    result = run("fit", "--model", "owner/m", "--data", "nothing", "--out", tmp_path / "bank.safetensors")
    assert result.exit_code == 1
    assert "no such file or folder: 'nothing'; expected easy-vqa" in result.stderr


def test_a_broken_image_is_named(tmp_path, model_dir, bank_file):
    (tmp_path / "bad.png").write_bytes(b"no image")
    args = ("--layer", 1, "--image", tmp_path / "bad.png", "--prompt", "?")
    result = run("generate", "--model", model_dir, "--bank", bank_file, *args)
    assert result.exit_code == 1
    assert "can't read image" in result.stderr
    assert "bad.png" in result.stderr


# --- reading options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("text=12,vision=16", {"text": (12,), "vision": (16,)}),
        ("vision=16", {"vision": (16,)}),
        ("text=3,1,2,vision=0", {"text": (1, 2, 3), "vision": (0,)}),
        (" text = 8-10 , 9, 12 ", {"text": (8, 9, 10, 12)}),
        ("text=all,vision=2", {"text": None, "vision": (2,)}),
        ("all", {"text": None, "vision": None}),
        ("4,8-9", {"text": (4, 8, 9), "vision": (4, 8, 9)}),
    ],
)
def test_layers(text, layers):
    assert parse_layers(text) == layers


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "can't read ''"),
        ("1x", "can't read '1x'"),
        ("text", "can't read 'text'"),
        ("text=", "can't read 'text='"),
        ("text=-1", "can't read 'text=-1'"),
        ("text=1,,2", "can't read ''"),
        ("text=x", "can't read 'text=x'"),
        ("text=1,all", "can't read 'all'"),
        ("text=all,1", "can't read '1'"),
        ("text=5-3", "the range 5-3 is empty; expected 3-5"),
        ("vis=1", "unknown modality 'vis'; expected text or vision"),
        ("text=1,text=2", "text stands twice"),
        ("text=99999999999", "can't read"),
    ],
)
def test_bad_layers(text, message):
    with pytest.raises(ConfigError, match="--layers") as caught:
        parse_layers(text)
    assert message in str(caught.value)


@given(st.text(alphabet="text=vision,0123-al ", max_size=20))
def test_any_layers_are_read_or_refused(text):
    try:
        layers = parse_layers(text)
    except ConfigError:
        return
    assert set(layers) <= {"text", "vision"}
    assert all(found is None or (found and list(found) == sorted(set(found))) for found in layers.values())


def test_layers_of_a_model():
    assert settle_layers({"text": None, "vision": (1,)}, 3) == {"text": (0, 1, 2), "vision": (1,)}
    assert single_layers({"text": (3,), "vision": (1,)}) == {"text": 3, "vision": 1}
    with pytest.raises(ConfigError, match="expected one layer for text"):
        single_layers({"text": (3, 4)})


def test_columns():
    assert parse_columns(["prompt=frage", "answer="]) == {"prompt": "frage", "answer": None}
    assert parse_columns([]) is None
    for bad in ("prompt", "=x"):
        with pytest.raises(ConfigError, match="expected FIELD=NAME"):
            parse_columns([bad])


# --- prompts ---------------------------------------------------------------------------------------------


def test_every_prompt_is_asked_about_the_image(picture):
    one, two = read_questions(["a?", "b?"], [picture])
    assert (one.prompt, two.prompt, one.images) == ("a?", "b?", (picture,))


def test_json_lines(picture, tmp_path):
    other = tmp_path / "other.png"
    Image.new("RGB", (8, 8)).save(other)
    rows = [
        {"prompt": "a?"},
        {"prompt": "b?", "image": str(other), "id": 7},
        {"prompt": "c?", "image": [str(other)] * 2},
    ]
    lines = [json.dumps(row).encode() for row in rows] + [b"", b"  "]
    one, two, three = read_questions(["-"], [picture], lines)
    assert (one.images, two.images, three.images) == ((picture,), (other,), (other, other))
    assert one.row == {"prompt": "a?", "image": str(picture)}
    assert two.row["id"] == 7


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "stdin line 2: not JSON: .*; expected an object with prompt and image"),
        ("[]", "stdin line 2: found list; expected an object"),
        ("{}", "stdin line 2: prompt is missing; expected a text"),
        ('{"prompt": ""}', "stdin line 2: prompt is str ''; expected a text"),
        (r'{"prompt": "\ud800"}', "stdin line 2: prompt is .*; expected a text"),
        ('{"prompt": 1}', "stdin line 2: prompt is int 1; expected a text"),
        ('{"prompt": "?", "image": 3}', "stdin line 2: image is int 3; expected the path"),
        ('{"prompt": "?", "image": []}', r"stdin line 2: image is list \[\]; expected the path"),
        (
            '{"prompt": "?"}',
            "stdin line 2: image is missing; expected the path of a file, or --image for all lines",
        ),
        ('{"prompt": "?", "image": "none.png"}', r"stdin line 2: no image none\.png; expected a file"),
    ],
)
def test_a_bad_prompt_line_is_named(picture, line, message):
    good = json.dumps({"prompt": "a?", "image": str(picture)})
    with pytest.raises(DataError, match=message):
        read_questions(["-"], [], [good.encode(), line.encode()])


def test_no_prompts(picture):
    with pytest.raises(DataError, match="stdin holds no prompts"):
        read_questions(["-"], [picture], [b"", b" "])
    with pytest.raises(ConfigError, match="--prompt is empty"):
        read_questions([" "], [picture])


# --- generate --------------------------------------------------------------------------------------------


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
    assert any(row["plain"] != row["tccd"] for row in rows)
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
    assert all(row["plain"] == row["tccd"] for row in rows)


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
    assert {"Plain", "TCCD", "red.png", "[bold]"} <= set(words)


# --- banks -----------------------------------------------------------------------------------------------


def test_bank_show(bank_file):
    shown = json.loads(ok(run("bank", "show", bank_file, "--json")).stdout)
    found = [(e["modality"], e["layer"], e["k"]) for e in shown["entries"]]
    assert found == [("text", 1, 8), ("text", 3, 8), ("vision", 2, 8)]
    assert (shown["model"]["model_id"], shown["model"]["hidden_size"]) == ("untrained", 128)
    assert shown["provenance"] == {"data": "drawn at random"}
    assert shown["file"] == str(bank_file)
    text = ok(run("bank", "show", bank_file)).stdout
    assert ESCAPE not in text
    assert "untrained" in text
    assert "drawn at random" in text


def test_bank_verify(bank_file, model_dir, tmp_path):
    assert json.loads(ok(run("bank", "verify", bank_file, "--model", model_dir, "--json")).stdout)["ok"] is True
    assert "is sound and fits" in ok(run("bank", "verify", bank_file, "--model", model_dir)).stdout
    family = FAMILIES["llava"]
    torch.manual_seed(1)
    save(family, *family.build(), tmp_path / "other")
    result = run("bank", "verify", bank_file, "--model", tmp_path / "other", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["type"] == "BankMismatchError"


def test_bank_import_npz(model_dir, tmp_path):
    draw = np.random.default_rng(0)
    arrays = {
        name: draw.standard_normal((4, 128)).astype(np.float32) for name in ("text_centroids", "vis_centroids")
    }
    np.savez(tmp_path / "kmeans.npz", **arrays, metadata_json=np.array(json.dumps({"seed": 42})))
    out = tmp_path / "new" / "bank.safetensors"
    args = ("--model", model_dir, "--layers", "text=2,vision=3", "--out", out)
    shown = json.loads(ok(run("bank", "import-npz", tmp_path / "kmeans.npz", *args, "--json")).stdout)
    assert [(e["modality"], e["layer"], e["k"]) for e in shown["entries"]] == [
        ("text", 2, 4),
        ("vision", 3, 4),
    ]
    bank = CentroidBank.load(out)
    assert np.allclose(bank.centroids("text", 2).vectors, arrays["text_centroids"])
    ok(run("bank", "verify", out, "--model", model_dir))


def test_bank_import_npz_wants_every_layer(model_dir, tmp_path):
    np.savez(tmp_path / "a.npz", text_centroids=np.eye(4, 128), vis_centroids=np.eye(4, 128))
    args = ("--model", model_dir, "--out", tmp_path / "b.safetensors", "--layers")
    result = run("bank", "import-npz", tmp_path / "a.npz", *args, "text=2")
    assert result.exit_code != 0
    assert "vision" in result.stderr
    assert not (tmp_path / "b.safetensors").exists()


# --- fit and probe ---------------------------------------------------------------------------------------


def test_fit(model_dir, tmp_path):
    out = tmp_path / "banks" / "bank.safetensors"
    args = (
        "--model",
        model_dir,
        "--data",
        "easy-vqa",
        "--images",
        8,
        "--k",
        4,
        "--layers",
        "text=1-2,vision=0",
    )
    result = program("fit", *args, "--prompt", "from-data", "--backend", "sklearn", "--out", out, "--json")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    summary = json.loads(result.stdout)
    assert [(e["modality"], e["layer"], e["k"]) for e in summary["entries"]] == [
        ("text", 1, 4),
        ("text", 2, 4),
        ("vision", 0, 4),
    ]
    assert summary["provenance"]["images"] == 8
    assert (summary["provenance"]["data"], summary["provenance"]["split"]) == ("easy-vqa", "train")
    again = ok(
        run(
            "fit",
            *args,
            "--prompt",
            "from-data",
            "--backend",
            "sklearn",
            "--out",
            tmp_path / "again.safetensors",
        )
    )
    assert "inertia" in again.stdout
    banks = [CentroidBank.load(file) for file in (out, tmp_path / "again.safetensors")]
    assert np.array_equal(banks[0].tensors["text", 1], banks[1].tensors["text", 1])


def test_fit_refuses_a_layer_that_the_model_lacks(model_dir, tmp_path):
    out = tmp_path / "bank.safetensors"
    result = run("fit", "--model", model_dir, "--data", "easy-vqa", "--images", 2, "--k", 4, "--out", out)
    assert result.exit_code == 2
    assert "layer 12 is out of range; this model has 6 decoder layers" in result.stderr
    assert not out.exists()


@pytest.mark.slow
def test_probe_replacement(model_dir, bank_file, tmp_path):
    args = ("--model", model_dir, "--bank", bank_file, "--data", "easy-vqa", "--limit", 40)
    result = program("probe", "replacement", *args, "--out", tmp_path / "report", "--json")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
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


# --- models ----------------------------------------------------------------------------------------------


def test_load_model(model_dir):
    assert load_model(str(model_dir)).model.dtype == torch.float32
    assert load_model(str(model_dir), dtype="bfloat16").model.dtype == torch.bfloat16
    assert not load_model(str(model_dir)).model.training


def test_a_half_precision_checkpoint_is_computed_in_single_on_a_cpu(model_dir, tmp_path):
    import shutil

    shutil.copytree(model_dir, tmp_path / "half")
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    config["dtype"] = "float16"
    (tmp_path / "half" / "config.json").write_text(json.dumps(config))
    assert load_model(str(tmp_path / "half"), device="cpu").model.dtype == torch.float32
    assert load_model(str(tmp_path / "half"), device="cpu", dtype="float16").model.dtype == torch.float16


def test_code_from_a_repository_is_not_run_unasked(model_dir, tmp_path):
    import shutil

    folder = tmp_path / "foreign"
    shutil.copytree(model_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "foreign", "auto_map": {"AutoConfig": "code.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('ran')")
    with pytest.raises(TCCDError, match=r"can't load model .*trust-remote-code"):
        load_model(str(folder))


# --- progress --------------------------------------------------------------------------------------------

PROGRESS = (
    "import time; from tccd.cli.console import progress\n"
    "with progress() as report:\n"
    "    report('harvest', 1, 3); time.sleep(0.3); report('harvest', 3, 3)"
)


def test_progress_in_a_pipe_is_silent():
    result = subprocess.run([sys.executable, "-c", PROGRESS], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (result.stdout, result.stderr) == ("", "")


def test_progress_on_a_terminal_goes_to_stderr():
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    command = [sys.executable, "-c", PROGRESS]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, cwd=ROOT, env=env)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # Linux says so when the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait(60) == 0
    assert process.stdout.read() == b""
    process.stdout.close()
    assert b"harvest" in shown
