"""What a long run has done so far, chunk by chunk, so that a killed one goes on where it was.

A kept file carries a digest of the run's settings, which the questions are part of, the digest of each picture
that was shown, and a digest of itself. So a file of another run, one that was edited, and one whose pictures
were changed under the same names are found, and refused by name.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tccd.atomic import write_atomic
from tccd.data import Sample
from tccd.errors import ConfigError, DataError
from tccd.locking import LOCK_FILE, locked

#: Name of the journal in a report's folder.
FOLDER = "unfinished"
_SETTINGS = "settings.json"
_DOSES = "doses.json"
_CHUNKS = "chunk-*.json"
_KEYS = {"run", "name", "pictures", "made", "digest"}

#: What makes the content of a file: JSON values by name, and in `pictures` the digests of those shown.
Make = Callable[[], dict[str, Any]]


class Journal:
    """A folder of finished chunks, each written in one step, and the settings that they were made with.

    Every file that is there is read and checked at once; its pictures are when its turn comes.

    Args:
        folder: where; made if need be.
        settings: everything that the outcome depends on but what pictures show, by name, as JSON values.
        resume: go on with the chunks that are there; without, none may be.

    Raises:
        ConfigError: there are chunks and resume was not asked for, or they were made with other settings.
        DataError: the folder holds something else, or a file that is damaged, edited or of another run.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "unfinished"
        >>> Journal(folder, {"seed": 1}).chunk(0, [], lambda: {"found": 3, "pictures": []})["found"]
        3
        >>> Journal(folder, {"seed": 1}, resume=True).chunk(0, [], lambda: {"found": 4, "pictures": []})["found"]
        3
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, resume: bool = False) -> None:
        self.folder = folder
        settings = json.loads(json.dumps(settings))
        self._run = _digest(settings)
        file = folder / _SETTINGS
        self._began = begun(folder)
        if not self._began:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / _DOSES).unlink(missing_ok=True)
            write_atomic(file, json.dumps(settings, indent=1).encode())
            return
        if not resume:
            raise ConfigError(
                f"{folder} holds an unfinished run; go on with it by --resume, or delete it to start anew"
            )
        if not file.exists():
            raise DataError(f"{folder} holds chunks without {_SETTINGS}; delete it to start anew")
        _compare(folder, _read(file), settings)
        for kept in sorted(folder.glob(_CHUNKS)):
            self._read(kept)

    def check_room(self, need: int) -> None:
        """Refuse a disk that is clearly too full.

        Args:
            need: bytes that will be written, at least.

        Raises:
            ConfigError: there is less room.
        """
        free = shutil.disk_usage(self.folder).free
        if free < need:
            raise ConfigError(
                f"the disk of {self.folder} has {free / 2**20:.1f} MiB left, and the run needs at least "
                f"{need / 2**20:.1f}; make room, or give another folder"
            )

    def chunk(self, start: int, samples: Sequence[Sample], make: Make) -> dict[str, Any]:
        """The chunk that begins with sample `start`: as it was kept, or made now and kept.

        Args:
            start: the first sample's number.
            samples: the chunk's samples. Where it was kept, their pictures are read for their digests.
            make: makes it.

        Raises:
            DataError: the pictures are not those that were shown when it was kept.
        """
        return self._kept(f"chunk-{start:08d}.json", samples, make)

    def doses(self, samples: Sequence[Sample], make: Make) -> dict[str, Any]:
        """What was measured before the first chunk, and settles what all chunks are asked; as `chunk`."""
        if self._began and not (self.folder / _DOSES).exists():
            raise DataError(f"{self.folder} holds chunks without {_DOSES}; delete it to start anew")
        return self._kept(_DOSES, samples, make)

    def _kept(self, name: str, samples: Sequence[Sample], make: Make) -> dict[str, Any]:
        file = self.folder / name
        if file.exists():
            kept = self._read(file)
            _same_pictures(file, kept["pictures"], samples)
            return kept["made"] | {"pictures": kept["pictures"]}
        made = json.loads(json.dumps(make()))
        entry = {"run": self._run, "name": name, "pictures": made.pop("pictures"), "made": made}
        entry["digest"] = _digest(entry)
        write_atomic(file, json.dumps(entry, ensure_ascii=False).encode())
        return made | {"pictures": entry["pictures"]}

    def _read(self, file: Path) -> dict[str, Any]:
        entry = _read(file)
        if set(entry) != _KEYS or entry.pop("digest") != _digest(entry):
            raise _damaged(file, "its content does not match its digest")
        if entry["run"] != self._run:
            raise DataError(f"{file} was kept by a run with other settings; delete it, and it is made anew")
        if entry["name"] != file.name:
            raise DataError(f"{file} was kept as {entry['name']}; delete it, and it is made anew")
        return entry


@contextmanager
def open_journal(folder: Path, settings: Mapping[str, Any], *, resume: bool = False) -> Iterator[Journal]:
    """A `Journal` whose folder is held as long as the context lasts; left away again where nothing was kept.

    Raises:
        BusyError: another run holds the folder.
        ConfigError, DataError: as `Journal`.
    """
    with locked(folder, "a probe that keeps its answers there"):
        try:
            yield Journal(folder, settings, resume=resume)
        finally:
            if not begun(folder):
                _remove(folder)


def begun(folder: Path) -> bool:
    """Whether a folder holds the journal of a run that finished a chunk."""
    return any(folder.glob(_CHUNKS))


def discard(folder: Path) -> None:
    """Remove the journal of a run whose report is written: nothing is left to resume.

    Raises:
        BusyError: a run holds the folder.
    """
    with locked(folder, "removing a finished run"):
        _remove(folder)


def _remove(folder: Path) -> None:
    """All that a journal keeps; the folder too, unless it holds other files."""
    own = {_SETTINGS, _DOSES, LOCK_FILE, f"{LOCK_FILE}.holder"}
    files = list(folder.iterdir())
    mine = [file for file in files if file.name in own or file.match(_CHUNKS) or file.match(".*.tmp")]
    if len(mine) < len(files):
        for file in mine:
            if file.name != LOCK_FILE:  # it stays; see `tccd.locking`
                file.unlink(missing_ok=True)
        return
    # In one step: half of a journal would look like a run to resume.
    gone = folder.with_name(f".{folder.name}.done")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone)


def _compare(folder: Path, before: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    differ = sorted(key for key in {*before, *settings} if before.get(key) != settings.get(key))
    if differ:
        shown = "; ".join(f"{key} was {_shown(before.get(key))}, is {_shown(settings.get(key))}" for key in differ)
        raise ConfigError(
            f"the unfinished run in {folder} was made with other settings: {shown}. Resume it with those, or "
            "delete it to start anew"
        )


def _same_pictures(file: Path, before: Sequence[str], samples: Sequence[Sample]) -> None:
    changed = [s.id for s, digest in zip(samples, before, strict=True) if s.picture_digest != digest]
    if changed:
        more = f" and of {len(changed) - 1} more" if len(changed) > 1 else ""
        raise DataError(
            f"{file} was made with other pictures: that of sample {changed[0]}{more} has changed since. Put back "
            f"what was there, or delete {file.parent} to start anew"
        )


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _damaged(file, str(error)[:200]) from error
    if not isinstance(found, dict):
        raise _damaged(file, f"it holds a {type(found).__name__}, not a mapping")
    return found


def _damaged(file: Path, why: str) -> DataError:
    advice = "delete it, and it is made anew"
    if file.name == _SETTINGS:
        advice = f"delete {file.parent} to start anew"
    return DataError(f"{file} is damaged ({why}); {advice}")


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
