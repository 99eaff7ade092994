"""One folder, one run: a second one is refused, by the name of the first."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from tccd.atomic import shown, unwritable
from tccd.errors import BusyError

#: The lock's file in a folder. It stays: removing a lock file while another process waits for it would let two in.
LOCK_FILE = ".tccd.lock"


@contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Hold a folder for one run. The operating system lets go of it when the process ends, however it ends.

    Args:
        folder: made if need be.
        doing: what runs, for whoever is refused: "tccd fit".

    Raises:
        BusyError: another run holds the folder; names it.
        WriteError: the folder can't be made or written, or the disk is full; names what could not be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with locked(folder, "tccd fit"):
        ...     (folder / LOCK_FILE).exists()
        True
    """
    holder = folder / f"{LOCK_FILE}.holder"
    lock = _acquired(folder, holder)
    try:
        _write_note(holder, doing)
        yield
    finally:
        with suppress(OSError):  # a note that stays says nothing: nobody holds the lock
            holder.unlink(missing_ok=True)
        lock.release()


def _acquired(folder: Path, holder: Path) -> FileLock:
    at = folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        at = folder / LOCK_FILE
        at.touch()  # says why it can't be made; the library waits for a folder to turn up
        lock = FileLock(at, thread_local=False)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BusyError(
            f"{shown(folder)} is in use by {_told(holder)}; wait until it is done, or give another folder"
        ) from error
    except OSError as error:
        raise unwritable(at, error) from error
    return lock


def _write_note(holder: Path, doing: str) -> None:
    note = {"doing": doing, "process": os.getpid(), "host": socket.gethostname()}
    try:
        holder.write_text(json.dumps(note | {"since": datetime.now(UTC).isoformat(timespec="seconds")}))
    except OSError as error:
        raise unwritable(holder, error) from error


def _told(holder: Path) -> str:
    try:
        note = json.loads(holder.read_text())
        return f"{note['doing']} (process {note['process']} on {note['host']}, since {note['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another run"
