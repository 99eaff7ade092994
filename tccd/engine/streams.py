"""Second streams beside a clean one: which columns differ, and the keys and values kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from tccd.engine.masks import Columns
from tccd.engine.reference import Reference
from tccd.errors import ModalityError, UnsupportedModelError
from tccd.modality import ModalityMap


@dataclass
class Stream:
    """One reference over one sequence.

    Attributes:
        reference: what it does otherwise than the clean stream.
        columns: the columns that it runs itself.
    """

    reference: Reference
    columns: Columns


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

    def __deepcopy__(self, memo: dict[str, Any]) -> ErasedLayer:
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
        where: of those, which are replaced, shape (batch, queries); None for none.
        own: of those, which are own columns of the row, shape (batch, queries).
        answers: of those, which a contrast may act at: own columns that a next token is asked of.
        layers: decoder layer -> kept keys and values.
        hidden: states of the last layer that ran, shape (batch, queries, hidden).
        now: column after the forward's last one.
    """

    stream: Stream
    queries: int
    where: Tensor | None
    own: Tensor
    answers: Tensor
    now: int
    layers: dict[int, ErasedLayer] = field(default_factory=dict)
    hidden: Tensor | None = None

    @property
    def first(self) -> int:
        """The first column that it runs."""
        return self.now - self.queries

    def depart(self, clean: Tensor, found: dict[Any, Tensor]) -> None:
        """Start the stream from the clean states that it shares.

        Args:
            clean: shape (batch, n, hidden).
            found: what streams that depart at the same place share; see `Reference.states`.
        """
        own = clean[:, clean.shape[1] - self.queries :]
        if self.queries and self.where is not None:
            states = self.stream.reference.states(own, self.first, found)
            own = torch.where(self.where.to(own.device)[..., None], states, own)
        self.hidden = own

    def follow(self, layer: int, added: Tensor) -> Tensor:
        """What the model adds to the stream's states before a layer, where it added `added` to all clean ones."""
        return self.stream.reference.added(layer, added[:, added.shape[1] - self.queries :], self.first)


def begin(references: tuple[Reference, ...], modalities: ModalityMap) -> list[Part]:
    """Lay out the streams of a prompt.

    Args:
        references: prepared for it.
        modalities: of the prompt.

    Raises:
        ModalityError: no row has an image, so there is nothing to contrast with.
        ConfigError: a reference names a segment that its modality does not have.
    """
    if not bool(modalities.has_vision.any()):
        raise ModalityError(
            "no row of this batch has a vision token, so there is no image for the text to compete with; "
            "decode text-only prompts without TCCD"
        )
    parts = []
    n = modalities.real.shape[-1]
    # A next token is asked of the tail, and of the last column where the tail is empty.
    asked = modalities.tail.clone()
    asked[:, -1] = modalities.real[:, -1]
    for reference in references:
        layout = reference.layout(modalities)
        first = min(int(layout.start.min()), n)
        where = None if layout.replaced is None else layout.replaced[:, first:]
        stream = Stream(reference, Columns(layout.start, first, layout.hidden))
        parts.append(_part(stream, n - first, n, where, asked[:, first:]))
    return parts


def resume(owner: object, references: tuple[Reference, ...], cache: Cache, past: int, ids: Tensor) -> list[Part]:
    """Pick up the streams that ride on a cache.

    Args:
        owner: whoever began them.
        references: the owner's.
        cache: the model's cache, with `past` columns.
        past: columns in the cache.
        ids: the new token ids, shape (batch, n).

    Raises:
        UnsupportedModelError: the cache was filled without the owner, or for another batch.
    """
    if not references:
        return []
    kept = erased_layers(cache)
    if not kept or any(layer.owner is not owner for layer in kept):
        raise UnsupportedModelError(
            f"past_key_values holds {past} columns that were computed without this TCCD, so the erased "
            "stream has no keys and values for them; pass the whole prompt without past_key_values"
        )
    batch, n = ids.shape
    parts: list[Part] = []
    for index in range(len(references)):
        mine = {layer.layer: layer for layer in kept if layer.index == index}
        stream = next(iter(mine.values())).stream
        if stream.columns.start.shape[0] != batch:
            raise UnsupportedModelError(
                f"past_key_values was filled for {len(stream.columns.start)} rows, this forward has {batch}"
            )
        part = _part(stream, n, past + n, None, None)
        if stream.reference.replaces_generated:
            part.where = part.own
        part.layers = mine
        parts.append(part)
    return parts


def _part(stream: Stream, queries: int, now: int, where: Tensor | None, asked: Tensor | None) -> Part:
    start = stream.columns.start
    position = torch.arange(now - queries, now, device=start.device)
    own = position[None] >= start[:, None]
    return Part(stream, queries, where, own, own if asked is None else own & asked, now)
