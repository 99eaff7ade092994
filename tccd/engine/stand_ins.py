"""Keys and values that a twin sees in the place of columns of the prompt, which it does not run itself."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


class StandIns(ABC):
    """Some keys a row that stand where a twin's own columns would see something else.

    They are kept before the keys of its own columns, at every layer that it runs.

    Attributes:
        width: how many a row.
        runs: whether the layers compute them, in the forward that holds the prompt; else they are given.
    """

    width: int
    runs: bool = False

    @abstractmethod
    def bias(self, seen: Tensor, position: Tensor) -> Tensor:
        """What is added to a query's score of each.

        Args:
            seen: which clean keys the query's clean twin sees, boolean, shape (batch, 1, queries, keys).
            position: column of each key, shape (keys,), ascending by one.

        Returns:
            Shape (batch, 1, queries, width), minus infinity where the query does not see it.
        """


@dataclass(frozen=True)
class MeanColumn(StandIns):
    """One column for all columns of a kind: it weighs as much as so many equal ones.

    `n` equal keys with equal values are one key with `log n` added to its score.

    Attributes:
        states: what the attention of each layer is given in its place, shape (layers, hidden).
        stands_for: columns of the prompt, boolean, shape (batch, prompt).
        at: the column of each row whose position it takes, shape (batch,).
    """

    states: Tensor
    stands_for: Tensor
    at: Tensor
    width: int = 1
    runs: bool = True

    def bias(self, seen: Tensor, position: Tensor) -> Tensor:
        """The logarithm of how many of its columns the query would see."""
        inside = position < self.stands_for.shape[1]
        counted = self.stands_for[:, position.clamp(max=self.stands_for.shape[1] - 1)] & inside
        return (seen & counted[:, None, None]).sum(-1, keepdim=True).float().log()


@dataclass(frozen=True)
class Given(StandIns):
    """Keys and values that were computed before.

    Attributes:
        columns: the column of the prompt that each stands at, shape (batch, width); beyond any for none.
        layers: decoder layer -> keys and values, each of shape (batch, heads, width, head width), positions
            applied.
    """

    columns: Tensor
    layers: Mapping[int, tuple[Tensor, Tensor]]

    @property
    def width(self) -> int:  # type: ignore[override]
        """How many a row."""
        return self.columns.shape[1]

    def bias(self, seen: Tensor, position: Tensor) -> Tensor:
        """Nothing where its column is seen."""
        at = self.columns - position[0]
        there = (at >= 0) & (at < seen.shape[-1])
        index = at.clamp(0, seen.shape[-1] - 1)[:, None, None].expand(-1, 1, seen.shape[2], -1)
        visible = seen.gather(-1, index) & there[:, None, None]
        return torch.zeros(visible.shape, device=seen.device).masked_fill(~visible, -math.inf)
