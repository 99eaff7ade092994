"""The `tccd` command, run as a user and as a program would."""

import os
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from tccd.__main__ import app

ROOT = Path(__file__).parents[3]
ESCAPE = "\x1b"


def run(*args, stdin=""):
    """The command in this process."""
    return CliRunner().invoke(app, [str(arg) for arg in args], input=stdin, prog_name="tccd")


def program(*args, stdin=""):
    """The command as a program of its own, in a pipe."""
    command = [sys.executable, "-m", "tccd", *map(str, args)]
    # What a terminal or a CI system may set would color a pipe's output too.
    env = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "GITHUB_ACTIONS", "TTY_COMPATIBLE")}
    return subprocess.run(command, input=stdin, capture_output=True, text=True, cwd=ROOT, env=env, timeout=300)


def ok(result):
    """The result of a run that has to succeed."""
    assert result.exit_code == 0, (result.stdout, result.stderr, result.exception)
    return result
