"""One bad input to the `tccd` command, and what became of it."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Seconds after which a command counts as hung.
PATIENCE = 120
#: Bytes that a command may map beyond what is mapped already.
MEMORY = 6 * 2**30
#: The longest message that one sentence of advice needs.
LONGEST = 1200


@dataclass(frozen=True)
class Case:
    """One call of the command.

    Attributes:
        group: what kind of input is bad.
        name: what is bad about it.
        args: the command line.
        says: a regular expression that the message has to match: it is refused for its own reason.
        stdin: what the command reads.
        good: it has to succeed; a control, which shows that the bad ones fail for what is bad about them.
        around: what has to be the case meanwhile, such as a lock that is held.
    """

    group: str
    name: str
    args: Sequence[Any]
    says: str = ""
    stdin: bytes = b""
    good: bool = False
    around: Callable[[], AbstractContextManager] = nullcontext


@dataclass(frozen=True)
class Outcome:
    """What the command did.

    Attributes:
        case: what was asked.
        code: exit code; -signal where it was killed; None where it hung.
        stdout, stderr: what it wrote.
        seconds: how long it took.
    """

    case: Case
    code: int | None
    stdout: str
    stderr: str
    seconds: float

    @property
    def verdict(self) -> str:
        """`refused` or `accepted`, or what is wrong with how the command ended."""
        if self.code is None:
            return "hung"
        if self.code < 0:
            return f"killed by signal {-self.code}"
        if "Traceback (most recent call last)" in self.stderr:
            return "traceback"
        if self.code == 0:
            return "accepted"
        if self.code not in (1, 2):
            return f"exit code {self.code}"
        return self._message_fault() or "refused"

    @property
    def right(self) -> bool:
        """Whether the command did what it has to."""
        return self.verdict == ("accepted" if self.case.good else "refused")

    @property
    def message(self) -> str:
        """What it said, on one line."""
        told = [line for line in self.stderr.splitlines() if line.startswith("tccd: ")]
        return told[-1] if told else re.sub(r"[\s│╭╮╰╯─]+", " ", self.stderr).strip()

    def _message_fault(self) -> str | None:
        told = [line for line in self.stderr.splitlines() if line.startswith("tccd: ")]
        usage = self.code == 2 and "─ Error ─" in self.stderr
        if len(told) + usage != 1:
            return f"{len(told)} messages"
        if len(self.message) > LONGEST:
            return f"a message of {len(self.message)} characters"
        if "[Errno" in self.message:
            return "a number for a reason"
        if not re.search(self.case.says, self.message, re.IGNORECASE):
            return "another reason"
        if told and "--json" in self.case.args:
            try:
                said = json.loads(self.stdout.splitlines()[-1])["error"]["message"]
            except (ValueError, KeyError, TypeError, IndexError):
                return "no JSON error"
            if f"tccd: {said}" != told[0]:
                return "another message as JSON"
        return None


def run(case: Case) -> Outcome:
    """Run the real entry point in a fork of this process, which has imported everything once."""
    started = time.monotonic()
    with case.around(), tempfile.TemporaryDirectory(prefix="tccd-bad-") as place:
        folder = Path(place)
        code = _wait(start(case, folder), started + PATIENCE)
        out, err = ((folder / name).read_bytes().decode(errors="replace") for name in ("stdout", "stderr"))
    return Outcome(case, code, out, err, time.monotonic() - started)


def start(case: Case, folder: Path) -> int:
    """Start the command in a fork that writes `stdout` and `stderr` in a folder; returns its process number."""
    (folder / "stdin").write_bytes(case.stdin)
    (folder / "temporary").mkdir()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _become(case, folder)
    return child


def _wait(child: int, until: float) -> int | None:
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.003)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _become(case: Case, folder: Path) -> None:
    """The child: nothing returns from here."""
    code = 70
    try:
        for number, name, flags in (
            (0, "stdin", os.O_RDONLY),
            (1, "stdout", os.O_WRONLY | os.O_CREAT),
            (2, "stderr", os.O_WRONLY | os.O_CREAT),
        ):
            os.dup2(os.open(folder / name, flags, 0o600), number)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
        tempfile.tempdir = str(folder / "temporary")
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
        sys.argv = ["tccd", *(str(arg) for arg in case.args)]
        code = _main()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _main() -> int:
    from tccd.__main__ import main

    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
