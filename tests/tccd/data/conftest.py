"""Sources that several files test with."""

import json

import pytest

from tccd.data import load_samples
from tests.tccd.data.made import picture


@pytest.fixture
def folder(tmp_path):
    for name in ("b.PNG", "a.jpg", "sub/c.webp", "a2.jpg", ".hidden.png", ".cache/x.png"):
        picture(tmp_path / "images" / name)
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return tmp_path / "images"


@pytest.fixture
def manifest(tmp_path):
    picture(tmp_path / "images" / "a.png")

    def write(*rows, raw=None):
        lines = raw if raw is not None else [json.dumps(row) for row in rows]
        file = tmp_path / "questions.jsonl"
        file.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
        return file

    return write


@pytest.fixture(scope="session")
def test_split():
    return load_samples("easy-vqa")


@pytest.fixture(scope="session")
def train_split():
    return load_samples("easy-vqa", split="train")
