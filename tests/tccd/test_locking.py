"""One folder, one run: the second is told who holds it, and a dead holder holds nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tccd.errors import BusyError, WriteError
from tccd.locking import LOCK_FILE, locked
from tests.faults import full_disks, small_disks

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


def hold(folder):
    if not (folder / "filler").exists():  # the smallest disk has room for one file
        (folder / "filler").write_bytes(bytes(4096))
    with locked(folder / "new", "tccd fit"):
        return "held"


def prepare(folder):
    (folder / "filler").touch()


@pytest.mark.parametrize("disks", [full_disks, small_disks])
def test_a_lock_that_a_full_disk_has_no_room_for_says_so_and_holds_nothing(tmp_path, disks):
    for fault in disks(hold, tmp_path, prepare if disks is full_disks else None):
        if fault.at == f"unlink {LOCK_FILE}.holder":  # takes no room
            assert fault.result == "held"
            continue
        assert fault.error.startswith(f"WriteError: disk is full: could not write {fault.folder}/new"), fault
        assert hold(fault.folder) == "held"
        assert [path.name for path in (fault.folder / "new").iterdir()] == [LOCK_FILE]


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        (
            "/sys",
            r"could not write /sys/\.tccd\.lock: (permission denied|the disk is read-only); allow it, or write",
        ),
        ("/proc", r"could not write /proc/\.tccd\.lock: no such file or folder; check the path, or write"),
        ("/dev/null/new", "could not write /dev/null/new: a part of the path is a file, not a folder; check the"),
        ("/dev/null", "could not write /dev/null: a part of the path is a file, not a folder; check the path"),
        ("x" * 300, f"could not write {'x' * 99}…{'x' * 100}: the name is too long; check the path"),
    ],
)
def test_a_folder_that_cannot_be_written_is_told_as_such(folder, message):
    with pytest.raises(WriteError, match=message), locked(Path(folder), "tccd fit"):
        pass


def test_an_error_of_the_run_is_its_own(tmp_path):
    with pytest.raises(PermissionError, match="theirs"), locked(tmp_path, "tccd fit"):
        raise PermissionError(13, "theirs")


def test_a_folder_that_is_gone_at_the_end_is_no_error(tmp_path):
    with locked(tmp_path / "gone", "tccd fit"):
        shutil.rmtree(tmp_path / "gone")
    assert list(tmp_path.iterdir()) == []
