"""`tccd fit` and `tccd bank` as a user runs them: refused early, kept late, and saying what they did."""

import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tccd.centroids.bank import CentroidBank
from tccd.data import load_samples
from tccd.loading import load_model
from tccd.locking import locked
from tests.faults import kills, small_disks
from tests.tccd.cli.common import ROOT, ok, program, run

MODEL = ROOT / "eval" / "zoo" / "llava-grounded"


def fit(out, *args, model=MODEL, data="easy-vqa", **options):
    options = {"layers": "text=1", "k": 4, "images": 4, "prompt": "from-data", **options}
    given = {name: value for name, value in options.items() if value is not None}
    named = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)]
    return run("fit", "--model", model, "--data", data, "--out", out, *named, *args)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    out = tmp_path_factory.mktemp("bank") / "bank.safetensors"
    return out, json.loads(ok(fit(out, "--json")).stdout)


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """Ten files that show two pictures, one of them in another format."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(10):
        Image.new("RGB", (32, 32), "red" if i % 2 else "blue").save(folder / f"{i}.{'bmp' if i > 7 else 'png'}")
    return folder


def test_a_fit_is_on_train_pictures_and_keeps_their_digests(fitted):
    out, summary = fitted
    bank = CentroidBank.load(out)
    assert (bank.provenance["split"], bank.provenance["copies"]) == ("train", 0)
    train, test = (
        {s.picture_digest for s in load_samples("easy-vqa", split=s, limit=400)} for s in ("train", "test")
    )
    assert len(bank.pictures) == 4
    taken = load_samples("easy-vqa", purpose="fit", images=4, per_image=1, seed=42)
    assert bank.pictures == {sample.picture_digest for sample in taken}
    assert bank.shared_pictures(test) == 0
    assert bank.shared_pictures(train | bank.pictures) == 4
    assert summary["provenance"]["pictures"] == 4
    [images] = summary["warnings"]
    assert images.startswith("its vision mean is of 4 images; of fewer than 100")


def test_every_number_that_is_printed_is_explained_in_the_help(fitted):
    out, _ = fitted
    text = " ".join(ok(run("bank", "show", "--help")).stdout.replace("│", " ").split())
    shown = json.loads(ok(run("bank", "show", out, "--json")).stdout)
    names = {*shown["entries"][0], *shown["model"], *shown["provenance"], "vision_mean", *shown["vision_mean"]}
    names -= {"modality", "layer"}
    names -= {"model_id", "model_type"}  # are no numbers and say what they are
    words = {"sampled_out_rows": "sampled out", "backend_version": "backend version"}
    for name in names:
        assert words.get(name, name.replace("_", " ")) in text, name
    assert "tccd bank show --help; seconds" in " ".join(ok(run("fit", "--help")).stdout.replace("│", " ").split())


def test_copies_empty_clusters_and_few_rows_are_told_everywhere(copies, tmp_path):
    out = tmp_path / "bank.safetensors"
    options = {"data": copies, "images": 10, "k": 40, "layers": "text=1", "prompt": "what is it?", "batch_size": 1}
    summary = json.loads(ok(fit(out, "--json", **options)).stdout)
    few, images, copied = summary["warnings"]
    assert "rows differ, fewer than its 40 centroids, so centroids repeat. Fit on more images" in few
    assert copied.startswith("8 of its pictures are copies of others under another name")
    assert (summary["provenance"]["images"], summary["provenance"]["pictures"]) == (10, 2)
    assert summary["entries"][0]["distinct_rows"] < 40
    assert json.loads(ok(run("bank", "show", out, "--json")).stdout)["warnings"] == [few, images, copied]
    shown = ok(run("bank", "show", out)).stdout
    assert f"warning: {few}" in shown
    assert f"warning: {copied}" in shown
    assert "distinct" in shown


def test_a_vision_mean_alone_and_none(tmp_path):
    out = tmp_path / "bank.safetensors"
    alone = json.loads(ok(fit(out, "--json", layers=None, k=None)).stdout)
    assert alone["entries"] == []
    assert alone["vision_mean"] == {"layers": 6, "images": 4, "tokens": 4 * 64, "dropped_states": 0}
    bank = CentroidBank.load(out)
    assert (bank.vision_mean.shape, bank.tensors) == ((6, 128), {})
    told = " ".join(ok(run("bank", "show", out)).stdout.split())
    assert "vision mean 6 layers, 4 images, 256 tokens" in told
    assert "modality" not in told
    assert "is sound and fits" in ok(run("bank", "verify", out, "--model", MODEL)).stdout
    ok(fit(tmp_path / "both"))
    assert torch.equal(CentroidBank.load(tmp_path / "both").vision_mean, bank.vision_mean)
    without = json.loads(ok(fit(out, "--no-vision-mean", "--json")).stdout)
    assert (without["vision_mean"], without["warnings"]) == (None, [])
    assert CentroidBank.load(out).vision_mean is None


# Refused before the model is loaded


def unloadable(tmp_path):
    """A model that takes its name's checks, and would be told by its first file."""
    (tmp_path / "no-model").mkdir(exist_ok=True)
    return tmp_path / "no-model"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "faiss-gpu"}, "faiss-gpu was asked for, but FAISS"),
        (
            {"k": 10**6},
            "k is 1000000, above the 262144 rows that one k-means fits (max_rows); take a smaller k, or",
        ),
        ({"k": 10**3000}, f"k is {10**199!s}, above the 262144 rows"),
        ({"layers": None}, "--k is of centroids, which need --layers, as in --layers text=12,vision=16"),
        (
            {"layers": None, "k": None, "backend": "sklearn"},
            "--backend is of centroids, which need --layers, as in",
        ),
        ({"k": 65}, "text: 4 samples give at most 64 rows (16 each), fewer than k = 65; give more images"),
        ({"model": "./modle"}, "can't load model './modle': no such folder"),
        ({"data": "./dta"}, "dta"),
    ],
)
def test_what_can_be_refused_without_the_model_is(tmp_path, options, message):
    result = fit(tmp_path / "bank.safetensors", **{"model": unloadable(tmp_path), **options})
    assert result.exit_code in (1, 2)
    assert message in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["no-model"]


