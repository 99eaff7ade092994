"""No slot of the cache is read for what it does not hold, whatever comes when; each guard is needed for that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tccd.decoding.vllm.host import ROOT
from tests.tccd.decoding.vllm.mutants import MUTANTS
from tests.tccd.decoding.vllm.test_refusals import environment

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def fuzz(checkpoint: object, *options: str) -> dict[str, str]:
    """What the fuzz says of each thing."""
    served = checkpoint("qwen2_5_vl")  # type: ignore[operator]
    done = subprocess.run(
        [sys.executable, "-m", "tests.tccd.decoding.vllm.fuzz", str(served.folder), *options],
        env=environment(TCCD_BANK=str(Path(served.file))),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    lines = [line.removeprefix("FOUND ") for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stderr[-3000:]
    return dict(line.split(" -> ", 1) for line in lines)  # type: ignore[arg-type]


def test_every_slot_holds_what_is_read_from_it(checkpoint):
    pytest.importorskip("vllm")
    assert fuzz(checkpoint, "--seeds", "150") == {"in turn": "None", "ahead": "None"}


def test_without_any_one_guard_it_does_not(checkpoint):
    pytest.importorskip("vllm")
    found = fuzz(checkpoint, "--mutants", "--seeds", "400")
    assert [name for name, said in found.items() if said == "None"] == []
    assert set(found) == set(MUTANTS)
