"""The fault tool meets every write, and lets nothing else pass as one."""

import os

import pytest

from tests.faults import full_disks, kills, small_disks


def work(folder):
    with open(folder / "a.tmp", "wb") as file:
        file.write(b"x" * 9000)
        os.fsync(file.fileno())
    os.replace(folder / "a.tmp", folder / "a")
    (folder / "old").unlink()
    return "done"


def prepare(folder):
    (folder / "old").write_text("o")


WRITES = ["open a.tmp", "write a.tmp", "fsync a.tmp", "replace a.tmp", "unlink old"]


def test_a_process_is_killed_at_each_write(tmp_path):
    seen = []
    for fault in kills(work, tmp_path, prepare):
        assert (fault.error, fault.result) == (None, None)
        left = {path.name: path.stat().st_size for path in fault.folder.iterdir()}
        seen.append((fault.at, left))
    assert [at for at, _ in seen] == WRITES
    sizes = [left.get("a.tmp") for _, left in seen]
    assert sizes == [0, 4500, 9000, 9000, None]
    assert [("a" in left, "old" in left) for _, left in seen] == [(False, True)] * 4 + [(True, True)]


def test_the_disk_is_full_from_each_write_on(tmp_path):
    seen = [(fault.at, fault.error, fault.result) for fault in full_disks(work, tmp_path, prepare)]
    full = "OSError: [Errno 28] No space left on device"
    assert seen[:3] == [(at, full, None) for at in WRITES[:3]]
    # renaming and removing take no room
    assert seen[3:] == [(at, None, "done") for at in WRITES[3:]]


def test_small_disks_grow_until_the_work_fits(tmp_path):
    seen = list(small_disks(work, tmp_path, prepare))
    assert seen
    assert all("No space left on device" in fault.error for fault in seen)
    assert all((fault.folder / "old").read_text() == "o" for fault in seen)


def test_work_that_writes_nothing_or_fails_by_itself_is_no_test(tmp_path):
    for kind in (kills, full_disks):
        with pytest.raises(AssertionError, match="wrote nothing"):
            list(kind(lambda folder: None, tmp_path / kind.__name__ / "a", lambda f: None))
        with pytest.raises(AssertionError, match="failed without a fault"):
            list(kind(lambda folder: 1 / 0, tmp_path / kind.__name__ / "b"))
