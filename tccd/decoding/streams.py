"""Erased streams beside a clean one: what is erased, which columns differ, and the keys and values kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from tccd.decoding.masks import Columns
from tccd.errors import ModalityError, UnsupportedModelError
from tccd.modality import Modality, ModalityMap

#: Start of a row that a stream leaves alone: beyond any sequence.
NEVER = 2**62


@dataclass(frozen=True)
class Erasure:
    """What the second stream has erased.

    Attributes:
        layer: decoder layer whose output is replaced.
        replace: rows of hidden states, shape (..., hidden), to their erased form, the same shape and dtype.
        modality: "text" or "vision".
        segment: one of `tccd.modality.SEGMENTS[modality]`; None takes the first.
        spare: how many of each prompt's last positions are left as they are: 1 spares the one that answers.
    """

    layer: int
    replace: Callable[[Tensor], Tensor]
    modality: Modality = "text"
    segment: str | None = None
    spare: int = 0

    @property
    def erases_generated(self) -> bool:
        """Whether generated tokens are replaced too: of all segments, only the whole tail holds them."""
        return self.modality == "text" and self.segment in (None, "all") and not self.spare


@dataclass
class Stream:
    """One erased stream over one sequence.

    Attributes:
        erasure: what is erased.
        columns: the columns that differ from the clean stream.
    """

    erasure: Erasure
    columns: Columns

    @classmethod
    def begin(cls, erasure: Erasure, where: Tensor) -> Stream:
        """Lay out a stream whose replaced positions in the prompt are `where`, shape (batch, sequence).

        A text tail that is still empty starts where the next token will stand.
        """
        width = where.shape[-1]
        start = torch.where(where.any(-1), where.int().argmax(-1), NEVER)
        return cls(erasure, Columns(start=start, first=min(int(start.min()), width)))


class ErasedLayer(DynamicLayer):
    """Keys and values of one erased stream's own columns at one decoder layer.

    It rides at the end of `cache.layers`, so that whatever reorders, crops or copies the cache does the same
    to it; `detach` takes it out again.
    """

    # What a cache says of itself it asks of all its layers: these answers leave it to the model's own. A static
    # cache that seemed dynamic would get no mask over its unfilled columns.
    is_compileable = True
    is_croppable = True
    supports_early_init = False

    def __init__(self, owner: object, index: int, layer: int, stream: Stream) -> None:
        super().__init__()
        self.owner = owner
        self.index = index
        self.layer = layer
        self.stream = stream

    def __deepcopy__(self, memo: dict) -> ErasedLayer:
        twin = ErasedLayer(self.owner, self.index, self.layer, self.stream)
        twin.__dict__.update({k: v.clone() if isinstance(v, Tensor) else v for k, v in self.__dict__.items()})
        return twin

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As a plain layer that holds every column."""
        return self.stream.columns.first + self.get_seq_length() + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last columns; a positive number, the legacy form, is the whole length to keep."""
        if tokens_to_remove > 0:
            length = self.stream.columns.first + self.get_seq_length()
            tokens_to_remove = min(0, tokens_to_remove - length)
        if tokens_to_remove:
            super().crop(tokens_to_remove)


def erased_layers(cache: Cache | None) -> list[ErasedLayer]:
    """The erased layers riding on a cache."""
    return [] if cache is None else [layer for layer in cache.layers if isinstance(layer, ErasedLayer)]


def detach(cache: Cache) -> None:
    """Leave a cache with the model's own layers only."""
    cache.layers[:] = [layer for layer in cache.layers if not isinstance(layer, ErasedLayer)]


@dataclass
class Part:
    """One stream in one forward.

    Attributes:
        stream: the stream.
        queries: how many of the forward's last columns it runs.
        where: of those, which are replaced, shape (batch, queries); None means all own columns.
        own: of those, which are own columns of the row, shape (batch, queries).
        layers: decoder layer -> kept keys and values.
        hidden: states of the last layer that ran, shape (batch, queries, hidden).
    """

    stream: Stream
    queries: int
    where: Tensor
    own: Tensor
    layers: dict[int, ErasedLayer] = field(default_factory=dict)
    hidden: Tensor | None = None

    def erase(self, clean: Tensor) -> None:
        """Start the stream from a layer's clean output, shape (batch, n, hidden)."""
        tail = clean[:, clean.shape[1] - self.queries :]
        if self.queries:
            tail = torch.where(self.where[..., None], self.stream.erasure.replace(tail), tail)
        self.hidden = tail


def begin(erasures: tuple[Erasure, ...], modalities: ModalityMap) -> list[Part]:
    """Lay out the streams of a prompt.

    Raises:
        ModalityError: no row has an image, so there is nothing to contrast with the text.
        ConfigError: an erasure names a segment that its modality does not have.
    """
    if not bool(modalities.has_vision.any()):
        raise ModalityError(
            "no row of this batch has a vision token, so there is no image for the text to compete with; "
            "decode text-only prompts without TCCD"
        )
    parts = []
    n = modalities.real.shape[-1]
    for erasure in erasures:
        where = modalities.segment(erasure.modality, erasure.segment)
        if erasure.spare:
            where = where & (modalities.real.flip(-1).cumsum(-1).flip(-1) > erasure.spare)
        stream = Stream.begin(erasure, where)
        if erasure.erases_generated:
            # A prompt that ends with the image has an empty tail: its stream starts with the first new token.
            start = torch.where(modalities.has_vision, stream.columns.start.clamp(max=n), NEVER)
            stream = Stream(erasure, Columns(start, min(int(start.min()), n)))
        queries = n - stream.columns.first
        parts.append(_part(stream, queries, n, where[:, n - queries :]))
    return parts


def resume(owner: object, erasures: tuple[Erasure, ...], cache: Cache, past: int, ids: Tensor) -> list[Part]:
    """Pick up the streams that ride on a cache.

    Args:
        owner: whoever began them.
        erasures: what the owner erases.
        cache: the model's cache, with `past` columns.
        past: columns in the cache.
        ids: the new token ids, shape (batch, n).

    Raises:
        UnsupportedModelError: the cache was filled without the owner, or for another batch.
    """
    if not erasures:
        return []
    kept = erased_layers(cache)
    if not kept or any(layer.owner is not owner for layer in kept):
        raise UnsupportedModelError(
            f"past_key_values holds {past} columns that were computed without this TCCD, so the erased "
            "stream has no keys and values for them; pass the whole prompt without past_key_values"
        )
    batch, n = ids.shape
    parts: list[Part] = []
    for index, erasure in enumerate(erasures):
        mine = {layer.layer: layer for layer in kept if layer.index == index}
        stream = next(iter(mine.values())).stream
        if stream.columns.start.shape[0] != batch:
            raise UnsupportedModelError(
                f"past_key_values was filled for {len(stream.columns.start)} rows, this forward has {batch}"
            )
        # Of a segment that ends with the prompt, new tokens belong to the stream and are not replaced.
        where = None if erasure.erases_generated else torch.zeros_like(ids, dtype=torch.bool)
        part = _part(stream, n, past + n, where)
        part.layers = mine
        parts.append(part)
    return parts


def _part(stream: Stream, queries: int, now: int, where: Tensor | None) -> Part:
    start = stream.columns.start
    position = torch.arange(now - queries, now, device=start.device)
    own = position[None] >= start[:, None]
    return Part(stream, queries, own if where is None else where, own)
