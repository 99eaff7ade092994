"""One folder, one run: the second is told who holds it, and a dead holder holds nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tccd.errors import BusyError
from tccd.locking import LOCK_FILE, locked

HOLD = "import sys, time; from pathlib import Path; from tccd.locking import locked\n"
HOLD += "with locked(Path(sys.argv[1]), 'tccd fit'):\n    print('held', flush=True); time.sleep(600)\n"


def test_a_second_run_in_the_folder_is_told_who_holds_it(tmp_path):
    told = pytest.raises(BusyError, match=rf"tccd fit \(process {os.getpid()} on ")
    with locked(tmp_path, "tccd fit"), told, locked(tmp_path, "tccd probe"):
        pass


def test_the_folder_is_free_when_the_run_is_over_or_failed(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path, "tccd fit"):
        raise ZeroDivisionError
    with locked(tmp_path, "tccd fit"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]


def test_another_process_holds_it_until_it_is_killed(tmp_path):
    held = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert held.stdout is not None
    assert held.stdout.readline() == "held\n"
    with pytest.raises(BusyError, match=f"process {held.pid}"), locked(tmp_path, "tccd probe"):
        pass
    held.send_signal(signal.SIGKILL)
    held.wait()
    with locked(tmp_path, "tccd probe"):
        pass
