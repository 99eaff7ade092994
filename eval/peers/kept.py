"""Next-token logits of every stream, kept in a folder, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save
from torch import Tensor

from tccd.atomic import write_atomic


@dataclass(frozen=True)
class Folder:
    """Where the logits of one model and one set of questions are kept.

    A file is named by all that its content depends on: what has changed is made anew, and lies beside the old one.

    Attributes:
        path: the folder.
        key: what all files depend on, as JSON values: model, questions, versions.
    """

    path: Path
    key: Mapping[str, str]

    def file(self, name: str, made_by: str) -> Path:
        """The file of one group of streams.

        Args:
            name: of the group.
            made_by: all that decides its content, in words.
        """
        text = json.dumps({**self.key, "name": name, "made_by": made_by}, sort_keys=True)
        return self.path / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.safetensors"

    def get(self, name: str, made_by: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Logits by stream, each of shape (n, vocabulary): as they were kept, or made now and kept."""
        file = self.file(name, made_by)
        if not file.exists():
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomic(file, save({stream: rows.contiguous() for stream, rows in make().items()}))
        return load_file(file)