def test_nothing_to_fit_is_refused_without_the_model(tmp_path):
    options = {"model": unloadable(tmp_path), "layers": None, "k": None}
    result = fit(tmp_path / "bank", "--no-vision-mean", **options)
    assert result.exit_code == 2
    assert "there is nothing to fit: expected --layers, as in --layers text=12,vision=16, or no" in result.stderr


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("/proc/bank.safetensors", "could not write /proc/bank.safetensors"),
        ("/dev/null", "/dev/null is no ordinary file; expected a file name"),
        (
            "/dev/null/bank",
            "could not write /dev/null/bank: a part of the path is a file, not a folder; check the",
        ),
        ("x" * 300, f"{'x' * 99}…{'x' * 100}: the name is too long; check the path"),
        (ROOT, "is a folder; expected the bank's file name"),
    ],
)
def test_an_output_that_cannot_be_written_is_told_first(tmp_path, out, message):
    result = fit(out, model=unloadable(tmp_path))
    assert result.exit_code in (1, 2)
    assert message in result.stderr


def test_a_folder_in_use_is_told_first(tmp_path):
    with locked(tmp_path / "work", "another fit"):
        result = fit(tmp_path / "bank", model=unloadable(tmp_path), work_dir=tmp_path / "work")
    assert result.exit_code == 1
    assert "is in use by another fit (process" in result.stderr
    (tmp_path / "file").write_text("")
    result = fit(tmp_path / "bank", model=unloadable(tmp_path), work_dir=tmp_path / "file")
    assert result.exit_code == 1
    assert (
        "/file: a part of the path is a file, not a folder; check the path, or write to another folder"
        in result.stderr
    )


