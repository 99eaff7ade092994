"""One forward with erased columns packed behind the clean ones: states, masks, positions, keys and values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers.cache_utils import Cache

from tccd.engine import masks
from tccd.engine.reference import Part, Rider
from tccd.engine.streams import StreamPart
from tccd.errors import UnsupportedModelError


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
        self._packed: Tensor | None = None
        self._clean: Tensor | None = None
        self._memo: dict[tuple[Any, ...], tuple[Any, Any]] = {}
        self._prefixes: dict[int, int] = {}
        self._layer: int | None = None
        self._stood_in: int | None = None

    def activate(self, layer: int | None) -> bool:
        """Pack the twins begun below `layer` (all of them for None) from now on; False if they run no row."""
        self._layer = layer
        self.active = [p for p in self.twins if layer is None or p.stream.reference.layer < layer]
        return any(part.rows for part in self.active)

    def pack(self, clean: Tensor) -> Tensor:
        """States [clean | twins ...], shape (batch, n + rows, hidden), without a copy if they stand so."""
        width = self.n + sum(part.rows for part in self.active)
        if clean is not self._clean:
            self._follow(clean)
        elif self._packed is not None and self._packed.shape[1] == width:
            return self._packed
        return torch.cat([clean, *(on(part.hidden, clean) for part in self.active)], 1)

    def stand_in(self, layer: int, hidden: Tensor | None) -> None:
        """Put into what a layer's attention is given the states of stand-ins that it runs.

        Args:
            layer: its index.
            hidden: shape (batch, n + rows, hidden); changed in place, in rows that nothing else is made of.
        """
        width = self.n + sum(part.rows for part in self.active)
        if hidden is None or hidden.shape[1] != width:
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
        self, index: int, kwargs: dict[str, Any], follows: Callable[[str, bool], bool]
    ) -> dict[str, Any]:
        """The keyword arguments of layer `index` for packed states.

        Args:
            index: the layer.
            kwargs: its arguments for the clean ones.
            follows: told the name of an unknown argument, and whether this is the prompt; says whether it has one
                row a token.

        Raises:
            UnsupportedModelError: a mask that is no 4-D tensor, or what `follows` raises.
        """
        packed = {}
        for name, value in kwargs.items():
            if name == "attention_mask":
                sizes = self._kv_sizes(index)
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

    def streams_apart(self, keys: int) -> list[tuple[int, int, int]]:
        """Of several streams in a prompt, each one's rows, its own keys and the clean keys that any of its rows
        may
        see; none where one stream runs alone.

        Args:
            keys: of the packed call, the streams' own included.
        """
        if not self.prefill or len(self.active) < 2:
            return []
        clean = keys - sum(part.keys for part in self.active)
        if clean != self.n:  # a cache that holds fewer or more columns than the prompt
            return []
        for part in self.active:
            if id(part) not in self._prefixes:  # asked once, as an accelerator has to be waited for
                self._prefixes[id(part)] = min(int(part.stream.columns.start.max()), self.n)
        return [(part.rows, part.keys, self._prefixes[id(part)]) for part in self.active]

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
        batch = max(piece.shape[dim - 1] for piece in pieces) if value.ndim >= 1 - dim else 1
        if batch > 1:
            pieces = [piece.expand(*piece.shape[: dim - 1], batch, *piece.shape[dim:]) for piece in pieces]
        return torch.cat(pieces, dim)

    def _mask(self, kv_length: int, kv_offset: int, mask: Any) -> Tensor:
        if mask is None:
            device = self.twins[0].own.device
            clean = masks.causal(self.n, self.past, kv_length, kv_offset, device)
        elif isinstance(mask, Tensor) and mask.ndim == 4:
            clean = mask if mask.dtype == torch.bool else mask == 0
        else:
            raise UnsupportedModelError(
                f"attention mask of kind {type(mask).__name__}; load the model with "
                "attn_implementation='sdpa' or 'eager'"
            )
        columns = [(part.stream.columns, part.queries) for part in self.active]
        packed, added = masks.packed(clean, columns, self.past, kv_offset)
        boolean = mask is None or mask.dtype == torch.bool
        if boolean and added is None:
            return packed
        dtype = self.dtype if boolean else mask.dtype
        additive = torch.zeros_like(packed, dtype=dtype) if added is None else added.to(dtype)
        return additive.masked_fill_(~packed, torch.finfo(dtype).min)

    def _kv_sizes(self, index: int) -> tuple[int, int]:
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

    Attributes:
        updated: whether the layer has used it.
    """

    def __init__(self, step: Step, index: int) -> None:
        self._step, self._index = step, index
        self.updated = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._step.cache, name)

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Keep the [clean | twins ...] columns where each belongs, and return all that the queries may see.

        Args:
            keys, values: shape (batch, heads, n + rows, head width).
            layer_idx: the layer that calls.
            args, kwargs: handed on to the model's cache.
        """
        step, at = self._step, self._step.n
        if layer_idx != self._index:
            raise UnsupportedModelError(f"decoder layer {self._index} writes the cache of layer {layer_idx}")
        self.updated = True
        clean = keys[:, :, :at], values[:, :, :at]
        seen = [clean if step.cache is None else step.cache.update(*clean, layer_idx, *args, **kwargs)]
        for part in step.active:
            own = keys[:, :, at : at + part.rows], values[:, :, at : at + part.rows]
            at += part.rows
            if step.cache is not None:
                own = part.kept(layer_idx).update(*own)
            elif part.given is not None:
                before = part.given.layers[layer_idx]
                own = torch.cat([before[0], own[0]], 2), torch.cat([before[1], own[1]], 2)
            seen.append(own)
        self._erased_keys = sum(k.shape[2] for k, _ in seen[1:])
        return torch.cat([k for k, _ in seen], 2), torch.cat([v for _, v in seen], 2)

    def plain_weights(self, weights: Tensor) -> Tensor:
        """The clean stream's part of attention weights, shape (batch, heads, queries, keys)."""
        queries = weights.shape[2] - sum(part.rows for part in self._step.active)
        return weights[:, :, :queries, : weights.shape[3] - self._erased_keys]


