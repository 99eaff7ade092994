"""Attention masks for a clean sequence with erased columns packed behind it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from tccd.engine.stand_ins import StandIns


@dataclass(frozen=True)
class Columns:
    """Which columns of a sequence an erased stream owns.

    A stream differs from the clean one from its first replaced position on, so its columns are a suffix of
    each row; the rows' suffixes differ in length, and the packed columns are those of the longest.

    Attributes:
        start: first own column of each row, absolute, shape (batch,); beyond every sequence in a row that the
            stream leaves alone.
        first: the smallest of `start`; keys are kept from this column on.
        hidden: columns of the prompt that no query of the stream sees but the one that stands there, boolean,
            shape (batch, prompt); None for none.
        stand_ins: keys that come before the stream's own; None for none.
    """

    start: Tensor
    first: int
    hidden: Tensor | None = None
    stand_ins: StandIns | None = None

    @property
    def width(self) -> int:
        """How many stand-ins there are."""
        return 0 if self.stand_ins is None else self.stand_ins.width


def causal(n: int, past: int, kv_length: int, kv_offset: int, device: torch.device) -> Tensor:
    """Boolean causal mask of shape (1, 1, n, kv_length); query i stands at column past + i."""
    query = torch.arange(past, past + n, device=device)[:, None]
    key = torch.arange(kv_offset, kv_offset + kv_length, device=device)[None, :]
    return (key <= query)[None, None]


def packed(
    clean: Tensor, streams: list[tuple[Columns, int]], past: int, kv_offset: int
) -> tuple[Tensor, Tensor | None]:
    """Mask for queries [clean | stream 0 | ...] over keys [clean | stream 0 | ...].

    A clean query sees what it saw. A stream's query sees the clean keys before its start and, from there on, its
    own keys, under the mask of its clean twin and but for what is hidden from the stream; and its stand-ins. A
    stand-in that the layers run is a query before the stream's others, and a key before them; it sees itself.

    Args:
        clean: boolean, shape (batch or 1, 1, n, kv); column j of the keys stands at kv_offset + j.
        streams: per stream its columns and how many queries (the last ones of the n) it has here.
        past: columns before this forward.
        kv_offset: absolute column of the first clean key.

    Returns:
        Boolean mask of shape (batch, 1, queries, keys), all streams' included, and what is added to the scores,
        of that shape, in fp32; None for nothing.
    """
    n, kv = clean.shape[-2:]
    now = past + n
    batch = max([clean.shape[0], *(columns.start.shape[0] for columns, _ in streams)])
    clean = clean.expand(batch, -1, -1, -1)
    position = torch.arange(kv_offset, kv_offset + kv, device=clean.device)
    widths = [columns.width + max(0, now - columns.first) for columns, _ in streams]
    rows, added = [pad(clean, (0, sum(widths)))], [torch.zeros(1, 1, n, 1, device=clean.device)]
    before, weighs = 0, False
    for (columns, queries), width in zip(streams, widths, strict=True):
        twin = clean[:, :, n - queries :]
        prefix, own = _stream(twin, columns, position, now, width - columns.width, kv_offset)
        keys = torch.cat([prefix, pad(own, (before + columns.width, sum(widths) - before - width))], -1)
        bias = torch.zeros(1, 1, queries, 1, device=clean.device)
        if columns.stand_ins is not None:
            at = slice(kv + before, kv + before + columns.width)
            score = columns.stand_ins.bias(twin, position)
            keys[..., at] = score > -torch.inf
            if columns.stand_ins.runs:
                weighs = True
                bias = torch.zeros(keys.shape, device=clean.device)
                bias[..., at] = score.clamp(min=0)
                if not past:
                    itself = torch.zeros_like(keys[:, :, :1])
                    itself[..., at] = True
                    keys = torch.cat([itself, keys], -2)
                    bias = torch.cat([torch.zeros_like(bias[:, :, :1]), bias], -2)
        rows.append(keys)
        added.append(bias)
        before += width
    mask = torch.cat(rows, -2)
    if not weighs:
        return mask, None
    return mask, torch.cat([one.expand(batch, 1, -1, mask.shape[-1]) for one in added], -2)


def _stream(
    twin: Tensor, columns: Columns, position: Tensor, now: int, width: int, kv_offset: int
) -> tuple[Tensor, Tensor]:
    """Which clean keys and which of its own a stream's queries see, shape (batch, 1, queries, keys) each."""
    start = columns.start[:, None, None, None]
    own = twin[..., max(0, columns.first - kv_offset) : now - kv_offset]
    own = pad(own, (width - own.shape[-1], 0))  # keys that a sliding window has passed
    own_position = torch.arange(now - width, now, device=twin.device)
    prefix = twin & (position < start)
    own = own & (own_position >= start)
    if columns.hidden is not None:
        unseen = pad(columns.hidden, (0, max(0, now - columns.hidden.shape[-1])))[:, None, None]
        prefix = prefix & ~_at(unseen, position)
        itself = own_position == torch.arange(now - twin.shape[-2], now, device=twin.device)[:, None]
        own = own & (~_at(unseen, own_position) | itself)
    return prefix, own


def _at(hidden: Tensor, position: Tensor) -> Tensor:
    """`hidden` (..., columns) at some positions; a static cache has positions beyond the last column, unseen."""
    return hidden[..., position.clamp(max=hidden.shape[-1] - 1)]


def sees_ahead(mask: object, start: Tensor) -> bool:
    """Whether a query before its row's `start` may see a key from there on, as in prefix-LM attention.

    Args:
        mask: boolean or additive, shape (batch or 1, heads or 1, n, keys); None is causal, and what is no 4-D
            tensor may say anything, so it counts as seeing ahead.
        start: shape (batch,).
    """
    if mask is None:
        return False
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        return True
    seen = mask if mask.dtype == torch.bool else mask == 0
    start = start.to(mask.device)[:, None]
    before, after = (torch.arange(size, device=mask.device)[None] < start for size in mask.shape[-2:])
    return bool((seen & before[:, None, :, None] & ~after[:, None, None, :]).any())
