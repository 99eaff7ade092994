"""Bad inputs to the real command: a sample of the census in `tests/bad_inputs`, and drawn ones."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tccd import CentroidBank
from tccd.__main__ import app
from tests.probes.probed import probed
from tests.tccd.decoding.common import text_bank
from tests.tiny import cached_tiny

ROOT = Path(__file__).parents[1]
#: Any JSON value, numbers beyond doubles and half surrogate pairs included.
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
DRAWN = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def refused_or_done(*args: Any, stdin: bytes = b"") -> int:
    """Run the command; it ends well or says why not in one line. Returns its exit code."""
    result = CliRunner().invoke(app, [str(arg) for arg in args], input=stdin, prog_name="tccd")
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code in (0, 1, 2)
    if result.exit_code:
        told = [line for line in result.stderr.splitlines() if line.startswith("tccd: ")]
        assert len(told) == 1, result.stderr
        assert len(told[0]) < 1200
    return result.exit_code


@pytest.mark.slow
def test_a_sample_of_the_census_is_refused():
    command = [sys.executable, "-m", "tests.bad_inputs", "--every", "12"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=500)
    assert result.returncode == 0, result.stdout + result.stderr
    assert int(re.search(r"(\d+) bad inputs in all", result.stdout)[1]) >= 300


@pytest.fixture(scope="module")
def bank(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("bank") / "bank.safetensors"
    text_bank(cached_tiny("qwen2_5_vl"), 1).save(file)
    return file


@pytest.fixture(scope="module")
def no_model(tmp_path_factory) -> Path:
    """An empty folder, which is looked into last."""
    return tmp_path_factory.mktemp("no-model")


@given(data=st.data())
@DRAWN
def test_no_changed_byte_of_a_bank_is_accepted(bank, tmp_path, data):
    whole = bank.read_bytes()
    # Half of the changes are in the header, which is a small part of the file.
    end = data.draw(st.sampled_from([8 + int.from_bytes(whole[:8], "little"), len(whole)]))
    at = data.draw(st.integers(0, end - 1))
    new = data.draw(st.binary(max_size=8))
    changed = whole[:at] + new + whole[at + data.draw(st.integers(0, 8)) :]
    file = tmp_path / "changed.safetensors"
    file.write_bytes(changed)
    assert (refused_or_done("bank", "show", file) == 0) == (changed == whole)


@given(content=st.binary(max_size=200))
@DRAWN
def test_bytes_are_no_bank_no_report_and_no_prompts(bank, no_model, tmp_path, content):
    file = tmp_path / "report.json"
    file.write_bytes(content)
    assert refused_or_done("bank", "show", file)
    assert refused_or_done("probe", "advise", file)
    assert refused_or_done("generate", "--model", no_model, "--bank", bank, "--prompt", "-", stdin=content)


@given(lines=st.lists(VALUES | st.fixed_dictionaries({"prompt": VALUES, "image": VALUES}), min_size=1, max_size=2))
@DRAWN
def test_prompts_of_any_json_are_refused_without_a_model(bank, no_model, lines):
    stdin = "\n".join(map(json.dumps, lines)).encode()
    assert refused_or_done("generate", "--model", no_model, "--bank", bank, "--prompt", "-", stdin=stdin)


@given(
    line=st.fixed_dictionaries({"prompt": VALUES}, optional={"answer": VALUES, "choices": VALUES, "id": VALUES})
)
@DRAWN
def test_questions_of_any_json_are_refused_without_a_model(bank, no_model, tmp_path, line):
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps(line | {"image": "questions.jsonl"}))
    out = tmp_path / "out"
    assert refused_or_done(
        "probe", "replacement", "--model", no_model, "--bank", bank, "--data", file, "--out", out
    )
    assert not (out / "report.json").exists()


@given(data=st.data())
@DRAWN
def test_a_report_with_any_value_anywhere_is_read_or_refused(tmp_path, data):
    report = probed(n=12)
    at: Any = report
    while True:
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if not (isinstance(at[key], dict | list) and at[key]) or data.draw(st.integers(0, 3)) == 0:
            break
        at = at[key]
    at[key] = data.draw(VALUES)
    file = tmp_path / "report.json"
    file.write_text(json.dumps(report))
    refused_or_done("probe", "advise", file, "--folds", "3")


def test_the_sound_ones_pass(bank, tmp_path):
    assert refused_or_done("bank", "show", bank) == 0
    assert CentroidBank.load(bank).layers("text") == (1,)
    file = tmp_path / "report.json"
    file.write_text(json.dumps(probed(n=12)))
    assert refused_or_done("probe", "advise", file, "--folds", "3") == 0
