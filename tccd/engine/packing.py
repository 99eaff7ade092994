"""One forward with erased columns packed behind the clean ones: states, masks, positions, keys and values."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache

from tccd.engine import masks
from tccd.engine.reference import Part, Rider
from tccd.engine.streams import StreamPart
from tccd.errors import UnsupportedModelError

#: The rows of matrix products over a prompt are a multiple of this many. Some other numbers take a quarter longer
#: per row: 722 rows in bf16 on a CPU.
EVEN_ROWS = 4

#: Keys and values, each of shape (batch, heads, columns, head width).
Pair = tuple[Tensor, Tensor]


class Step:
    """One forward of the model under a session.

    Attributes:
        past: columns before it.
        n: clean columns in it.
        prefill: whether it holds the prompt.
        parts: the references' parts in it, in their order.
        twins: of these, the ones with columns of their own.
        cache: the model's cache, once it is known.
        dtype: of attention, for a mask that adds to scores.
        active: the twins packed into the layer call that runs now.
        padding: columns behind them that nobody reads, so that matrix products get an even number of rows.
    """

    def __init__(self, past: int, n: int, parts: list[Part], cache: Cache | None) -> None:
        self.past = past
        self.n = n
        self.prefill = past == 0
        self.parts = parts
        self.dtype = torch.float32
        self.twins = [part for part in parts if isinstance(part, StreamPart)]
        self.cache = cache
        self.active: list[StreamPart] = []
        self.padding = 0
        self._packed: Tensor | None = None
        self._clean: Tensor | None = None
        self._memo: dict[tuple[Any, ...], tuple[Any, Any]] = {}
        self._prefixes: dict[int, int] = {}
        self._layer: int | None = None
        self._stood_in: int | None = None

    def activate(self, layer: int | None) -> bool:
        """Pack the twins begun below `layer` (all of them for None) from now on; False if they run no row."""
        self._layer = layer
        active = [p for p in self.twins if layer is None or p.stream.reference.layer < layer]
        if len(active) > len(self.active):  # a twin that has begun stays
            self.active, self._packed = active, None
            rows = sum(part.rows for part in active)
            every = EVEN_ROWS // math.gcd(EVEN_ROWS, len(active[0].stream.columns.start))
            self.padding = min(-(self.n + rows) % every, self.n) if self.prefill and rows else 0
        return any(part.rows for part in active)

    @property
    def width(self) -> int:
        """Columns of the layer call that runs now."""
        return self.n + sum(part.rows for part in self.active) + self.padding

    def pack(self, clean: Tensor) -> Tensor:
        """States [clean | twins ... | padding], shape (batch, width, hidden), without a copy if they stand so."""
        if clean is not self._clean:
            self._follow(clean)
        elif self._packed is not None and self._packed.shape[1] == self.width:
            return self._packed
        return torch.cat([clean, *(on(part.hidden, clean) for part in self.active), clean[:, : self.padding]], 1)

    def stand_in(self, layer: int, hidden: Tensor | None) -> None:
        """Put into what a layer's attention is given the states of stand-ins that it runs.

        Args:
            layer: its index.
            hidden: shape (batch, width, hidden); changed in place, in rows that nothing else is made of.
        """
        if hidden is None or hidden.shape[1] != self.width:
            return
        at = self.n
        for part in self.active:
            if part.stand_in is not None:
                hidden[:, at] = part.stand_in.states[layer].to(hidden)
            at += part.rows
        self._stood_in = layer

    def stood_in(self, layer: int) -> bool:
        """Whether every stand-in that a layer ran got its state."""
        return self._stood_in == layer or all(part.stand_in is None for part in self.active)

    def _follow(self, clean: Tensor) -> None:
        # Between two layers the model added something (Qwen3-VL's deepstack: visual features, at the vision
        # positions); each reference says what that is for its own states.
        if self._clean is None or self._layer is None:
            return
        added = clean - on(self._clean, clean)
        for part in self.active:
            part.hidden = on(part.hidden, clean)
            part.follow(self._layer, added)

    def leave(self, clean: Tensor) -> None:
        """Note what a layer without erased columns gave, shape (batch, n, hidden)."""
        self._packed, self._clean = None, clean

    def unpack(self, packed: Tensor) -> Tensor:
        """Hand each stream its states back; returns the clean ones, shape (batch, n, hidden)."""
        at = self.n
        for part in self.active:
            part.hidden = packed[:, at : at + part.rows]
            at += part.rows
        self._packed, self._clean = packed, packed[:, : self.n]
        return self._clean

    def arguments(
        self, index: int, kwargs: dict[str, Any], apart: bool, follows: Callable[[str, bool], bool]
    ) -> dict[str, Any]:
        """The keyword arguments of layer `index` for packed states.

        Args:
            index: the layer.
            kwargs: its arguments for the clean ones.
            apart: whether its attention runs each stream by itself, and so wants the clean ones' mask.
            follows: told the name of an unknown argument, and whether this is the prompt; says whether it has one
                row a token.

        Raises:
            UnsupportedModelError: a mask that is no 4-D tensor, or what `follows` raises.
        """
        packed = {}
        for name, value in kwargs.items():
            if name == "attention_mask" and apart:
                packed[name] = value
            elif name == "attention_mask":
                sizes = self.kv_sizes(index)
                packed[name] = self._once(name, value, sizes, partial(self._mask, *sizes))
            elif name.startswith("position_embeddings"):
                packed[name] = self._once(name, value, None, partial(self._columns, -2))
            elif name in ("position_ids", "cache_position"):
                packed[name] = self._once(name, value, None, partial(self._columns, -1))
            elif isinstance(value, Tensor) and value.ndim > 1 and follows(name, self.prefill):
                packed[name] = self._once(name, value, None, partial(self._columns, 1 - value.ndim))
            else:
                packed[name] = value
        return packed

    def mask_of(
        self, sizes: tuple[int, int], mask: Any, window: int | None, part: StreamPart
    ) -> tuple[list[slice], Tensor]:
        """Which clean keys a stream's attention runs over, and its mask over these and its own; made once for all
        layers that share theirs.

        Args:
            sizes: of the layer's cache, by `kv_sizes` before the layer ran.
            mask: its mask for the clean columns.
            window: of its keys a query sees so many, where the mask does not say so; None for all.
            part: the stream's.
        """
        made = partial(self._mask_of, part, window, *sizes)
        return self._once(f"of {part.number} within {window}", mask, sizes, made)

    def _mask_of(
        self, part: StreamPart, window: int | None, kv_length: int, kv_offset: int, mask: Any
    ) -> tuple[list[slice], Tensor]:
        ranges = part.stream.columns.shared or ((0, kv_offset + kv_length),)
        found = [(max(0, a - kv_offset), min(b - kv_offset, kv_length)) for a, b in ranges]
        shared = [slice(a, b) for a, b in found if a < b]
        clean = self._boolean(kv_length, kv_offset, mask)
        if window is not None:
            clean = clean & masks.within(window, self.n, self.past, kv_length, kv_offset, clean.device)
        seen = masks.seen_by(clean, part.stream.columns, part.queries, self.past, kv_offset)
        visible = torch.cat([*(seen.clean[..., where] for where in shared), seen.own], -1)
        added = None if seen.added is None else pad(seen.added, (visible.shape[-1] - seen.added.shape[-1], 0))
        return shared, self._as_scores(visible, added, mask)

    def _once(self, name: str, value: Any, sizes: Any, make: Callable[[Any], Any]) -> Any:
        # Layers of one kind share their arguments, so one packing a forward and kind is enough. The value is
        # kept beside its packing, so that its id is not used again.
        key = (name, id(value), sizes, tuple(id(part) for part in self.active))
        if key not in self._memo:
            self._memo[key] = (value, make(value))
        return self._memo[key][1]

    def _columns(self, dim: int, value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, tuple | list):
            return type(value)(self._columns(dim, item) for item in value)
        if value.shape[dim] != self.n:
            raise UnsupportedModelError(f"a per-token argument has shape {tuple(value.shape)} for {self.n} tokens")
        pieces = [value]
        for part in self.active:
            if part.stand_in is not None:
                pieces.append(_column_of_each_row(value, dim, part.stand_in.at.to(value.device)))
            pieces.append(value.narrow(dim, self.n - part.queries, part.queries))
        pieces.append(value.narrow(dim, 0, self.padding))
        batch = max(piece.shape[dim - 1] for piece in pieces) if value.ndim >= 1 - dim else 1
        if batch > 1:
            pieces = [piece.expand(*piece.shape[: dim - 1], batch, *piece.shape[dim:]) for piece in pieces]
        return torch.cat(pieces, dim)

    def _boolean(self, kv_length: int, kv_offset: int, mask: Any) -> Tensor:
        if mask is None:
            return masks.causal(self.n, self.past, kv_length, kv_offset, self.twins[0].own.device)
        if isinstance(mask, Tensor) and mask.ndim == 4:
            return mask if mask.dtype == torch.bool else mask == 0
        if isinstance(mask, Tensor) and mask.ndim == 2:  # flash attention's: which keys are no padding
            real = pad(mask.bool(), (0, kv_length - mask.shape[1]))
            return masks.causal(self.n, self.past, kv_length, kv_offset, mask.device) & real[:, None, None]
        raise UnsupportedModelError(
            f"attention mask of kind {type(mask).__name__}; load the model with "
            "attn_implementation='sdpa', 'eager' or 'flash_attention_2'"
        )

    def _mask(self, kv_length: int, kv_offset: int, mask: Any) -> Tensor:
        columns = [(part.stream.columns, part.queries) for part in self.active]
        packed, added = masks.packed(self._boolean(kv_length, kv_offset, mask), columns, self.past, kv_offset)
        packed = torch.cat([packed, packed[:, :, : self.padding]], 2)
        if added is not None:
            added = torch.cat([added, added[:, :, : self.padding]], 2)
        return self._as_scores(packed, added, mask)

    def _as_scores(self, seen: Tensor, added: Tensor | None, like: Tensor | None) -> Tensor:
        boolean = like is None or like.ndim == 2 or like.dtype == torch.bool
        if boolean and added is None:
            return seen
        dtype = self.dtype if like is None or boolean else like.dtype
        scores = torch.zeros_like(seen, dtype=dtype) if added is None else added.to(dtype)
        return scores.masked_fill(~seen, torch.finfo(dtype).min)

    def kv_sizes(self, index: int) -> tuple[int, int]:
        """Clean keys that layer `index` will see, and the column of the first."""
        layers = [] if self.cache is None else self.cache.layers
        if index >= len(layers) or isinstance(layers[index], Rider):
            return self.past + self.n, 0
        length, offset = layers[index].get_mask_sizes(self.n)
        return int(length), int(offset)


def _column_of_each_row(value: Tensor, dim: int, at: Tensor) -> Tensor:
    """One column of `value`, another in each row where it has rows, kept as a dimension of one.

    Args:
        value: shape (..., batch or 1, columns, ...), columns at `dim`; or without a batch.
        dim: negative.
        at: shape (batch,).
    """
    if value.ndim < 1 - dim:
        return value.index_select(dim, at[:1])
    after = value.shape[dim:][1:]
    rows = value.expand(*value.shape[: dim - 1], len(at), *value.shape[dim:])
    index = at.view(-1, *(1,) * -dim).expand(*value.shape[: dim - 1], len(at), 1, *after)
    return rows.gather(dim, index)


class PackedCache:
    """Stands in for the model's cache in one packed layer call: clean columns go to it, a twin's own beside it.

    Args:
        step: the forward.
        index: the layer.
        apart: whether its attention runs each stream by itself, and so wants the clean keys alone.

    Attributes:
        updated: whether the layer has used it.
        clean: the clean keys and values that its queries may see.
        own: by stream, its own.
        given: what the layer got.
    """

    def __init__(self, step: Step, index: int, apart: bool) -> None:
        self._step, self._index, self._apart = step, index, apart
        self.updated = False
        self.clean: Pair
        self.own: list[Pair] = []
        self.given: Pair | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._step.cache, name)

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Pair:
        """Keep the [clean | twins ...] columns where each belongs, and return what attention is to be given.

        Args:
            keys, values: shape (batch, heads, width, head width).
            layer_idx: the layer that calls.
            args, kwargs: handed on to the model's cache.
        """
        step, at = self._step, self._step.n
        if layer_idx != self._index:
            raise UnsupportedModelError(f"decoder layer {self._index} writes the cache of layer {layer_idx}")
        self.updated = True
        clean = keys[:, :, :at], values[:, :, :at]
        self.clean = clean if step.cache is None else step.cache.update(*clean, layer_idx, *args, **kwargs)
        for part in step.active:
            own = keys[:, :, at : at + part.rows], values[:, :, at : at + part.rows]
            at += part.rows
            if step.cache is not None:
                own = part.kept(layer_idx).update(*own)
            elif part.given is not None:
                before = part.given.layers[layer_idx]
                own = torch.cat([before[0], own[0]], 2), torch.cat([before[1], own[1]], 2)
            self.own.append(own)
        seen = [self.clean, *self.own]
        self.given = (
            self.clean if self._apart else (torch.cat([k for k, _ in seen], 2), torch.cat([v for _, v in seen], 2))
        )
        return self.given

    def plain_weights(self, weights: Tensor) -> Tensor:
        """The clean stream's part of attention weights, shape (batch, heads, queries, keys)."""
        if self._apart:
            return weights
        return weights[:, :, : self._step.n, : weights.shape[3] - sum(k.shape[2] for k, _ in self.own)]


def on(value: Tensor | None, like: Tensor) -> Tensor:
    """A stream's states on the device of `like`: layers may be spread over several."""
    assert value is not None
    return value if value.device == like.device else value.to(like.device)


def is_suffix(states: Tensor, normed: Tensor) -> bool:
    """Whether `states` is a slice of the last columns of `normed`; compares memory and not values."""
    if states.shape[0] != normed.shape[0] or states.shape[1] > normed.shape[1]:
        return False
    suffix = normed[:, normed.shape[1] - states.shape[1] :]
    return states.data_ptr() == suffix.data_ptr() and states.stride() == suffix.stride()
