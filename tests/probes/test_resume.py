"""A run that was cut short goes on where it was, and only with the settings that it began with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from eval.zoo import load, path
from probes.asking.journal import FOLDER, Journal
from probes.replacement import run
from probes.replacement.grid import Grid
from tccd import CentroidBank
from tccd.__main__ import app
from tccd.data import load_samples
from tccd.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def zoo():
    return load("llava-competing")


def make_bank(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    width = model.config.text_config.hidden_size
    keys = [(modality, layer) for modality in ("text", "vision") for layer in (1, 2)]
    return CentroidBank.from_arrays(model, {key: torch.randn(8, width, generator=generator) for key in keys})


class Cut(Exception):
    """What cuts a run short in this process."""


@pytest.fixture(scope="module")
def bank(zoo):
    return make_bank(zoo[0])


@pytest.fixture(scope="module")
def samples():
    return list(load_samples("easy-vqa", split="test", limit=24, seed=1))


def cut_short(zoo, samples, bank, folder, after=2, **grid):
    done = []

    def progress(n, total):
        done.append(n)
        if len(done) == after:
            raise Cut

    with pytest.raises(Cut):
        run(*zoo, samples, bank, Grid(**grid), batch_size=6, journal=folder, progress=progress)


def test_a_run_cut_short_is_resumed(zoo, samples, bank, tmp_path, monkeypatch):
    grid = {"alphas": (0.0, 0.5), "controls": True, "alpha_cd": (1.0,)}
    whole = run(*zoo, samples, bank, Grid(**grid), name="m", batch_size=6)
    cut_short(zoo, samples, bank, tmp_path / "j", **grid)
    kept = sorted(file.name for file in (tmp_path / "j").glob("[!.]*"))
    assert kept == ["chunk-00000000.json", "chunk-00000006.json", "doses.json", "settings.json"]
    asked = []
    from probes.asking import arms
    from probes.replacement import probe as replacement

    original = arms.run_streams
    for module in (arms, replacement):
        monkeypatch.setattr(module, "run_streams", lambda *args: asked.append(1) or original(*args))
    resumed = run(*zoo, samples, bank, Grid(**grid), name="m", batch_size=6, journal=tmp_path / "j", resume=True)
    assert len(asked) == 2 * 2  # two chunks of four were left, each asked with and without its image
    assert resumed | {"created": ""} == whole | {"created": ""}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"grid": Grid(alphas=(0.3,))}, "grid was"),
        ({"batch_size": 8}, "batch_size was 6, is 8"),
        ({"samples": slice(0, 20)}, "data was"),
        ({"bank": 1}, "banks was"),
        ({"model": "llava-grounded"}, "model was"),
    ],
)
def test_other_settings_are_refused(zoo, samples, bank, tmp_path, changed, words):
    cut_short(zoo, samples, bank, tmp_path / "j")
    model, processor = load(changed["model"]) if "model" in changed else zoo
    other = make_bank(model, changed.get("bank", 0))
    with pytest.raises(ConfigError, match=f"other settings: .*{words}") as caught:
        run(
            model,
            processor,
            samples[changed.get("samples", slice(None))],
            other,
            changed.get("grid", Grid()),
            batch_size=changed.get("batch_size", 6),
            journal=tmp_path / "j",
            resume=True,
        )
    assert "delete it to start anew" in str(caught.value)


def test_an_unfinished_run_is_not_lost_by_accident(zoo, samples, bank, tmp_path):
    cut_short(zoo, samples, bank, tmp_path / "j")
    with pytest.raises(ConfigError, match="holds an unfinished run; go on with it by --resume"):
        run(*zoo, samples, bank, batch_size=6, journal=tmp_path / "j")


def test_a_journal_without_its_settings(tmp_path):
    Journal(tmp_path / "j", {"a": 1}).chunk(0, [], lambda: {"pictures": []})
    for damage in ("[]", "", "[" * 100_000):
        (tmp_path / "j" / "settings.json").write_text(damage)
        with pytest.raises(DataError, match=r"settings\.json is damaged .*; delete .*j to start anew"):
            Journal(tmp_path / "j", {"a": 1}, resume=True)
    (tmp_path / "j" / "settings.json").unlink()
    with pytest.raises(DataError, match=r"chunks without settings\.json"):
        Journal(tmp_path / "j", {"a": 1}, resume=True)


def test_a_run_that_never_finished_a_chunk_leaves_nothing_to_resume(tmp_path):
    with pytest.raises(Cut):
        Journal(tmp_path / "j", {"a": 1}).chunk(0, [], lambda: (_ for _ in ()).throw(Cut))
    chunk = Journal(tmp_path / "j", {"a": 2}).chunk(0, [], lambda: {"x": 1, "pictures": []})
    assert chunk == {"x": 1, "pictures": []}


def test_an_unreadable_image_is_named_and_the_run_goes_on_when_it_is_mended(zoo, bank, tmp_path):
    lines = []
    for i, color in enumerate(["red", "blue", "green", "teal"]):
        Image.new("RGB", (64, 64), color).save(tmp_path / f"{i}.png")
        lines.append({"image": f"{i}.png", "prompt": "what color is the shape?", "answer": color, "id": f"q{i}"})
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    whole = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(whole[:60])
    model, file = str(path("llava-competing")), str(tmp_path / "bank.safetensors")
    bank.save(file)
    args = ["probe", "replacement", "--model", model, "--bank", file, "--data", str(tmp_path / "data.jsonl")]
    args += ["--batch-size", "2", "--layers", "1", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 1
    assert "can't read image" in result.stderr
    assert "3.png" in result.stderr
    (tmp_path / "3.png").write_bytes(whole)
    assert CliRunner().invoke(app, args).exit_code == 2
    assert CliRunner().invoke(app, [*args, "--resume"]).exit_code == 0
    assert (tmp_path / "out" / "report.json").is_file()
    assert not (tmp_path / "out" / FOLDER).exists()


@pytest.mark.slow
def test_a_killed_run_resumed_equals_one_that_was_not(bank, tmp_path):
    file = tmp_path / "bank.safetensors"
    bank.save(file)
    args = ["probe", "replacement", "--model", str(path("llava-competing")), "--bank", str(file)]
    args += ["--data", "easy-vqa", "--limit", "40", "--batch-size", "2", "--alpha-cd", "1"]
    args += ["--controls", "--layers", "text=2,vision=2"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tccd", *args, "--out", str(killed)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list((killed / FOLDER).glob("chunk-*.json"))) < 3 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    # A second run into the folder, of other questions, is refused and touches nothing of the first.
    other = CliRunner().invoke(app, [*args, "--limit", "20", "--out", str(killed), "--resume"])
    assert other.exit_code == 1
    assert f"{killed} is in use by tccd probe replacement (process {process.pid} on " in other.stderr
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = len(list((killed / FOLDER).glob("chunk-*.json")))
    assert 3 <= done < 20
    assert not (killed / "report.json").exists()
    for out, more in ((killed, ["--resume"]), (whole, [])):
        result = CliRunner().invoke(app, [*args, *more, "--out", str(out)])
        assert result.exit_code == 0, result.output
    reports = [json.loads((out / "report.json").read_text()) for out in (killed, whole)]
    for report in reports:
        del report["created"]
    assert reports[0] == reports[1]
    assert not (killed / FOLDER).exists()
