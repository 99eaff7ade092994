"""`tccd probe replacement` fails before the work where it can, and after it without losing any."""

from __future__ import annotations

import builtins
import errno
import json
import sys
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from eval.zoo import load, path
from probes.asking.forward import encode_samples
from probes.asking.journal import FOLDER
from probes.replacement import probe as replacement
from probes.report import publish
from tccd import loading
from tccd.__main__ import app
from tccd.data import load_samples
from tccd.errors import ConfigError, DataError
from tccd.inputs import check_samples
from tests.probes.test_resume import make_bank


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    file = tmp_path_factory.mktemp("bank") / "bank.safetensors"
    make_bank(load("llava-competing")[0]).save(file)
    return file


@pytest.fixture
def probe(bank, tmp_path):
    def run(*more, out="out"):
        args = ["probe", "replacement", "--model", str(path("llava-competing")), "--bank", str(bank)]
        args += ["--data", "easy-vqa", "--limit", "12", "--layers", "1", "--batch-size", "4"]
        return CliRunner().invoke(app, [*args, "--out", str(tmp_path / out), *more])

    return run


@pytest.fixture
def loads(monkeypatch):
    """Which models were loaded: none, where a refusal is early."""
    found = []
    original = loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda *args: found.append(args[0]) or original(*args))
    return found


@pytest.mark.parametrize("module", ["jinja2", "matplotlib", "scipy", "statsmodels"])
def test_a_missing_package_of_the_page_is_told_before_the_run(probe, loads, monkeypatch, tmp_path, module):
    monkeypatch.setitem(sys.modules, module, None)
    result = probe()
    assert result.exit_code == 1
    assert f"{module} is not installed" in result.stderr
    assert "tccd[report]" in result.stderr
    assert loads == []
    assert not (tmp_path / "out").exists()


def test_a_place_that_can_t_be_written_is_told_before_the_run(probe, loads, tmp_path):
    (tmp_path / "file").write_text("")
    result = probe(out="file/out")
    assert result.exit_code == 1
    assert result.stderr.startswith("tccd: could not write ")
    assert loads == []


@pytest.mark.parametrize(
    ("prompt", "told"),
    [("what is <image> this?", "the prompt holds '<image>'"), ("why " * 5000, "but the model reads at most")],
    ids=["image-token", "too-long"],
)
def test_a_prompt_that_can_t_be_asked_is_refused_before_the_first_forward(
    probe, monkeypatch, tmp_path, prompt, told
):
    monkeypatch.setattr(replacement, "answer", None)
    result = probe("--prompt", prompt)
    assert result.exit_code == 1
    assert result.stderr.startswith("tccd: sample ")
    assert told in result.stderr
    assert not (tmp_path / "out" / FOLDER).exists()


def test_a_prompt_that_is_too_long_with_its_picture_is_named():
    model, processor = load("llava-competing")
    limit = model.config.text_config.max_position_embeddings
    sample = next(iter(load_samples("easy-vqa", limit=1)))
    words = len(processor.tokenizer("why " * 100)["input_ids"]) / 100
    long = replace(sample, prompt="why " * int((limit - 30) / words))
    with pytest.raises(DataError, match=rf"sample {sample.id}: .* tokens with its picture"):
        check_samples(model, processor, [sample, long])
    with pytest.raises(DataError, match=rf"sample {sample.id}: .* tokens with its picture"):
        encode_samples(model, processor, [long])


def test_a_prompt_without_room_for_its_answer_is_refused_before_the_first_forward(bank):
    """The answer is a text of 2 tokens, so up to 6 are generated."""
    from tccd.centroids.bank import CentroidBank

    model, processor = load("llava-competing")
    first = next(iter(load_samples("easy-vqa", limit=1)))
    long = replace(first, id="long", prompt="what " * 187, answer="circle circle")
    forwards = []
    hook = model.register_forward_pre_hook(lambda *_: forwards.append(1))
    try:
        with pytest.raises(ConfigError, match=r"sample long: the prompt has 25\d tokens with its picture and the"):
            replacement.run(model, processor, [first, long], CentroidBank.load(bank))
    finally:
        hook.remove()
    assert not forwards


def test_a_report_that_could_not_be_written_costs_no_answer(probe, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(publish.os, "rename", full)
        result = probe()
    assert result.exit_code == 1
    assert "disk is full: could not write " in result.stderr
    assert f"kept in {tmp_path / 'out' / FOLDER}; go on from it with --resume" in result.stderr
    assert "Traceback" not in result.output
    assert len(list((tmp_path / "out" / FOLDER).glob("chunk-*"))) == 3
    assert not (tmp_path / "out" / "report.json").exists()

    from probes.asking import arms

    monkeypatch.setattr(arms, "run_streams", None)  # no forward is needed any more
    result = probe("--resume")
    assert result.exit_code == 0, result.output
    assert (
        len(json.loads((tmp_path / "out" / "report.json").read_text())["questions"]["llava-competing"]["id"]) == 12
    )
    assert not (tmp_path / "out" / FOLDER).exists()


def test_a_disk_that_fills_up_while_asking_costs_no_answer(probe, monkeypatch, tmp_path):
    original = builtins.open

    def full(file, mode="r", *args, **options):
        if "chunk-00000008" in str(file) and "w" in mode:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(file, mode, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", full)
        result = probe()
    assert result.exit_code == 1
    assert "disk is full: could not write " in result.stderr
    assert "chunk-00000008.json" in result.stderr
    assert "go on from it with --resume" in result.stderr
    assert len(list((tmp_path / "out" / FOLDER).glob("chunk-*"))) == 2
    assert probe("--resume").exit_code == 0


def test_the_test_split_is_asked_about(probe, tmp_path):
    assert probe().exit_code == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["config"]["split"] == "test"
