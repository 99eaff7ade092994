"""What a long run has done so far, chunk by chunk, so that a killed one goes on where it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tccd.atomic import write_atomic
from tccd.errors import ConfigError, DataError

#: Name of the journal in a report's folder.
FOLDER = "unfinished"
_SETTINGS = "settings.json"


class Journal:
    """A folder of finished chunks, each written in one step, and the settings that they were made with.

    Args:
        folder: where; made if need be.
        settings: everything that the outcome depends on, by name, as JSON values.
        resume: go on with the chunks that are there; without, none may be.

    Raises:
        ConfigError: there are chunks and resume was not asked for, or they were made with other settings.
        DataError: the folder holds something else, or a damaged file.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "unfinished"
        >>> Journal(folder, {"seed": 1}).chunk(0, lambda: {"found": 3})
        {'found': 3}
        >>> Journal(folder, {"seed": 1}, resume=True).chunk(0, lambda: {"found": 4})
        {'found': 3}
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, resume: bool = False) -> None:
        self.folder = folder
        settings = json.loads(json.dumps(settings))
        file = folder / _SETTINGS
        if not any(folder.glob("chunk-*.json")):
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(file, json.dumps(settings, indent=1).encode())
            return
        if not resume:
            raise ConfigError(
                f"{folder} holds an unfinished run; go on with it by --resume, or delete it to start anew"
            )
        if not file.exists():
            raise DataError(f"{folder} holds chunks without {_SETTINGS}; delete it to start anew")
        before = _read(file)
        differ = sorted(key for key in {*before, *settings} if before.get(key) != settings.get(key))
        if differ:
            shown = "; ".join(
                f"{key} was {_shown(before.get(key))}, is {_shown(settings.get(key))}" for key in differ
            )
            raise ConfigError(
                f"the unfinished run in {folder} was made with other settings: {shown}. Resume it with those, or "
                "delete it to start anew"
            )

    def chunk(self, start: int, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The chunk that begins with sample `start`: as it was kept, or made now and kept."""
        file = self.folder / f"chunk-{start:08d}.json"
        if file.exists():
            return _read(file)
        made = json.loads(json.dumps(make()))
        write_atomic(file, json.dumps(made, ensure_ascii=False).encode())
        return made


def discard(folder: Path) -> None:
    """Remove the journal of a run whose report is written: nothing is left to resume."""
    shutil.rmtree(folder)


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is damaged ({error}); delete it, and it is made anew") from error


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
