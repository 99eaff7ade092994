"""`verify` passes a sound engine, and fails one that was broken on purpose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tccd.verify.answering import Ask, Reply
from tccd.verify.checking import Checked, Compared
from tccd.verify.judge import Noise, compare, exactness, isolation
from tests.tccd.decoding.vllm.host import ROOT
from tests.tccd.decoding.vllm.models import NAMES, save
from tests.tccd.verify import broken
from tests.tiny import END, IMAGE, START

SOUND = ["-m", "tccd", "verify"]
IMAGES = "".join(NAMES[i] for i in (START, IMAGE, END))
#: Every kind of request, two images in one among them.
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    + IMAGES
    + "{% else %} {{ part['text'] }} {% endif %}{% endfor %}{% endfor %}w7"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pytest.importorskip("vllm")
    from transformers import AutoProcessor

    folder = tmp_path_factory.mktemp("verify") / "model"
    save("qwen2_5_vl", folder)
    processor = AutoProcessor.from_pretrained(folder)
    processor.chat_template = TEMPLATE
    processor.save_pretrained(folder)
    return folder


def run(tmp_path: Path, command: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TCCD_", "VLLM_"))}
    environment = kept | {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(tmp_path),
        "VLLM_NO_USAGE_STATS": "1",
    }
    return subprocess.run(
        [sys.executable, *command, "--tokens", "8", "--rounds", "1", *options],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
    )


def marks(report: str) -> dict[str, str]:
    """What the report says of each thing, by its name."""
    lines = [line for line in report.splitlines() if line.startswith(("PASS ", "FAIL "))]
    return {line[5:].split(": off")[0].split(": TCCD off")[0]: line[:4] for line in lines}


PARTS = (
    "exactness",
    "isolation: alone, and in the batch",
    "isolation: plain beside TCCD, and beside plain",
    "isolation: prefix cache, kept and emptied",
)


@pytest.mark.vllm
@pytest.mark.slow
class TestEngines:
    def test_a_sound_one_passes(self, model, tmp_path):
        done = run(tmp_path, SOUND, "--model", str(model), "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        found = json.loads(done.stdout)
        assert found["passed"] is True
        judged = {v["name"]: v for v in found["verdicts"] if v["passed"] is not None}
        assert {name: verdict["passed"] for name, verdict in judged.items()} == dict.fromkeys(PARTS, True)
        assert "told apart in 4 of 4 requests" in json.dumps(judged)
        assert found["engine"]["runner"] == "V1"
        assert {phase: set(cell) for phase, cell in found["cost"]["all"].items()} == {
            "prefill": {"seconds", "ratio"},
            "decode": {"seconds", "ratio"},
        }

    @pytest.mark.parametrize(
        ("kind", "options", "failing"),
        [
            (broken.other_centroids, ("--dtype", "bfloat16"), {PARTS[0]}),
            (broken.neighbours_and_cache, (), set(PARTS)),
        ],
        ids=lambda value: getattr(value, "__name__", None),
    )
    def test_a_broken_one_fails(self, model, tmp_path, kind, options, failing):
        done = run(tmp_path, [broken.__file__, kind.__name__, "verify"], "--model", str(model), *options)
        assert done.returncode == 1, done.stdout + done.stderr
        assert {part for part, mark in marks(done.stdout).items() if mark == "FAIL"} == failing
        assert done.stdout.splitlines()[-1] == "FAIL"

    def test_a_model_that_is_not_there_is_one_line(self, tmp_path):
        done = run(tmp_path, SOUND, "--model", str(tmp_path / "none"))
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.strip().splitlines()[-1].startswith("tccd: can't load model")


ON = Ask("", [], (), {"tccd_alpha_cd": 1.0})
HALF = Noise(typical=0.01, largest=0.1, tight=False)
FP32 = Noise(typical=1e-6, largest=1e-5, tight=True)


def checked(typical: float, broken: float = 1.0, largest: float = 0.2, equal: bool = True) -> Checked:
    kinds = {"no contrast": broken, "other centroids": broken}
    return Checked([Compared(largest, typical, equal, True, kinds)] * 3, True, 1.0)


PLAIN = [Compared(0.1, 0.01, True, False)]


class TestRule:
    def test_half_precision_scales_with_the_contrast(self):
        assert exactness([ON], [checked(0.044)], HALF, PLAIN).passed  # 1.5 (1 + 2) 0.01
        assert not exactness([ON], [checked(0.046)], HALF, PLAIN).passed

    def test_half_precision_shows_nothing_where_noise_hides_a_broken_stream(self):
        verdict = exactness([ON], [checked(0.04, broken=0.08)], HALF, PLAIN)
        assert not verdict.passed
        assert "noise would hide" in verdict.details[-1]

    def test_few_requests_near_a_tie_are_spared_in_half_precision(self):
        near = Checked(checked(0.5).steps, True, 1e-4)
        assert exactness([ON] * 4, [checked(0.01)] * 3 + [near], HALF, PLAIN).passed
        assert not exactness([ON] * 4, [checked(0.01)] * 2 + [near] * 2, HALF, PLAIN).passed
        assert not exactness([ON] * 4, [checked(0.01)] * 3 + [checked(0.5)], HALF, PLAIN).passed

    def test_fp32_takes_the_largest_difference_and_every_token(self):
        assert exactness([ON], [checked(1e-6, largest=9e-4)], FP32, PLAIN).passed
        assert not exactness([ON], [checked(1e-6, largest=2e-3)], FP32, PLAIN).passed
        assert not exactness([ON], [checked(1e-6, largest=1e-6, equal=False)], FP32, PLAIN).passed

    def test_nothing_judged_is_nothing_passed(self):
        assert not exactness([ON], [Checked([], False, 0.0)], FP32, PLAIN).passed
        assert not exactness([ON], [Checked(checked(0.0).steps, True, 1e-9)], FP32, PLAIN).passed
        assert not isolation("", [], FP32).passed

    def test_replies_are_compared_up_to_the_first_other_token(self):
        one = Reply([], [1, 2, 3], [{1: -0.1}, {2: -0.2}, {3: -0.3}], 0)
        other = Reply([], [1, 5, 3], [{1: -0.1}, {2: -0.7}, {3: -9.0}], 0)
        steps = compare(one, other)
        assert [s.equal for s in steps] == [True, False]
        assert [s.largest for s in steps] == pytest.approx([0.0, 0.5])
