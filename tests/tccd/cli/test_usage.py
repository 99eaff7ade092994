"""What `tccd` says of itself, and how it refuses wrong usage."""

import inspect
import subprocess
import sys

import pytest

from tccd.centroids.fit import fit_bank
from tccd.centroids.kmeans import BACKENDS
from tccd.cli.fit import Backend, K, fit
from tccd.cli.generate import Gate, Tokens, generate
from tccd.decoding.config import TOKENS, Rule
from tccd.decoding.gates import GATES
from tests.tccd.cli.common import ROOT, ok, run

COMMANDS = (
    "",
    "fit",
    "generate",
    "probe",
    "probe replacement",
    "probe advise",
    "probe compare",
    "bank",
    "bank show",
    "bank verify",
    "bank import-npz",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command):
    result = ok(run(*command.split(), "--help"))
    _, found, after = result.stdout.partition("Examples:")
    assert found
    assert f"tccd {command}".strip() in after


def test_help_and_version_need_no_torch():
    code = (
        "import sys; from typer.testing import CliRunner; from tccd.__main__ import app\n"
        "for args in (['--help'], ['fit', '--help'], ['probe', 'replacement', '--help'], ['--version']):\n"
        "    assert CliRunner().invoke(app, args).exit_code == 0\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert result.stdout.strip() == "[]", result.stderr


def test_version():
    assert ok(run("--version")).stdout.startswith("tccd ")


def test_completion_is_offered():
    assert "--install-completion" in run("--help").stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fitt"], "No such command"),
        (["fit"], "Missing option"),
        (["fit", "--model", "m", "--data", "d", "--out", "o", "--k", "0"], "--k"),
        (["fit", "--model", "m", "--data", "d", "--out", "o", "--backend", "cuml"], "faiss-gpu"),
        (
            ["fit", "--model", "m", "--data", "d", "--out", "o", "--layers", "audio=3"],
            "unknown modality 'audio'",
        ),
        (["fit", "--model", "m", "--data", "d", "--out", "o", "--column", "x"], "expected FIELD=NAME"),
        (["fit", "--model", "m", "--data", "d", "--out", "o", "--prompt", " "], "--prompt is empty"),
        (["fit", "--model", "m", "--data", "d", "--out", "/"], "is a folder"),
        (["generate", "--model", "m", "--bank", "b", "--prompt", "p"], "expected --image FILE"),
        (["generate", "--model", "m", "--prompt", "p", "--reference", "blank"], "called 'blank'; expected one of"),
        (
            ["generate", "--model", "m", "--bank", "b", "--prompt", "p", "--alpha-interp", "2"],
            "alpha_interp is 2.0",
        ),
        (["generate", "--model", "m", "--bank", "b", "--prompt", "p", "--prompt", "-"], "no other --prompt"),
        (["generate", "--model", "m", "--bank", "b", "--prompt", "p", "--gate", "x"], "margin"),
        (["bank", "import-npz", "f", "--model", "m", "--out", "o", "--layers", "all"], "expected one layer"),
        (
            [
                "probe",
                "replacement",
                "--model",
                "m",
                "--bank",
                "b",
                "--data",
                "d",
                "--out",
                "o",
                "--limit",
                "0",
            ],
            "--limit",
        ),
    ],
)
def test_wrong_usage_is_exit_code_2(args, message):
    result = run(*args)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert result.stdout == ""


def test_defaults_are_those_of_the_library():
    names = ("alpha_cd", "beta", "gate", "gate_threshold", "gate_ramp", "tokens")
    defaults = {name: inspect.signature(generate).parameters[name].default for name in names}
    assert Rule(**defaults) == Rule()
    fitted = inspect.signature(fit_bank).parameters
    assert inspect.signature(fit).parameters["layers"].default is fitted["layers"].default is None
    assert inspect.signature(fit).parameters["vision_mean"].default is fitted["vision_mean"].default is True
    assert fitted["k"].default == K
    assert tuple(Gate) == tuple(GATES)
    assert tuple(Tokens) == TOKENS
    assert tuple(Backend) == BACKENDS
