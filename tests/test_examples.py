"""The examples run as they stand, and say what they promise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from eval.zoo import load, path
from tccd import CentroidBank
from tccd.decoder import find_decoder

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(p.stem for p in (ROOT / "examples").glob("*.py"))


def example(name: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"examples.{name}", *arguments],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_each_is_short():
    assert EXAMPLES == ["contrast", "probe", "vllm_offline"]
    for name in EXAMPLES:
        assert len((ROOT / "examples" / f"{name}.py").read_text().splitlines()) < 40, name


def test_contrast_answers_more_questions_than_plain_decoding():
    right = {name: int(n) for name, n in re.findall(r"^(\w+): (\d+) of 200", example("contrast"), re.MULTILINE)}
    assert right["contrasted"] > right["plain"] + 10


def test_probe_prints_costs_and_writes_a_report():
    said = example("probe")
    assert re.search(r"^text erased: cost 0\.\d+ \(0\.\d+ to 0\.\d+\)$", said, re.MULTILINE)
    assert "report.html" in said


@pytest.mark.vllm
@pytest.mark.slow
def test_vllm_answers_plainly_and_contrasted(tmp_path):
    pytest.importorskip("vllm")
    import torch

    model, _ = load("llava-competing")
    width = find_decoder(model).hidden_size
    bank = tmp_path / "bank.safetensors"
    CentroidBank.from_arrays(model, {("text", 2): torch.randn(4, width).numpy()}).save(bank)
    said = example(
        "vllm_offline",
        str(path("llava-competing")),
        TCCD_BANK=str(bank),
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
    )
    answers = dict(re.findall(r"^(plain|contrasted): (\S.*)$", said, re.MULTILINE))
    assert set(answers) == {"plain", "contrasted"}
