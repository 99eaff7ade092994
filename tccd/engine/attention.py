"""Attention of a packed layer call: the model's own for the clean columns, and once more for each stream.

transformers' models look their attention up in one table, by the name that their config gives. While a model is
installed the function under its name in that table asks first whether a packed layer call runs in this thread.

A layer is asked once whether it goes through the table with the keys, the values and the mask that it was given.
If so, each stream runs by itself, over the keys that it may see and no others, and the clean columns by the call
that they would have had. If not, all run in one call under one mask, as any attention can.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextvars import Context, ContextVar, Token
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tccd.decoder import Decoder
from tccd.engine.arguments import with_cache
from tccd.engine.packing import PackedCache, Pair, Step
from tccd.engine.streams import StreamPart
from tccd.engine.support import within_prompt
from tccd.errors import UnsupportedModelError

_running: ContextVar[PackedAttention | None] = ContextVar("tccd_attention", default=None)

#: Names in transformers' table that ask us first: the function that stood there, whether it was the table's own
#: or an override, and how many installed models need it.
_asked: dict[str, tuple[Callable[..., Any], bool, int]] = {}
_lock = threading.Lock()

#: By model, whether a kind of layers goes through the table, under a name in it.
_through: weakref.WeakKeyDictionary[nn.Module, dict[tuple[type, str], bool]] = weakref.WeakKeyDictionary()


def dispatch_attention(decoder: Decoder) -> Callable[[], None]:
    """Have transformers' table ask us under the name of a model's attention; returns what undoes it."""
    name = attention_name(decoder)
    with _lock:
        if name not in ALL_ATTENTION_FUNCTIONS:  # eager attention is no entry of it
            return lambda: None
        if name not in _asked:
            original = ALL_ATTENTION_FUNCTIONS[name]
            _asked[name] = original, name in ALL_ATTENTION_FUNCTIONS._local_mapping, 0
            ALL_ATTENTION_FUNCTIONS[name] = _dispatched(original)
        original, was_override, count = _asked[name]
        _asked[name] = original, was_override, count + 1
    return lambda: _release(name)


def _release(name: str) -> None:
    with _lock:
        original, was_override, count = _asked[name]
        _asked[name] = original, was_override, count - 1
        if count > 1:
            return
        del _asked[name]
        if was_override:
            ALL_ATTENTION_FUNCTIONS[name] = original
        else:
            del ALL_ATTENTION_FUNCTIONS[name]


def _dispatched(original: Callable[..., Any]) -> Callable[..., Any]:
    def attention(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        call = _running.get()
        return original(module, *args, **kwargs) if call is None else call.run(original, module, *args, **kwargs)

    return attention


def runs_apart(
    decoder: Decoder, index: int, name: str, forward: Callable[..., Any], clean: Tensor, kwargs: Any
) -> bool:
    """Whether a layer takes its attention from transformers' table, so that each stream can run by itself.

    Asked of the layer itself, once per model and kind of layer: it runs a prompt alone. Flash attention takes no
    mask for all streams, so there a layer is trusted to, and refused if it does not.

    Args:
        decoder: the model's parts.
        index: the layer.
        name: of the model's attention, by `attention_name`.
        forward: the layer's forward.
        clean, kwargs: what it is called with for a prompt, by name.
    """
    if is_flash(name) or name not in ALL_ATTENTION_FUNCTIONS:
        return is_flash(name)
    known, key = _through.setdefault(decoder.model, {}), (type(decoder.layers[index]), name)
    if key not in known:
        known[key] = Context().run(_goes_through, decoder, index, forward, clean, kwargs)
    return known[key]


def _goes_through(decoder: Decoder, index: int, forward: Callable[..., Any], clean: Tensor, kwargs: Any) -> bool:
    model: Any = decoder.model
    step = Step(0, clean.shape[1], [], DynamicCache(config=model.config.get_text_config()))
    cache = PackedCache(step, index, False)
    alone = with_cache(within_prompt(kwargs, clean.shape[1]), cache)
    with PackedAttention(step, cache, index, alone.get("attention_mask"), False, "") as attention:
        forward(clean, **alone)
    return attention.seen


def attention_name(decoder: Decoder) -> str:
    """What a model's config calls its attention."""
    model: Any = decoder.model
    return str(getattr(model.config.get_text_config(), "_attn_implementation", None))


def is_flash(name: str) -> bool:
    """Whether it is one of the flash-attention packages, by their names in transformers."""
    return name.startswith("flash_attention_")


