"""Rows of a harvest on disk: one safetensors shard a batch, read in parts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_safetensors
from torch import Tensor

from tccd.atomic import write_atomic
from tccd.errors import FitError

_KEY = "tccd_shard"


def shard_path(folder: Path, batch: int) -> Path:
    """The file of one batch."""
    return folder / f"batch-{batch:06d}.safetensors"


def write_shard(path: Path, rows: dict[str, Tensor], note: dict[str, object]) -> None:
    """Write one batch's rows, by name such as `text.12`, and a note of JSON values; whole or not at all."""
    write_atomic(path, save_safetensors(rows, {_KEY: json.dumps(note, sort_keys=True)}))


def read_note(path: Path) -> dict[str, object]:
    """The note of a shard.

    Raises:
        FitError: the file is damaged or no shard.
    """
    try:
        with safe_open(path, framework="pt") as shard:
            return json.loads(shard.metadata()[_KEY])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise FitError(f"{path} is damaged ({error}); delete it, and the harvest makes it again") from error


class Rows:
    """The rows of one (modality, layer) over all shards, read from disk as fp32 arrays.

    Args:
        paths: the shards, in order.
        name: tensor in each of them, such as `text.12`.

    Attributes:
        shape: (rows, hidden).
    """

    def __init__(self, paths: list[Path], name: str):
        self._paths, self._name = paths, name
        lengths, width = [], 0
        for path in paths:
            with safe_open(path, framework="pt") as shard:
                length, width = shard.get_slice(name).get_shape()
            lengths.append(length)
        self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        self.shape = (int(self._starts[-1]), width)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, where: slice | np.ndarray) -> np.ndarray:
        """Rows of a slice of step 1, or of an ascending index array, as fp32 of shape (n, hidden)."""
        if isinstance(where, slice):
            start, stop, step = where.indices(len(self))
            if step != 1:
                raise IndexError(f"step {step} is not supported; expected 1")
            where = np.arange(start, stop)
        out = np.empty((len(where), self.shape[1]), dtype=np.float32)
        if not len(where):
            return out
        if (np.diff(where) < 0).any() or where[0] < 0 or where[-1] >= len(self):
            raise IndexError(f"indices must be ascending and within 0 to {len(self) - 1}")
        edges = np.searchsorted(where, self._starts)
        for i, path in enumerate(self._paths):
            part = slice(edges[i], edges[i + 1])
            local = where[part] - self._starts[i]
            if len(local):
                with safe_open(path, framework="pt") as shard:
                    rows = shard.get_slice(self._name)[int(local[0]) : int(local[-1]) + 1]
                out[part] = rows[local - local[0]].float().numpy()
        return out
