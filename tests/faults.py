"""Faults at every write: a process killed at each of them, and a disk that fills up at each of them.

    def work(folder):                       # writes into `folder` only; what it returns is pickled
        CentroidBank.load(folder / "old").with_provenance(images=9).save(folder / "bank")

    def prepare(folder):                    # what is there before; each run begins with it
        shutil.copy(bank_file, folder / "old")

    for fault in kills(work, tmp_path, prepare):         # one run a write: killed at write 1, 2, 3, ...
        assert whole(fault.folder / "bank"), fault
    for fault in full_disks(work, tmp_path, prepare):    # from write 1, 2, 3, ... on the disk is full
        assert fault.error and whole(fault.folder / "bank"), fault
    for fault in small_disks(work, tmp_path, prepare):   # a real file system of 0, 4, 8, ... KiB of free room
        ...

Each run is a fork of the test's process, so it costs no import; its folder is a fresh one under `tmp_path`. The
first two end with the first run that meets no fault, which is not yielded; `small_disks` likewise. All three fail
where no run met a fault, so that a test can't pass by watching nothing.

Writes are what Python does to files below the folder: `open` for writing, `write`, `fsync`, `replace`, `unlink`,
`mkdir` and their like. What C code writes to a path by itself is seen by `small_disks` alone.

A run has one thread and must not need others: set `OMP_NUM_THREADS=1`, as the suite does.
"""

from __future__ import annotations

import builtins
import ctypes
import errno
import functools
import io
import os
import pickle
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Seconds after which a run counts as stuck.
PATIENCE = 120

Work = Callable[[Path], Any]


@dataclass(frozen=True)
class Fault:
    """One run that met a fault.

    Attributes:
        number: of the write it was met at, from 1; for `small_disks` the free room in bytes.
        at: that write, such as "replace report.json"; the size for `small_disks`.
        folder: what the run left.
        error: "OSError: [Errno 28] ..." where the work raised it; None where it was killed or returned.
        result: what the work returned, where it did.
        where: the traceback of `error`.
    """

    number: int
    at: str
    folder: Path
    error: str | None = None
    result: Any = None
    where: str = ""


def kills(work: Work, room: Path, prepare: Work | None = None) -> Iterator[Fault]:
    """Run `work` again and again, killed (SIGKILL) at its first write, at its second, and so on.

    A killed `write` has written half; a killed `open` has made its file; of the others nothing was done.
    """
    return _each(work, room, prepare, "kill", _kill)


def full_disks(work: Work, room: Path, prepare: Work | None = None) -> Iterator[Fault]:
    """Run `work` again and again; from its first write on, from its second, and so on, the disk is full.

    A full disk refuses to make files and folders and to write (half is written); it renames and removes.
    """
    return _each(work, room, prepare, "full", _refuse)


def small_disks(
    work: Work,
    room: Path,
    prepare: Work | None = None,
    step: int = 4096,
    most: int = 2**20,
    done: Callable[[Any], bool] = lambda result: True,
) -> Iterator[Fault]:
    """Run `work` on real file systems (tmpfs) with ever more free room, until it fits.

    Where no file system can be mounted (neither root nor user namespaces) this is `full_disks`.

    Args:
        work: as for the others.
        room: where the folders are made.
        prepare: as for the others; what it writes is not part of the free room.
        step: free room grows by so many bytes.
        most: the work has to fit into so many.
        done: whether a result is that of a whole run, for work that returns its failures, as a command does.
    """
    if not _can_mount(room):
        yield from full_disks(work, room, prepare)
        return
    met = 0
    for free in range(step, most + 1, step):
        folder = _fresh(room, "small", free, prepare)
        ended = _forked(functools.partial(_on_small_disk, work, folder, free))
        if not ended["fault"] and done(ended["result"]):
            shutil.rmtree(folder)
            break
        met += 1
        yield Fault(free, f"{free} bytes free", folder, ended["error"], ended["result"], ended["where"])
    else:
        raise AssertionError(f"the work does not fit into {most} bytes")
    assert met, "the work fitted into the smallest disk; take a smaller step"


def _each(work: Work, room: Path, prepare: Work | None, kind: str, act: Callable[..., None]) -> Iterator[Fault]:
    number = 0
    while True:
        number += 1
        folder = _fresh(room, kind, number, prepare)
        note = room / f"{kind}-{number}.note"
        ended = _forked(functools.partial(_watched, work, folder, number, act, note))
        if not note.exists():
            if ended["error"]:
                raise AssertionError(f"the work failed without a fault:\n{ended['where']}")
            shutil.rmtree(folder)
            break
        yield Fault(number, note.read_text(), folder, ended["error"], ended["result"], ended["where"])
        note.unlink()
    assert number > 1, f"the work wrote nothing below {room}"


def _fresh(room: Path, kind: str, number: int, prepare: Work | None) -> Path:
    folder = room / f"{kind}-{number}"
    folder.mkdir(parents=True)
    if prepare is not None:
        prepare(folder)
    return folder


# One run


