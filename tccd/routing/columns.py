"""Which columns of a batch of prompts run together, and what they may see of each other: functions of tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tccd.modality import ModalityMap


@dataclass(frozen=True)
class Columns:
    """Some columns of each row of a batch, in their order, those of the shorter rows behind fillers.

    Attributes:
        index: column that each place holds, counted from the row's beginning, shape (batch, places).
        real: False in a filler, boolean, same shape.
        ragged: whether there are fillers.
    """

    index: Tensor
    real: Tensor
    ragged: bool

    @property
    def places(self) -> int:
        """The most columns that a row has here."""
        return self.index.shape[1]

    def to(self, device: torch.device) -> Columns:
        """The same on another device."""
        if self.index.device == device:
            return self
        return Columns(self.index.to(device), self.real.to(device), self.ragged)

    def then(self, later: Columns) -> Columns:
        """These, and later ones behind them."""
        index, real = (
            torch.cat([mine, other.to(mine.device)], 1)
            for mine, other in ((self.index, later.index), (self.real, later.real))
        )
        return Columns(index, real, self.ragged or later.ragged)


def columns_where(chosen: Tensor) -> Columns:
    """The chosen columns of each row.

    Args:
        chosen: boolean, shape (batch, columns).

    Example:
        >>> chosen = torch.tensor([[True, False, True], [False, False, True]])
        >>> columns_where(chosen).index.tolist(), columns_where(chosen).real.tolist()
        ([[0, 2], [1, 2]], [[True, True], [False, True]])
    """
    places = int(chosen.sum(-1).max())
    index = torch.argsort(chosen.int(), dim=-1, stable=True)[:, chosen.shape[1] - places :]
    real = chosen.gather(1, index)
    return Columns(index, real, not bool(real.all()))


def columns_from(start: int, number: int, batch: int, device: torch.device) -> Columns:
    """The same run of columns in each row."""
    index = torch.arange(start, start + number, device=device).expand(batch, -1)
    return Columns(index, torch.ones_like(index, dtype=torch.bool), False)


def staying(modalities: ModalityMap) -> Tensor:
    """Columns that go through the routed layers: all but the vision tokens, and but padding before a prompt.

    Returns:
        Boolean, shape (batch, sequence).
    """
    return ~modalities.vision & (modalities.real.cumsum(-1) > 0)


def take(states: Tensor, columns: Columns) -> Tensor:
    """States of some columns, shape (batch, places, hidden); a filler has some other column's."""
    return states.gather(1, _wide(columns.to(states.device).index, states))


def put(states: Tensor, columns: Columns, new: Tensor) -> Tensor:
    """States with new ones, shape (batch, places, hidden), in some columns; what a filler holds is dropped."""
    columns = columns.to(states.device)
    index = _wide(columns.index, states)
    if columns.ragged:
        new = torch.where(columns.real[..., None], new, states.gather(1, index))
    return states.scatter(1, index, new)


def _wide(index: Tensor, states: Tensor) -> Tensor:
    return index[..., None].expand(-1, -1, states.shape[-1])


def rows_of(value: Tensor, columns: Columns, dim: int) -> Tensor:
    """What a tensor with one row a column has at some columns.

    Args:
        value: columns at `dim`, the batch before them where it has one.
        columns: which.
        dim: negative.

    Returns:
        The same, with the batch's rows spread where they were one.
    """
    columns = columns.to(value.device)
    batch, places = columns.index.shape
    if value.ndim < 1 - dim:  # no batch
        value = value[None]
    before, after = value.shape[: dim - 1], value.shape[dim:][1:]
    value = value.expand(*before, batch, *value.shape[dim:])
    index = columns.index.view(batch, places, *(1,) * len(after)).expand(*before, batch, places, *after)
    return value.gather(dim, index)


def mask_between(
    mask: Tensor | None, queries: Columns, keys: Columns, past: int, offset: int, everything: bool = False
) -> Tensor | None:
    """The attention mask between some columns: what the model's own says of them.

    A filler is seen by none but itself.

    Args:
        mask: of all columns, boolean or additive, shape (batch or 1, heads or 1, columns, keys); None for a
            causal one.
        queries: columns that ask.
        keys: columns that are seen.
        past: column of the mask's first query.
        offset: column of the mask's first key; what stands before is not seen.
        everything: they see each other whatever the mask says.

    Returns:
        Shape (batch, heads or 1, places of queries, places of keys); None where causal says it.
    """
    in_order = queries.places in (1, keys.places)  # places are in the order of columns
    if mask is None and in_order and not (keys.ragged or everything or offset):
        return None
    asked, held = queries.index[:, None, :, None], keys.index[:, None, None, :]
    seen = keys.real[:, None, None, :].expand(-1, -1, queries.places, -1)
    if mask is not None:
        mask = _between(mask.to(queries.index.device), asked - past, held - offset)
    if not everything:
        inside = held >= offset
        seen = seen & inside & (held <= asked if mask is None else mask if mask.dtype == torch.bool else True)
    if queries.ragged:
        seen = seen | ((asked == held) & ~queries.real[:, None, :, None])
    if mask is None or mask.dtype == torch.bool:
        return seen
    base = torch.zeros_like(mask) if everything else mask
    itself = asked == held
    base = torch.where(itself & ~queries.real[:, None, :, None], torch.zeros_like(base), base)
    return base.masked_fill(~seen, torch.finfo(base.dtype).min)


def _between(mask: Tensor, asked: Tensor, held: Tensor) -> Tensor:
    batch, heads = asked.shape[0], mask.shape[1]
    mask = mask.expand(batch, -1, -1, -1)
    mask = mask.gather(2, asked.expand(-1, heads, -1, mask.shape[-1]))
    held = held.clamp(min=0)
    return mask.gather(3, held.expand(-1, heads, mask.shape[2], -1))
