"""One opaque operation after each of the banks' layers: it moves the rows of shadows to their nearest centroids.

Which rows, to which centroids, and how far, stands in buffers that live as long as the model. So compiled code and
CUDA graphs that hold the operation hold for every step, whoever is in the batch.

On a CPU the rows are picked out. On a GPU every row is computed and the right ones are kept: a graph can record
that, since no shape depends on the data, and nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.library import Library

from tccd.centroids.replacement import Centroids
from tccd.decoding.vllm import objects

_library = Library("tccd", "FRAGMENT")


@dataclass
class Buffers:
    """Which rows of a step are moved, by row.

    Attributes:
        site: number of the row's set of centroids, from 1; 0 where the row stays. Shape (rows,), int32.
        kept: what the row keeps of its offset from the centroid. Shape (rows,), fp32.
        sets: layer -> (number, centroids).
        any: whether a row of this step is moved at all; read on a CPU only.
        calls: how often the operation was run.
    """

    site: Tensor
    kept: Tensor
    sets: dict[int, list[tuple[int, Centroids]]] = field(default_factory=dict)
    any: bool = False
    calls: int = 0

    @classmethod
    def of(cls, rows: int, device: torch.device) -> Buffers:
        """Buffers for steps of so many rows, none of them moved."""
        site = torch.zeros(rows, dtype=torch.int32, device=device)
        return cls(site, torch.ones(rows, device=device))

    def fill(self, places: Sequence[tuple[Tensor, int, float]]) -> None:
        """Say which rows the next forward moves: (rows, number of the set, what is kept) each."""
        if self.any:
            self.site.zero_()
        self.any = bool(places)
        if not places:
            return
        site, kept = torch.zeros(len(self.site), dtype=torch.int32), torch.ones(len(self.site))
        for rows, number, keep in places:
            site[rows], kept[rows] = number, keep
        self.site.copy_(site, non_blocking=True)
        self.kept.copy_(kept, non_blocking=True)


#: Of the model that this process runs.
_buffers: Buffers | None = None


def set_buffers(buffers: Buffers | None) -> None:
    """Say which buffers the operation reads."""
    global _buffers
    _buffers = buffers


def move(hidden: Tensor, residual: Tensor, layer: int) -> None:
    """Move rows of a layer's output, in place: `hidden + residual` is the state, shape (rows, hidden) each."""
    held = _buffers
    if held is None:
        return
    held.calls += 1
    if hidden.device.type != "cpu":
        _move_all(held, hidden, residual, layer)
    elif held.any:
        _move_some(held, hidden, residual, layer)


def _move_some(held: Buffers, hidden: Tensor, residual: Tensor, layer: int) -> None:
    sites = held.site[: len(hidden)]
    for number, centroids in held.sets.get(layer, ()):
        rows = (sites == number).nonzero().squeeze(-1)
        if len(rows):
            hidden[rows] = centroids.replace(hidden[rows] + residual[rows], held.kept[rows])
            residual[rows] = 0


def _move_all(held: Buffers, hidden: Tensor, residual: Tensor, layer: int) -> None:
    sites, kept = held.site[: len(hidden)], held.kept[: len(hidden)]
    for number, centroids in held.sets.get(layer, ()):
        here = (sites == number)[:, None]
        moved = centroids.replace(hidden + residual, kept)
        hidden.copy_(torch.where(here, moved, hidden))
        residual.copy_(torch.where(here, 0, residual))


def _shapes(hidden: Tensor, residual: Tensor, layer: int) -> None:
    return None


def register() -> None:
    """Make the operation known to torch, once a process."""
    from vllm.utils.torch_utils import direct_register_custom_op

    if not hasattr(torch.ops.tccd, "move"):
        direct_register_custom_op(
            "move", move, mutates_args=["hidden", "residual"], fake_impl=_shapes, target_lib=_library
        )


def hook(layer: nn.Module, index: int) -> None:
    """Let the operation run on a layer's output; torch's compiler traces the hook, and no class is changed."""
    objects.checked("layer", layer)

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        hidden, residual = output
        torch.ops.tccd.move(hidden, residual, index)
        return hidden, residual

    layer.register_forward_hook(after)
