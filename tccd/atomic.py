"""Files that are whole or absent, whenever the process dies and whenever the disk is full."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import socket
from collections.abc import Callable
from pathlib import Path

from tccd.errors import WriteError

# Files of this process that are being written; anything else under its own number is what a killed one left.
_WRITING: set[Path] = set()
_COUNT = itertools.count()
_REASONS = {
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EEXIST: "a part of the path is a file, not a folder",  # as said by mkdir
    errno.ENOENT: "no such file or folder",
    errno.EISDIR: "it is a folder, not a file",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EIO: "the disk or the connection to it failed",
}


def write_atomic(path: Path, data: bytes, check: Callable[[Path], None] | None = None) -> None:
    """Write `data` to `path` so that a reader, or a crash at any time, sees the old file or the new one.

    What killed runs on this machine left of the same file is removed first.

    Args:
        path: the file; its folder is there.
        data: its content.
        check: called with the temporary file once it is on disk, before it takes the file's place; what it
            raises leaves the old file.

    Raises:
        WriteError: the disk is full or the folder can't be written; names the file. The old file is
            still there, or the new one where only its folder could not be brought to the disk.
    """
    temporary = _temporary(path)
    _WRITING.add(temporary)
    try:
        _remove_leftovers(path)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        _remove(temporary)
        raise error if isinstance(error, WriteError) else unwritable(path, error, len(data)) from error
    except BaseException:
        _remove(temporary)
        raise
    finally:
        _WRITING.discard(temporary)


def check_writable(path: Path) -> None:
    """Make sure that a file can be written, by trying it: now, rather than after hours of work.

    Its folder is made where need be; a file that is there is left as it is.

    Raises:
        WriteError: the path is a folder or a device, or the folder can't be made or written.
    """
    temporary = _temporary(path)
    try:
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "no ordinary file"
            raise WriteError(errno.EINVAL, f"{shown(path)} is {kind}; expected a file name", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb"):
            pass
    except OSError as error:
        raise error if isinstance(error, WriteError) else unwritable(path, error) from error
    finally:
        _remove(temporary)


def unwritable(path: Path, error: OSError, size: int | None = None) -> WriteError:
    """The error that tells why a file could not be written.

    Args:
        path: the file.
        error: what the operating system said.
        size: of the file in bytes, where it is known.
    """
    told = f"could not write {shown(path)}" + ("" if size is None else f" ({size:,} bytes)")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        text = f"disk is full: {told}; free some room, or write to another disk"
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        text = f"{told}: {reason(error)}; allow it, or write to another folder"
    else:
        text = f"{told}: {reason(error)}; check the path, or write to another folder"
    return WriteError(error.errno or errno.EIO, text, str(path))


def reason(error: OSError) -> str:
    """What the operating system said, in words that need no manual of it."""
    return _REASONS.get(error.errno or 0) or error.strerror or str(error) or type(error).__name__


def shown(path: Path | str) -> str:
    """A path as a message quotes it: at most 200 characters, both ends of a longer one."""
    text = str(path)
    return text if len(text) <= 200 else f"{text[:99]}…{text[-100:]}"


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{_host()}.{os.getpid()}.{next(_COUNT)}.tmp")


def sync_folder(folder: Path) -> None:
    """Make a rename in a folder last. Not every system lets a folder be opened."""
    if hasattr(os, "O_DIRECTORY"):
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _remove_leftovers(path: Path) -> None:
    start = f".{path.name}.{_host()}."
    with os.scandir(path.parent) as entries:
        found = [e.name for e in entries if e.name.startswith(start) and e.name.endswith(".tmp")]
    for name in found:
        process = name.removeprefix(start).split(".")[0]
        leftover = path.with_name(name)
        if process.isdecimal() and leftover not in _WRITING and not _runs(int(process)):
            _remove(leftover)


def _runs(process: int) -> bool:
    if process == os.getpid():  # and not in _WRITING
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # the error that is on its way says more
        path.unlink(missing_ok=True)
