"""The cache of a routed model: its routed layers keep text columns only, and answer for all of them."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from tccd.errors import UnsupportedModelError
from tccd.routing.columns import Columns


class TextColumns(DynamicLayer):
    """Keys and values of the columns that went through one routed layer.

    A model asks its cache how long the sequence is and what its masks have to cover; this layer answers as one
    that holds every column. What it really holds says `columns`.

    Args:
        route: what tells two routes apart; a cache filled on one can't go on along another.
        window: of a layer with sliding attention; None where there is none.

    Attributes:
        columns: that it holds, in the order of its keys; None where it is empty.
        total: columns of the whole sequence.
        coming: the columns that it will hold after the layer's next call, and `total` then; set by the session, so
            that a call from elsewhere shows.
    """

    def __init__(self, route: object, window: int | None = None) -> None:
        super().__init__()
        self.route = route
        self.is_sliding = window is not None
        self.sliding_window = window
        self.columns: Columns | None = None
        self.total = 0
        self.coming: tuple[Columns, int] | None = None
        self.record_past = False
        self.keys: Any
        self.values: Any

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keep the coming columns' keys and values, shape (batch, heads, places, head width); returns all."""
        if self.coming is None:
            raise UnsupportedModelError(
                "this cache was filled by a routed model, so some of its layers hold no image; go on with the "
                "same Routed, or pass the whole prompt without past_key_values"
            )
        (columns, total), self.coming = self.coming, None
        found = super().update(key_states, value_states)
        self.columns, self.total = columns, total
        if self.sliding_window is not None and not self.record_past:
            self._keep(slice(max(0, self.keys.shape[2] - self.sliding_window + 1), None))
        return found

    def held_with(self, columns: Columns) -> Columns:
        """The columns that it holds, and those behind them."""
        return columns if self.columns is None else self.columns.then(columns)

    def get_seq_length(self) -> int:
        """Columns of the whole sequence."""
        return self.total

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As a plain layer that holds every column."""
        offset = 0 if self.sliding_window is None else max(0, self.total - self.sliding_window + 1)
        return self.total - offset + query_length, offset

    def activate_past_recording(self) -> None:
        """Keep what has left the window until the next `crop`, as assisted decoding asks."""
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last columns; a positive number, the legacy form, is the whole length to keep."""
        if tokens_to_remove > 0:
            tokens_to_remove = min(0, tokens_to_remove - self.total)
        if self.columns is None:
            return
        if tokens_to_remove:
            if self.sliding_window is not None and self.total >= self.sliding_window and not self.record_past:
                raise UnsupportedModelError("a full sliding window can't be cropped: what left it is gone")
            self._keep(slice(0, self.keys.shape[2] + tokens_to_remove))
            self.total += tokens_to_remove
        if self.sliding_window is not None:
            self._keep(slice(max(0, self.keys.shape[2] - self.sliding_window + 1), None))

    def _keep(self, places: slice) -> None:
        assert self.columns is not None
        self.keys, self.values = self.keys[:, :, places], self.values[:, :, places]
        self.columns = Columns(self.columns.index[:, places], self.columns.real[:, places], self.columns.ragged)

    def reset(self) -> None:
        """Empty it."""
        super().reset()
        self.columns, self.total, self.coming = None, 0, None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows in another order, as beam search asks."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Some of the rows."""
        if self.columns is not None:
            indices = indices.to(self.keys.device)
            super().batch_select_indices(indices)
            mine = self.columns.to(self.keys.device)
            self.columns = Columns(mine.index[indices], mine.real[indices], mine.ragged)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row so many times."""
        if self.columns is not None:
            super().batch_repeat_interleave(repeats)
            index, real = (x.repeat_interleave(repeats, 0) for x in (self.columns.index, self.columns.real))
            self.columns = Columns(index, real, self.columns.ragged)


def route_layers(cache: Cache, start: int, stop: int, route: object) -> None:
    """Put layers that keep text columns only into an empty cache.

    Args:
        cache: the model's.
        start, stop: decoder layers from `start` to before `stop`.
        route: see `TextColumns`.

    Raises:
        UnsupportedModelError: the cache's layers are not plain ones that grow.
    """
    for index in range(start, stop):
        there = cache.layers[index] if index < len(cache.layers) else None
        if there is None and len(cache.layers) < index:
            raise UnsupportedModelError(
                f"{type(cache).__name__} has {len(cache.layers)} layers before decoder layer {index} has run; "
                "expected one for each layer below"
            )
        if there is not None and type(there) not in (DynamicLayer, DynamicSlidingWindowLayer, TextColumns):
            raise UnsupportedModelError(
                f"a cache of {type(there).__name__} lays out room for every column, or keeps them in another "
                "form; routed layers keep fewer, so use transformers' DynamicCache (cache_implementation="
                "'dynamic')"
            )
        layer = TextColumns(route, getattr(there, "sliding_window", None))
        layer.record_past = getattr(there, "record_past", False)
        cache.layers[index : index + 1] = [layer]


def routed_layers(cache: Cache) -> list[TextColumns]:
    """The layers of a cache that keep text columns only."""
    return [layer for layer in cache.layers if isinstance(layer, TextColumns)]


class Memory(NamedTuple):
    """Bytes of keys and values: as the routed model keeps them, and as the plain model would."""

    routed: int
    plain: int

    @property
    def saved(self) -> float:
        """Share of the plain model's bytes that routing does without."""
        return 1 - self.routed / self.plain if self.plain else 0.0


def memory(cache: Cache) -> Memory:
    """What a cache's keys and values take."""
    routed = plain = 0
    for layer in cache.layers:
        if not isinstance(layer.keys, Tensor):
            continue
        held = layer.keys.nbytes + layer.values.nbytes
        routed += held
        if isinstance(layer, TextColumns) and layer.keys.shape[2]:
            window = layer.sliding_window
            columns = layer.total if window is None else min(layer.total, window - 1)
            plain += held // layer.keys.shape[2] * columns
        else:
            plain += held
    return Memory(routed, plain)
