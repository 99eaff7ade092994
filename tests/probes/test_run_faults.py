"""A run killed at any of its writes, or on a disk that fills up at any, goes on to what it would have found."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from eval.zoo import load, path
from probes.asking.journal import FOLDER, discard
from probes.replacement import probe as replacement
from probes.replacement import run
from probes.replacement.grid import Grid
from tccd.__main__ import app
from tccd.data import load_samples
from tests import faults
from tests.probes.test_resume import make_bank

GRID = Grid(layers={"text": (1,), "vision": (1,)}, controls=True)


@pytest.fixture(scope="module")
def zoo():
    return load("llava-competing")


@pytest.fixture(scope="module")
def bank(zoo):
    return make_bank(zoo[0])


@pytest.fixture(scope="module")
def samples():
    return list(load_samples("easy-vqa", split="test", limit=4, seed=1))


@pytest.mark.slow
def test_killed_at_any_write_it_is_resumed_to_the_same_result(zoo, bank, samples, tmp_path):
    def ask(folder, **options):
        found = run(*zoo, samples, bank, GRID, name="m", batch_size=2, journal=folder / "j", **options)
        discard(folder / "j")
        return found | {"created": ""}

    whole = ask(tmp_path)
    kept = set()
    for fault in faults.kills(ask, tmp_path):
        kept.add(len(list(fault.folder.glob("j/chunk-*.json"))))
        assert ask(fault.folder, resume=True) == whole, fault
        assert [file.name for file in fault.folder.iterdir()] == [], fault
    assert kept == {0, 1, 2}


@pytest.mark.slow
def test_on_a_small_disk_the_command_says_so_and_goes_on_where_there_is_room(bank, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # torch's threads may not survive the fork
    monkeypatch.setattr(replacement, "ROOM_A_PAGE", 0)  # as if others filled the disk after the run began
    file = tmp_path / "bank.safetensors"
    bank.save(file)

    def command(folder, *more):
        args = ["probe", "replacement", "--model", str(path("llava-competing")), "--bank", str(file)]
        args += ["--data", "easy-vqa", "--limit", "12", "--layers", "1", "--batch-size", "4"]
        ended = CliRunner().invoke(app, [*args, "--out", str(folder), *more])
        trace = ended.exception is not None and not isinstance(ended.exception, SystemExit)
        return ended.exit_code, ended.output, trace

    resumed = 0
    for fault in faults.small_disks(command, tmp_path, step=2**16, done=lambda result: result[0] == 0):
        code, told, trace = fault.result
        assert code in (1, 2), fault
        assert not trace, fault
        assert "make room" in told or "disk is full" in told, fault
        assert not (fault.folder / "report.json").exists(), fault
        left = any((fault.folder / FOLDER).glob("chunk-*"))
        resumed += left
        assert command(fault.folder, *(["--resume"] if left else []))[0] == 0, fault
        assert json.loads((fault.folder / "report.json").read_text())["schema"], fault
        shutil.rmtree(fault.folder)
    assert resumed
