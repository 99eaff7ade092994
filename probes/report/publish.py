"""Several files that replace their predecessors together, wherever the process dies or the disk fills up.

All are first written into a hidden folder beside them. Giving that folder its second name is the one step that
counts. Before it the old files are the report. After it the new ones are: what is left are renames, which need no
room. Whoever writes next does those that are left, and whoever reads by `read_newest` reads as if they were done.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from tccd.atomic import sync_folder, unwritable
from tccd.errors import ConfigError

_STAGED = ".report-staged"
_READY = ".report-ready"
#: Written last into the hidden folder and removed last: the names of all files of the set, one a line.
_NAMES = "names"


def publish(folder: Path, contents: Mapping[str, bytes], known: Collection[str]) -> None:
    """Replace a set of files in one step. The caller holds the folder (`tccd.locking`).

    Args:
        folder: where they are.
        contents: by name; the last one is put in place last.
        known: all names that such a set may have. Files of these that the new set lacks are removed.

    Raises:
        ConfigError: a folder has the name of one of the files.
        WriteError: they can't be written. The old files are as they were, or the new ones are whole.
    """
    settle(folder, known)
    for name in known:
        if (folder / name).is_dir():
            raise ConfigError(f"{folder / name} is a folder; expected a file, or nothing, to be replaced")
    staged = folder / _STAGED
    if staged.exists():
        shutil.rmtree(staged)
    at = folder
    try:
        staged.mkdir()
        for name, data in {**contents, _NAMES: "\n".join(contents).encode()}.items():
            at = folder / name
            with open(staged / name, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        at = folder
        sync_folder(staged)
        os.rename(staged, folder / _READY)
        sync_folder(folder)
        settle(folder, known)
    except BaseException as error:
        shutil.rmtree(staged, ignore_errors=True)
        if isinstance(error, OSError):
            raise unwritable(at, error) from error
        raise


def settle(folder: Path, known: Collection[str]) -> None:
    """Put a set in place whose writing was cut short after the step that counts. The caller holds the folder.

    Args:
        folder: where the files are.
        known: all names that such a set may have; what else is found is not touched.
    """
    ready = folder / _READY
    if not ready.is_dir():
        return
    if (ready / _NAMES).is_file():
        names = (ready / _NAMES).read_text(encoding="utf-8").splitlines()
        for name in known:
            if name not in names:
                (folder / name).unlink(missing_ok=True)
        for name in names:
            if name in known and (ready / name).is_file():
                os.replace(ready / name, folder / name)
        sync_folder(folder)
        (ready / _NAMES).unlink()
    shutil.rmtree(ready)


def read_newest(file: Path) -> str:
    """The text of one of the files: the new one's from the step that counts on, in place or not.

    Raises:
        OSError: there is none, or it can't be read.
        UnicodeDecodeError: it is not UTF-8.
    """
    try:
        return (file.parent / _READY / file.name).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return file.read_text(encoding="utf-8")
