"""Rows and sums of a harvest on disk: one safetensors shard a batch, with a checksum, read in parts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_safetensors
from torch import Tensor

from tccd.atomic import write_atomic
from tccd.centroids.bankfile import typed
from tccd.errors import FitError

_KEY = "tccd_shard"
_AGAIN = "delete it, and the harvest makes it again"


@dataclass(frozen=True)
class Note:
    """What a shard says of itself.

    Attributes:
        settings: digest of the harvest's settings.
        samples: digest of the batch's ids and prompts.
        first: id of its first sample.
        pictures: digests of its pictures, in order.
        short_tails: prompts with fewer text tokens after the image than asked for.
        rows: number of rows by name such as `text.12`.
    """

    settings: str
    samples: str
    first: str
    pictures: list[Any]
    short_tails: int
    rows: dict[str, Any]


def shard_path(folder: Path, batch: int) -> Path:
    """The file of one batch."""
    return folder / f"batch-{batch:06d}.safetensors"


def write_shard(path: Path, rows: dict[str, Tensor], note: Note) -> None:
    """Write one batch's tensors, by name such as `text.12`, and its note; whole or not at all.

    Raises:
        WriteError: the disk is full, or the folder can't be written.
    """
    content = asdict(note)
    content["checksum"] = _checksum(content, rows)
    write_atomic(path, save_safetensors(rows, {_KEY: json.dumps(content, sort_keys=True)}))


def read_note(path: Path) -> Note:
    """The note of a shard, once its rows are found to be those that were written.

    Raises:
        FitError: the file is damaged, was changed, or is no shard of this version; names it.
    """
    try:
        with safe_open(path, framework="pt") as shard:
            content = json.loads(shard.metadata()[_KEY])
            rows = {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        plain = isinstance(error, SafetensorError | OSError | ValueError)
        fault = str(error)[:200] if plain else "it holds no hidden states"
        raise FitError(f"{path} is damaged ({fault}); {_AGAIN}") from error
    stated = content.pop("checksum", None) if isinstance(content, dict) else None
    if stated is None:
        raise FitError(f"{path} holds no checksum: an older version of tccd made it; {_AGAIN}")
    if stated != _checksum(content, rows):
        raise FitError(f"{path} was changed after it was written; {_AGAIN}")
    try:
        return typed(Note, content)
    except TypeError as error:
        raise FitError(f"{path} was written by another version of tccd ({error}); {_AGAIN}") from error


def read_tensors(path: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Some tensors of a shard that `read_note` has found sound, whole."""
    with safe_open(path, framework="pt") as shard:
        return {name: shard.get_tensor(name) for name in names}


def _checksum(content: dict[str, Any], rows: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name in sorted(rows):
        digest.update(f"{name} {rows[name].dtype} {tuple(rows[name].shape)}".encode())
        digest.update(rows[name].contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
