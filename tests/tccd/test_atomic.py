"""Files that are whole or absent: killed, with a full disk, in a folder that can't be written."""

import errno
import os
import subprocess
import sys

import pytest

from tccd.atomic import check_writable, write_atomic
from tccd.errors import WriteError
from tests.faults import full_disks, kills, small_disks

OLD, NEW = b"old" * 3000, b"new" * 4000


def prepare(folder):
    (folder / "file").write_bytes(OLD)


def work(folder):
    write_atomic(folder / "file", NEW)
    return "written"


def test_killed_at_any_write_the_old_or_the_new_file_is_there_and_the_next_run_tidies_up(tmp_path):
    seen = [(fault, (fault.folder / "file").read_bytes()) for fault in kills(work, tmp_path, prepare)]
    assert [what.at.split()[0] for what, _ in seen] == ["open", "write", "fsync", "replace", "fsync"]
    assert [content == NEW for _, content in seen] == [False] * 4 + [True]
    assert all(content in (OLD, NEW) for _, content in seen)
    for fault, _ in seen:
        work(fault.folder)
        assert [path.name for path in fault.folder.iterdir()] == ["file"], fault


@pytest.mark.parametrize("disks", [full_disks, small_disks])
def test_with_a_full_disk_the_old_file_stays_and_the_error_names_the_new_one(tmp_path, disks):
    for fault in disks(work, tmp_path, prepare):
        assert fault.error.startswith("WriteError: disk is full: could not write "), fault
        assert f"{fault.folder}/file (12,000 bytes); free some room" in fault.error
        assert [path.name for path in fault.folder.iterdir()] == ["file"]
        # The rename takes no room; what may fail after it is bringing the folder to the disk.
        renamed = fault.at.startswith("replace") or fault.at == f"fsync {fault.folder.name}"
        assert (fault.folder / "file").read_bytes() == (NEW if renamed else OLD)


def test_the_temporary_file_of_a_living_run_is_left_alone(tmp_path):
    hold = (
        "import sys, pathlib; from tccd.atomic import write_atomic\n"
        "def check(file):\n"
        "    print('there', flush=True); sys.stdin.readline()\n"
        "write_atomic(pathlib.Path(sys.argv[1]), b'theirs', check)"
    )
    command = [sys.executable, "-c", hold, str(tmp_path / "file")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "there\n"
        write_atomic(tmp_path / "file", b"ours")
        assert len(list(tmp_path.iterdir())) == 2
        other.communicate("\n")
    assert other.returncode == 0
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"theirs")]


def test_a_check_that_fails_leaves_the_old_file(tmp_path):
    prepare(tmp_path)

    def check(file):
        assert file.read_bytes() == NEW
        raise KeyError("unsound")

    with pytest.raises(KeyError, match="unsound"):
        write_atomic(tmp_path / "file", NEW, check)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", OLD)]


def test_paths_that_cannot_be_written_are_told_before_the_work(tmp_path):
    check_writable(tmp_path / "new" / "folder" / "file")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    prepare(tmp_path)
    check_writable(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == OLD
    for path, message in (
        (tmp_path, "is a folder; expected a file name"),
        ("/dev/null", "is no ordinary file; expected a file name"),
        (
            tmp_path / "file" / "below",
            "could not write .*: a part of the path is a file, not a folder; check the path",
        ),
        (f"/proc/{os.getpid()}/new", "could not write /proc/"),
        (tmp_path / ("n" * 300), "the name is too long"),
    ):
        with pytest.raises(WriteError, match=message) as caught:
            check_writable(type(tmp_path)(path))
        assert caught.value.filename == str(path)
    with pytest.raises(WriteError) as caught:
        write_atomic(tmp_path / "nowhere" / "file", b"")
    assert caught.value.errno == errno.ENOENT
    assert "nowhere/file (0 bytes): no such file or folder" in str(caught.value)


def test_a_long_path_is_quoted_by_its_ends(tmp_path):
    path = tmp_path.joinpath(*["deep"] * 100, "file")
    path.parent.mkdir(parents=True)
    for try_it, message in ((check_writable, "folder; expected"), (lambda p: write_atomic(p, b""), "could not")):
        (path / "taken").mkdir(parents=True, exist_ok=True)
        with pytest.raises(WriteError, match=message) as caught:
            try_it(path)
        assert str(tmp_path) in str(caught.value)
        assert "deep/deep/file" in str(caught.value)
        assert len(str(caught.value)) < 320
        assert caught.value.filename == str(path)
