"""Failures of a command: exit code 1, or 2 for wrong options, and one line."""

import json

import numpy as np

from tccd.centroids.bank import CentroidBank
from tests.tccd.cli.common import program, run


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
    assert result.stderr == f"tccd: can't use {args[-1]}: permission denied; check the path, or give another\n"


def test_no_such_model(tmp_path, bank_file, picture):
    args = ("--bank", bank_file, "--layer", 1, "--image", picture, "--prompt", "?")
    result = run("generate", "--model", tmp_path, *args)
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