def _forked(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `run` returns in a fork of this process; errors that are told; nothing where it was killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        try:
            ended = run()
        except BaseException as error:  # the child must not go on as the test
            ended = {"fault": True, "error": f"{type(error).__name__}: {error}", "result": None}
            ended["where"] = traceback.format_exc()
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(ended, pipe)
        os._exit(0)
    os.close(writing)
    stuck = time.monotonic() + PATIENCE
    with os.fdopen(reading, "rb") as pipe:
        os.set_blocking(reading, False)
        told = b""
        while True:
            part = pipe.read()
            if part == b"":
                break
            told += part or b""
            if time.monotonic() > stuck:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                raise AssertionError(f"a run was stuck for {PATIENCE} s")
            time.sleep(0.002)
    os.waitpid(child, 0)
    return pickle.loads(told) if told else {"fault": True, "error": None, "result": None, "where": ""}


def _watched(work: Work, folder: Path, number: int, act: Callable[..., None], note: Path) -> dict[str, Any]:
    _Watch(folder, number, act, note).install()
    return {"fault": False, "error": None, "result": work(folder), "where": ""}


def _kill(_what: str, begin: Callable[[], object], _takes_room: bool) -> None:
    begin()
    os.kill(os.getpid(), signal.SIGKILL)


def _refuse(what: str, begin: Callable[[], object], takes_room: bool) -> None:
    if takes_room:
        if what == "write":
            begin()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class _Watch:
    """Counts the writes below a folder; acts at one of them, and at all that follow."""

    def __init__(self, folder: Path, number: int, act: Callable[..., None], note: Path):
        self._folder, self._left, self._act, self._note = os.path.realpath(folder), number, act, note
        self._open = io.open

    def below(self, path: Any) -> bool:
        try:
            found = os.path.abspath(os.fsdecode(path))
        except TypeError:  # a file descriptor
            return False
        place = os.path.join(os.path.realpath(os.path.dirname(found)), os.path.basename(found))
        return f"{place}{os.sep}".startswith(f"{self._folder}{os.sep}")

    def step(self, what: str, path: Any, begin: Callable[[], object], takes_room: bool) -> None:
        self._left -= 1
        if self._left == 0:
            with self._open(self._note, "w") as file:
                file.write(f"{what} {os.path.basename(os.fsdecode(path))}")
        if self._left <= 0:
            self._act(what, begin, takes_room)

    def install(self) -> None:
        builtins.open = io.open = self._opening
        for name, takes_room in {
            "replace": False, "rename": False, "unlink": False, "remove": False, "rmdir": False,
            "truncate": False, "mkdir": True, "symlink": True, "link": True,
        }.items():  # fmt: skip
            setattr(os, name, self._renaming(name, getattr(os, name), takes_room))
        os.fsync = self._syncing(os.fsync)
        os.open = self._os_opening(os.open)

    def _renaming(self, name: str, real: Callable[..., Any], takes_room: bool) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **options: Any) -> Any:
            if self.below(path):
                self.step(name, path, lambda: None, takes_room)
            return real(path, *args, **options)

        return call

    def _syncing(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def call(descriptor: int) -> None:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            if self.below(path):
                self.step("fsync", path, lambda: None, True)
            real(descriptor)

        return call

    def _os_opening(self, real: Callable[..., int]) -> Callable[..., int]:
        def call(path: Any, flags: int, *args: Any, **options: Any) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and self.below(path):
                self.step("open", path, lambda: None, not os.path.exists(path))
            return real(path, flags, *args, **options)

        return call

    def _opening(self, file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if not set(mode) & set("wax+") or not self.below(file):
            return self._open(file, mode, *args, **options)
        self.step("open", file, lambda: self._open(file, mode, *args, **options), not os.path.exists(file))
        return _File(self._open(file, mode, *args, **options), self, file)


class _File:
    """An open file whose writes are counted."""

    def __init__(self, file: Any, watch: _Watch, path: Any):
        self._file, self._watch, self._path = file, watch, path

    def write(self, data: Any) -> Any:
        def half() -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        self._watch.step("write", self._path, half, True)
        return self._file.write(data)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


# A small file system


def _on_small_disk(work: Work, folder: Path, free: int) -> dict[str, Any]:
    """Work on a disk of `free` bytes, mounted over `folder` in this process alone; what is there after stays."""
    before = folder.parent / f"{folder.name}.before"
    after = folder.parent / f"{folder.name}.after"
    shutil.copytree(folder, before)
    _mount(folder, 2**26)
    shutil.copytree(before, folder, dirs_exist_ok=True)
    shutil.rmtree(before)
    used = os.statvfs(folder)
    _mount(folder, (used.f_blocks - used.f_bfree) * used.f_frsize + free, again=True)
    ended = {"fault": False, "error": None, "result": None, "where": ""}
    try:
        ended["result"] = work(folder)
    except BaseException as error:
        ended |= {"fault": True, "error": f"{type(error).__name__}: {error}", "where": traceback.format_exc()}
    shutil.copytree(folder, after)
    _libc("umount2", str(folder).encode(), 2)
    shutil.rmtree(folder)
    after.rename(folder)
    return ended


_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x00020000
_PRIVATE, _RECURSIVE, _REMOUNT = 1 << 18, 1 << 14, 1 << 5


def _mount(folder: Path, size: int, again: bool = False) -> None:
    if not again:
        user, group = os.getuid(), os.getgid()
        _libc("unshare", _NEW_MOUNTS if not user else _NEW_USER | _NEW_MOUNTS)
        if user:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        _libc("mount", None, b"/", None, _PRIVATE | _RECURSIVE, None)
    flags = _REMOUNT if again else 0
    _libc("mount", b"tmpfs", str(folder).encode(), b"tmpfs", flags, f"size={size}".encode())


def _libc(name: str, *args: Any) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*args):
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


@functools.cache
def _can_mount(room: Path) -> bool:
    folder = room / "mount-trial"
    folder.mkdir(parents=True)

    def run() -> dict[str, Any]:
        _mount(folder, 2**16)
        return {"error": None}

    return _forked(run)["error"] is None