class PackedAttention:
    """The attention of one packed layer call, while it is entered.

    Args:
        step: the forward.
        cache: what the layer was given as its cache.
        index: the layer.
        mask: the mask that it was given.
        apart: whether each stream runs by itself.
        name: of the attention in transformers' table.

    Attributes:
        seen: whether the layer's attention came by with what it was given.
    """

    def __init__(
        self, step: Step, cache: PackedCache, index: int, mask: Tensor | None, apart: bool, name: str
    ) -> None:
        self._step, self._cache, self._mask, self._apart = step, cache, mask, apart
        self._sizes = step.kv_sizes(index)
        self._flash = is_flash(name)
        self._token: Token[PackedAttention | None]
        self.seen = False

    def __enter__(self) -> PackedAttention:
        self._token = _running.set(self)
        return self

    def __exit__(self, *error: object) -> None:
        _running.reset(self._token)

    def run(self, original: Callable[..., Any], module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Run an attention function of transformers' table, for packed columns where it is the layer's.

        Args:
            original: the function.
            module, args, kwargs: what it is called with: query, keys and values of shape (batch, heads, columns,
                head width) first, and the mask.
        """
        if not self._is_mine(*args, **kwargs):
            return original(module, *args, **kwargs)
        self.seen = True
        if not self._apart:
            return original(module, *args, **kwargs)
        query, keys, values, mask = _of_call(*args, **kwargs)
        kwargs = {name: value for name, value in kwargs.items() if name not in _NAMES}
        at = self._step.n
        positions = kwargs.get("position_ids")
        plain = kwargs | ({"position_ids": positions[..., :at]} if isinstance(positions, Tensor) else {})
        if original is sdpa_attention_forward and at == 1 and query.device.type == "cpu":
            # transformers' own call leaves grouped heads to torch, which takes several times as long on a CPU.
            clean, weights = grouped_attention(query[:, :, :1], keys, values, mask, kwargs.get("scaling")), [None]
        else:
            clean, *weights = original(module, query[:, :, :at], keys, values, mask, **plain)
        found = [clean]
        for part, own in zip(self._step.active, self._cache.own, strict=True):
            found.append(self._stream(module, query[:, :, at : at + part.rows], part, own, kwargs))
            at += part.rows
        found.append(clean.new_zeros(len(clean), self._step.padding, *clean.shape[2:]))
        return torch.cat(found, 1), *weights

    def _is_mine(self, *args: Any, **kwargs: Any) -> bool:
        query, keys, values, mask = _of_call(*args, **kwargs)
        given, columns = self._cache.given, self._step.width
        return (
            len(args) <= len(_NAMES)
            and given is not None
            and keys is given[0]
            and values is given[1]
            and query.shape[2] == columns
            and (mask is self._mask or _is_same(mask, self._mask))
            and not any(
                isinstance(value, Tensor) and columns in value.shape
                for name, value in kwargs.items()
                if name not in (*_NAMES, "position_ids")
            )
        )

    def _stream(
        self,
        module: nn.Module,
        query: Tensor,
        part: StreamPart,
        own: Pair,
        kwargs: dict[str, Any],
    ) -> Tensor:
        window = kwargs.get("sliding_window") if self._flash else None
        shared, mask = self._step.mask_of(self._sizes, self._mask, window, part)
        pieces = [[one[:, :, where] for one in self._cache.clean] for where in shared]
        keys, values = (torch.cat(some, 2) for some in zip(*pieces, own, strict=True))
        for name in ("softcap", "s_aux"):
            if self._flash and kwargs.get(name) is not None:
                raise UnsupportedModelError(
                    f"{type(module).__name__} gives flash attention {name!r}, which an erased stream's attention "
                    "does not take; load the model with attn_implementation='eager'"
                )
        return grouped_attention(query, keys, values, mask.to(query.device), kwargs.get("scaling"))


_NAMES = ("query", "key", "value", "attention_mask")


def _of_call(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
    return tuple(args[at] if at < len(args) else kwargs.get(name) for at, name in enumerate(_NAMES))


def _is_same(one: Any, other: Any) -> bool:
    """Whether two masks are views of the same memory."""
    return (
        isinstance(one, Tensor)
        and isinstance(other, Tensor)
        and (one.data_ptr(), one.shape, one.stride()) == (other.data_ptr(), other.shape, other.stride())
    )


def grouped_attention(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor:
    """Attention of several query heads to each key head, without a copy of the keys for each of them.

    Args:
        query: shape (batch, heads, queries, width).
        keys, values: shape (batch, key heads, keys, width); `heads` is a multiple of `key heads`, and those that
            share a key head stand together.
        mask: boolean, or added to the scores; shape (batch or 1, 1, queries, keys). None where all is seen.
        scale: of the scores; None for 1 / sqrt(width).

    Returns:
        Shape (batch, queries, heads, width), as transformers' attention functions.
    """
    batch, heads, queries, width = query.shape
    shared = keys.shape[1]
    group = heads // shared
    query = query.reshape(batch, shared, group * queries, width)
    mask = None if mask is None else mask.repeat(1, 1, group, 1)
    found = scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)
    return found.reshape(batch, heads, queries, -1).transpose(1, 2)
