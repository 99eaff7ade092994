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
        shared: ranges of columns outside which no query of the stream sees a clean key: the others need not be
            scored.
    """

    start: Tensor
    first: int
    hidden: Tensor | None = None
    stand_ins: StandIns | None = None
    shared: tuple[tuple[int, int], ...] | None = None

    @property
    def width(self) -> int:
        """How many stand-ins there are."""
        return 0 if self.stand_ins is None else self.stand_ins.width


def causal(n: int, past: int, kv_length: int, kv_offset: int, device: torch.device) -> Tensor:
    """Boolean causal mask of shape (1, 1, n, kv_length); query i stands at column past + i."""
    query = torch.arange(past, past + n, device=device)[:, None]
    key = torch.arange(kv_offset, kv_offset + kv_length, device=device)[None, :]
    return (key <= query)[None, None]


def within(window: int, n: int, past: int, kv_length: int, kv_offset: int, device: torch.device) -> Tensor:
    """Which keys are among a query's last `window`, itself included, with the shape and arguments of `causal`."""
    query = torch.arange(past, past + n, device=device)[:, None]
    key = torch.arange(kv_offset, kv_offset + kv_length, device=device)[None, :]
    return (key > query - window)[None, None]


@dataclass(frozen=True)
class Seen:
    """What the queries of one stream see in one forward.

    Attributes:
        clean: of the clean keys, boolean, shape (batch, 1, queries, keys).
        own: of the stream's own keys, its stand-ins before the rest, of the same kind.
        added: to the scores of its own keys, in fp32, of the shape of `own`; None for nothing.
    """

    clean: Tensor
    own: Tensor
    added: Tensor | None


def seen_by(clean: Tensor, columns: Columns, queries: int, past: int, kv_offset: int) -> Seen:
    """What a stream's queries see: the clean keys before its start and, from there on, its own.

    Both under the mask of its clean twin and but for what is hidden from the stream; and its stand-ins. A stand-in
    that the layers run is a query before the stream's others, and a key before them; it sees itself.

    Args:
        clean: the mask of the clean queries, boolean, shape (batch or 1, 1, n, kv); column j of the keys stands at
            kv_offset + j.
        columns: of the stream.
        queries: how many it has here, the last ones of the n.
        past: columns before this forward.
        kv_offset: absolute column of the first clean key.
    """
    n, kv = clean.shape[-2:]
    now, batch = past + n, max(clean.shape[0], columns.start.shape[0])
    position = torch.arange(kv_offset, kv_offset + kv, device=clean.device)
    twin = clean[:, :, n - queries :].expand(batch, -1, -1, -1)
    prefix, own = _stream(twin, columns, position, now, max(0, now - columns.first), kv_offset)
    if columns.stand_ins is None:
        return Seen(prefix, own, None)
    score = columns.stand_ins.bias(twin, position)
    own = torch.cat([score > -torch.inf, own], -1)
    if not columns.stand_ins.runs:
        return Seen(prefix, own, None)
    width = columns.width
    added = pad(score.clamp(min=0), (0, own.shape[-1] - width))
    if not past:
        itself = torch.zeros_like(own[:, :, :1])
        itself[..., :width] = True
        own = torch.cat([itself, own], -2)
        prefix, added = (pad(one, (0, 0, 1, 0)) for one in (prefix, added))
    return Seen(prefix, own, added)


def packed(
    clean: Tensor, streams: list[tuple[Columns, int]], past: int, kv_offset: int
) -> tuple[Tensor, Tensor | None]:
    """Mask for queries [clean | stream 0 | ...] over keys [clean | stream 0 | ...].

    A clean query sees what it saw, and a stream's what `seen_by` says.

    Args:
        clean: boolean, shape (batch or 1, 1, n, kv); column j of the keys stands at kv_offset + j.
        streams: per stream its columns and how many queries (the last ones of the n) it has here.
        past: columns before this forward.
        kv_offset: absolute column of the first clean key.

    Returns:
        Boolean mask of shape (batch, 1, queries, keys), all streams' included, and what is added to the scores,
        of that shape, in fp32; None for nothing.
    """
    kv = clean.shape[-1]
    found = [seen_by(clean, columns, queries, past, kv_offset) for columns, queries in streams]
    batch, own = (
        max(clean.shape[0], *(len(one.clean) for one in found), 1),
        sum(one.own.shape[-1] for one in found),
    )
    rows = [pad(clean.expand(batch, -1, -1, -1), (0, own))]
    added = [torch.zeros(batch, 1, clean.shape[-2], kv + own, device=clean.device)]
    before = 0
    for one in found:
        around = before, own - before - one.own.shape[-1]
        rows.append(
            torch.cat([one.clean.expand(batch, -1, -1, -1), pad(one.own.expand(batch, -1, -1, -1), around)], -1)
        )
        score = torch.zeros(one.own.shape, device=clean.device) if one.added is None else one.added
        added.append(pad(score.expand(batch, -1, -1, -1), (kv + around[0], around[1])))
        before += one.own.shape[-1]
    mask = torch.cat(rows, -2)
    return mask, None if all(one.added is None for one in found) else torch.cat(added, -2)


def runs(where: Tensor) -> tuple[tuple[int, int], ...]:
    """The ranges of true columns, from the first to behind the last, of a boolean tensor of shape (columns,)."""
    edges = torch.diff(pad(where.int(), (1, 1))).nonzero()[:, 0].tolist()
    return tuple(zip(edges[::2], edges[1::2], strict=True))


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
        mask: boolean or additive, shape (batch or 1, heads or 1, n, keys). None and what flash attention takes,
            shape (batch, keys), are causal. Anything else may say anything, so it counts as seeing ahead.
        start: shape (batch,).
    """
    if mask is None or (isinstance(mask, Tensor) and mask.ndim == 2):
        return False
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        return True
    seen = mask if mask.dtype == torch.bool else mask == 0
    start = start.to(mask.device)[:, None]
    before, after = (torch.arange(size, device=mask.device)[None] < start for size in mask.shape[-2:])
    return bool((seen & before[:, None, :, None] & ~after[:, None, None, :]).any())