class CausalFirst(TorchFunctionMode):
    """While on, sdpa of a packed prompt runs as a call for the clean columns, and one for the erased or for each
    of several streams.

    In one call under the packed mask each clean query scores every key, twice the causal kernel's work, and
    streams score each other's keys. Calls under any other mask stay as they are; eager attention makes none.

    Args:
        n: clean columns.
        mask: the packed mask.
        causal: whether its clean part is causal and nothing else.
        streams: of each stream, its rows, how many keys of its own and how many clean keys they may see; none for
            one call for all of them.
    """

    def __init__(
        self, n: int, mask: Tensor, causal: bool = True, streams: Sequence[tuple[int, int, int]] = ()
    ) -> None:
        super().__init__()
        self._n, self._mask, self._causal, self._streams = n, mask, causal, streams

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        ours = func is scaled_dot_product_attention and kwargs.get("attn_mask") is self._mask
        if not ours or len(args) != 3:
            return func(*args, **kwargs)
        n, (query, *seen), mask = self._n, args, self._mask
        first = seen[0].shape[2] - sum(keys for _, keys, _ in self._streams)  # key of the first stream's own
        if self._causal:
            only = kwargs | {"attn_mask": None, "is_causal": True}
            found = [func(query[:, :, :n], *(x[:, :, :n] for x in seen), **only)]
        else:
            only = kwargs | {"attn_mask": mask[:, :, :n, :first]}
            found = [func(query[:, :, :n], *(x[:, :, :first] for x in seen), **only)]
        if not self._streams:
            found.append(func(query[:, :, n:], *seen, **kwargs | {"attn_mask": mask[:, :, n:]}))
        row, own = n, first
        for rows, own_keys, prefix in self._streams:
            keys = [torch.cat([x[:, :, :prefix], x[:, :, own : own + own_keys]], 2) for x in seen]
            under = mask[:, :, row : row + rows]
            under = torch.cat([under[..., :prefix], under[..., own : own + own_keys]], -1)
            found.append(func(query[:, :, row : row + rows], *keys, **kwargs | {"attn_mask": under}))
            row, own = row + rows, own + own_keys
        return torch.cat(found, 2)


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