def test_a_checkpoint_that_is_not_whole_is_not_fitted(tmp_path):
    shutil.copytree(MODEL, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    name = next(n for n in weights if "layers.2" in n)
    del weights[name]
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    result = fit(tmp_path / "bank.safetensors", model=tmp_path / "model")
    assert result.exit_code == 1
    assert "its checkpoint lacks 1 of 116 weights" in result.stderr
    assert not (tmp_path / "bank.safetensors").exists()


# Kept


def test_a_failure_after_the_harvest_keeps_it_and_the_message_says_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    out = tmp_path / "bank.safetensors"
    # 4 questions of easy-VQA have fewer than 16 tokens each; how many, only the forward tells
    result = fit(out, "--json", k=60)
    assert result.exit_code == 1
    [kept] = (tmp_path / "temporary").iterdir()
    told = json.loads(result.stdout)["error"]["message"]
    assert told.endswith(
        f"The hidden states are kept in {kept}; go on with --work-dir {kept} and the same options"
    )
    assert result.stderr.strip() == f"tccd: {told}"
    ok(fit(out, work_dir=kept))
    assert kept.exists()
    ok(fit(out))
    assert list((tmp_path / "temporary").iterdir()) == [kept]


def test_changed_pictures_are_found_on_going_on(copies, tmp_path):
    shutil.copytree(copies, tmp_path / "pictures")
    options = {"data": tmp_path / "pictures", "images": 10, "work_dir": tmp_path / "work", "prompt": "what is it?"}
    ok(fit(tmp_path / "bank", **options))
    Image.new("RGB", (32, 32), "green").save(tmp_path / "pictures" / "3.png")
    result = fit(tmp_path / "bank", **options)
    assert result.exit_code == 1
    assert (
        "was harvested from another picture of sample '3.png': what the image shows has changed" in result.stderr
    )
    assert "go on with" not in result.stderr  # it says itself what to do
    # the same picture in another format is no other picture
    content = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(content, "TIFF")
    (tmp_path / "pictures" / "3.png").write_bytes(content.getvalue())
    ok(fit(tmp_path / "bank", **options))


@pytest.mark.parametrize("faults", [kills, small_disks])
def test_a_fit_that_met_a_fault_leaves_the_old_bank_or_the_new_one_and_no_traceback(
    fitted, copies, tmp_path, faults
):
    old, _ = fitted
    model = load_model(str(MODEL))  # once, for all runs

    def work(folder):
        sys.modules["tccd.loading"].load_model = lambda *args: model
        options = {"data": copies, "prompt": "what is it?", "images": 2, "k": 3}
        result = fit(folder / "bank.safetensors", work_dir=folder / "work", **options)
        return result.exit_code, result.stderr

    def prepare(folder):
        shutil.copy(old, folder / "bank.safetensors")

    k = set()
    for fault in faults(work, tmp_path, prepare, **({} if faults is kills else {"done": lambda r: r[0] == 0})):
        bank = CentroidBank.load(fault.folder / "bank.safetensors")
        k.add(bank.entries["text", 1].k)
        assert fault.error is None
        if fault.result is not None:
            code, told = fault.result
            assert code == 1
            [line] = told.splitlines()
            assert line.startswith("tccd: "), line
            assert "disk is full" in line or "of free room" in line
    assert 4 in k <= {3, 4}


# A rewritten copy


@pytest.fixture(scope="module")
def coarse(tmp_path_factory):
    """The model with its layers' weights rounded, as a coarse number format would."""
    folder = tmp_path_factory.mktemp("coarse") / "llava-coarse"
    shutil.copytree(MODEL, folder)
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if "language_model" in name and "layers" in name and weights[name].ndim == 2:
            weights[name] = (weights[name] * 64).round() / 64
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_rewritten_copy_is_taken_only_by_the_name_of_its_base(fitted, coarse, tmp_path):
    bank, _ = fitted
    refused = run("bank", "verify", bank, "--model", coarse)
    assert refused.exit_code == 1
    assert "say --fitted-on llava-grounded" in refused.stderr
    other = run("bank", "verify", bank, "--model", coarse, "--fitted-on", "llava")
    assert other.exit_code == 1
    assert "was fitted on 'llava-grounded', but --fitted-on (fitted_on) says 'llava'" in other.stderr
    taken = ok(run("bank", "verify", bank, "--model", coarse, "--fitted-on", "llava-grounded", "--json"))
    assert json.loads(taken.stdout)["fitted_on"] == "llava-grounded"
    same = ok(run("bank", "verify", bank, "--model", MODEL, "--fitted-on", "llava-grounded", "--json"))
    assert json.loads(same.stdout)["fitted_on"] is None

    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    ask = ("--image", tmp_path / "red.png", "--prompt", "is there a circle?", "--max-new-tokens", 1, "--json")
    assert run("generate", "--model", coarse, "--bank", bank, *ask).exit_code == 1
    answered = ok(run("generate", "--model", coarse, "--bank", bank, *ask, "--fitted-on", "llava-grounded"))
    assert "the bank was fitted on llava-grounded, of which" in answered.stderr
    assert json.loads(answered.stdout)["contrasted"]


def test_equal_weights_under_another_name_need_no_asking(fitted, tmp_path):
    bank, _ = fitted
    shutil.copytree(MODEL, tmp_path / "renamed")
    assert "is sound and fits" in ok(run("bank", "verify", bank, "--model", tmp_path / "renamed")).stdout


def test_the_probe_reports_what_was_taken_by_name(fitted, coarse, tmp_path):
    bank, _ = fitted
    args = ("--model", coarse, "--bank", bank, "--data", "easy-vqa", "--limit", 8, "--out", tmp_path / "report")
    refused = run("probe", "replacement", *args)
    assert refused.exit_code == 1
    assert "say --fitted-on llava-grounded" in refused.stderr
    ok(run("probe", "replacement", *args, "--fitted-on", "llava-grounded"))
    assert json.loads((tmp_path / "report" / "report.json").read_text())["config"]["fitted_on"] == "llava-grounded"


def test_a_program_in_a_pipe_is_told_of_a_full_disk_in_one_line(tmp_path):
    env = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "TTY_COMPATIBLE")}
    np.savez(tmp_path / "a.npz", text_centroids=torch.eye(4, 128).numpy())
    command = [sys.executable, "-m", "tccd", "bank", "import-npz", str(tmp_path / "a.npz"), "--model", str(MODEL)]
    command += ["--layers", "text=1", "--out", "/dev/full"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=120)
    assert done.returncode == 1
    assert done.stderr == "tccd: /dev/full is no ordinary file; expected a file name\n"


# The whole command


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
    result = fit(out, model=model_dir, layers="text=12,vision=16", images=2)
    assert result.exit_code == 2
    assert "layer 12 is out of range; this model has 6 decoder layers" in result.stderr
    assert not out.exists()
