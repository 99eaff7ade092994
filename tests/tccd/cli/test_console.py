"""What a command tells its reader: errors in one line, and progress where there is no terminal."""

import json
import os
import pty
import subprocess
import sys

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tccd.centroids.bank import CentroidBank
from tccd.cli.console import AsJson, News, ReportingGroup
from tccd.decoder import ModelIdentity
from tccd.errors import ConfigError, FitError, WriteError
from tests.tccd.cli.common import ROOT

FULL = "disk is full: could not write"


def noted(error, *notes):
    for note in notes:
        error.add_note(note)
    return error


def told(error, *args):
    app = typer.Typer(cls=ReportingGroup)

    @app.callback()
    def group():
        pass

    @app.command()
    def fail(as_json: AsJson = False):
        raise error

    return CliRunner().invoke(app, ["fail", *args])


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (FitError("rows are few"), 1, "rows are few"),
        (ConfigError("k is 0"), 2, "k is 0"),
        (noted(FitError("rows are few."), "They are kept", "Go on"), 1, "rows are few. They are kept. Go on"),
        (OSError(28, "No space left on device"), 1, f"{FULL} a file, or what this command's output goes to; free"),
        (
            OSError(28, "No space left on device", "a/b"),
            1,
            f"{FULL} a/b; free some room, or write to another disk",
        ),
        (OSError(122, "Disk quota exceeded", "a/b"), 1, f"{FULL} a/b"),
        (WriteError(28, f"{FULL} a/b (9 bytes)", "a/b"), 1, f"{FULL} a/b (9 bytes)"),
        (
            PermissionError(13, "Permission denied", "a/b"),
            1,
            "can't use a/b: permission denied; check the path, or give another",
        ),
        (
            NotADirectoryError(20, "Not a directory", b"a/b"),
            1,
            "can't use a/b: a part of the path is a file, not a folder; check the path",
        ),
        (OSError(36, "File name too long", "a" * 5000), 1, f"can't use {'a' * 99}…{'a' * 100}: the name is too"),
        (OSError(110, "Connection timed out", "a/b"), 1, "can't use a/b: Connection timed out; check the path"),
        (
            OSError(5, "Input/output error"),
            1,
            "reading or writing failed: the disk or the connection to it",
        ),
        (OSError("no file of a model there"), 1, "no file of a model there"),
        (RecursionError("maximum recursion depth"), 1, "an input is nested too deeply to be read"),
    ],
)
def test_an_error_is_one_line_for_the_reader_and_one_for_a_program(error, code, line):
    plain = told(error)
    assert (plain.exit_code, plain.stdout) == (code, "")
    [shown] = plain.stderr.splitlines()
    assert shown.startswith(f"tccd: {line}")
    program = told(error, "--json")
    assert json.loads(program.stdout)["error"] == {
        "type": type(error).__name__,
        "message": shown.removeprefix("tccd: "),
    }


def test_a_bug_keeps_its_traceback():
    assert isinstance(told(ZeroDivisionError("bug")).exception, ZeroDivisionError)


def test_an_interrupted_run_says_what_is_kept():
    result = told(noted(KeyboardInterrupt(), "The hidden states are kept in x"))
    assert result.exit_code != 0
    assert "tccd: The hidden states are kept in x" in result.stderr


@pytest.mark.parametrize("stderr", ["pipe", "full"])
@pytest.mark.parametrize("args", [(), ("--json",)])
def test_output_to_a_full_disk_has_no_traceback(tmp_path, args, stderr):
    model = ModelIdentity("org/model", None, "llava", hidden_size=2, num_layers=2, fingerprint=None)
    CentroidBank.from_arrays(model, {("text", 1): [[1.0, 2.0]]}, data="x" * 9000).save(tmp_path / "bank")
    command = [sys.executable, "-m", "tccd", "bank", "show", str(tmp_path / "bank"), *args]
    with open("/dev/full", "w") as full:
        errors = full if stderr == "full" else subprocess.PIPE
        done = subprocess.run(command, stdout=full, stderr=errors, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 1
    if stderr == "pipe":
        [line] = done.stderr.splitlines()
        assert line.startswith(f"tccd: {FULL}")


# Progress


def test_a_line_says_how_far_and_how_long():
    now = 0.0
    news = News(clock=lambda: now)
    assert news.line() == ""
    news("harvest", 0, 2000)
    now = 40.0
    assert news.line() == "harvest 0 of 2000, for 40 s"
    news("harvest", 80, 2000)
    now = 120.0
    news("harvest", 120, 2000)
    assert news.line() == "harvest 120 of 2000, 31 min left"
    now = 180.0  # nothing new: what is left grows
    assert news.line() == "harvest 120 of 2000, 47 min left"
    news("text.12", 0, 1)
    now = 480.0
    assert news.line() == "text.12 0 of 1, for 5 min"
    news("answer", 10, None)
    assert news.line() == "answer 10, for 0 s"


def test_what_was_there_at_the_start_counts_for_nothing():
    now = 0.0
    news = News(clock=lambda: now)
    news("harvest", 1900, 2000)
    now = 60.0
    news("harvest", 1910, 2000)
    assert news.line() == "harvest 1910 of 2000, 9 min left"


@given(st.integers(1, 10**6), st.integers(0, 10**6), st.floats(0, 10**7))
def test_any_news_is_one_line(total, done, spent):
    now = 0.0
    news = News(clock=lambda: now)
    news("harvest", 0, total)
    now = spent
    news("harvest", min(done, total), total)
    assert news.line().startswith(f"harvest {min(done, total)} of {total}, ")
    assert news.line().isprintable()


LINES = """
import time
from tccd.cli.console import progress
with progress(every=0.2) as report:
    report("harvest", 1, 4)
    time.sleep(0.5)
    report("harvest", 2, 4)
    time.sleep(0.3)
time.sleep(0.5)
"""


def test_lines_come_by_the_clock_also_within_a_long_step_and_end_with_the_work():
    env = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "TTY_COMPATIBLE")}
    command = [sys.executable, "-c", LINES]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
    lines = done.stderr.splitlines()
    assert 2 <= len(lines) <= 4
    assert lines[0] == "harvest 1 of 4, for 0 s"
    assert lines[-1].startswith("harvest 2 of 4, ")
    assert lines[-1].endswith(" s left")


PROGRESS = (
    "import time; from tccd.cli.console import progress\n"
    "with progress() as report:\n"
    "    report('harvest', 1, 3); time.sleep(0.3); report('harvest', 3, 3)"
)


def test_progress_in_a_pipe_is_silent():
    result = subprocess.run([sys.executable, "-c", PROGRESS], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (result.stdout, result.stderr) == ("", "")


def test_progress_on_a_terminal_goes_to_stderr():
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    command = [sys.executable, "-c", PROGRESS]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, cwd=ROOT, env=env)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # Linux says so when the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait(60) == 0
    assert process.stdout.read() == b""
    process.stdout.close()
    assert b"harvest" in shown
