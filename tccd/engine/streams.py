"""Twins: references that run columns of their own behind the clean ones, and the keys and values that they keep.

A twin departs from the clean stream after one layer, or before the first. From there on it runs some columns of
each row itself, its *own*: always the end of the row, since what stands before is the same by causality and is
shared. It says what its states are where it departs (`states`), which columns its own may not see (`hidden`), what
they see instead (`stand_ins`), and what the model adds to its states between two layers (`added`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from tccd.decoder import Decoder
from tccd.engine.masks import Columns, runs
from tccd.engine.reference import EMBEDDINGS, Part, Reference, Rider, asked, riders
from tccd.engine.stand_ins import Given, MeanColumn, StandIns
from tccd.engine.support import check_twin
from tccd.errors import UnsupportedModelError
from tccd.modality import ModalityMap

#: Start of a row that a twin leaves alone: beyond any sequence.
NEVER = 2**62

#: More ranges of columns than this are taken as one.
MOST_RANGES = 8


@dataclass(frozen=True)
class Layout:
    """Where a twin stands in a batch of prompts.

    Attributes:
        start: first own column of each row, shape (batch,); `NEVER` in a row that is left alone, the prompt's
            length where the first generated token is the first own one.
        replaced: where `states` stand in for the clean ones, boolean, shape (batch, sequence); None for nowhere.
        hidden: columns that no own column sees but itself, boolean, shape (batch, sequence); None for none.
        stand_ins: what own columns see beside the rest; None for nothing.
    """

    start: Tensor
    replaced: Tensor | None = None
    hidden: Tensor | None = None
    stand_ins: StandIns | None = None


class Twin(Reference):
    """A reference with columns of its own.

    Attributes:
        layer: the last decoder layer whose output both streams share, but for what is replaced in it; `EMBEDDINGS`
            where nothing but the embeddings is.
        replaces_generated: whether `states` stand in for those of generated tokens too.
    """

    layer: int
    replaces_generated: bool = False

    def bind(self, decoder: Decoder) -> Reference:
        """Refuses one that departs after a layer that has none above it, and layers that can't run it."""
        check_twin(decoder)
        if self.layer != EMBEDDINGS:
            decoder.check_layer(self.layer, last_allowed=False)
        return self

    @abstractmethod
    def layout(self, modalities: ModalityMap) -> Layout:
        """Where it stands in a batch of prompts."""

    def states(self, clean: Tensor, first: int, found: dict[Any, Tensor]) -> Tensor:
        """Its states after `layer`, where they replace the clean ones.

        Args:
            clean: the clean states of some columns, shape (batch, columns, hidden).
            first: the first of these columns.
            found: what other references that depart after this layer have worked out for the same columns, by a
                key of their own; a costly search that several need is kept here.

        Returns:
            The same shape and dtype.
        """
        return clean

    def added(self, layer: int, clean: Tensor, first: int) -> Tensor:
        """What the model adds to its states before `layer` (Qwen3-VL's deepstack).

        Args:
            layer: the layer that runs next.
            clean: what was added to the clean states of some columns, shape (batch, columns, hidden).
            first: the first of these columns.
        """
        return clean

    def begin(self, owner: object, number: int, modalities: ModalityMap) -> StreamPart:
        """As `Reference.begin`."""
        return begin(self, owner, number, modalities)

    def resume(self, owner: object, number: int, cache: Cache, past: int, ids: Tensor) -> StreamPart:
        """As `Reference.resume`."""
        return resume(self, owner, number, cache, past, ids)


@dataclass
class Stream:
    """One twin over one sequence.

    Attributes:
        reference: what it does otherwise than the clean stream.
        columns: the columns that it runs itself, and what it sees of the others.
    """

    reference: Twin
    columns: Columns


class ErasedLayer(Rider, DynamicLayer):
    """Keys and values of one twin's own columns at one decoder layer, those of its stand-ins before them."""

    # What a cache says of itself it asks of all its layers: these answers leave it to the model's own. A static
    # cache that seemed dynamic would get no mask over its unfilled columns.
    is_compileable = True
    is_croppable = True
    supports_early_init = False

    def __init__(self, owner: object, number: int, layer: int, stream: Stream) -> None:
        super().__init__()
        self.owner = owner
        self.number = number
        self.layer = layer
        self.stream = stream

    def __deepcopy__(self, memo: dict[str, Any]) -> ErasedLayer:
        twin = ErasedLayer(self.owner, self.number, self.layer, self.stream)
        twin.__dict__.update({k: v.clone() if isinstance(v, Tensor) else v for k, v in self.__dict__.items()})
        return twin

    def _length(self) -> int:
        return self.stream.columns.first + self.get_seq_length() - self.stream.columns.width

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As a plain layer that holds every column."""
        return self._length() + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last columns; a positive number, the legacy form, is the whole length to keep."""
        if tokens_to_remove > 0:
            tokens_to_remove = min(0, tokens_to_remove - self._length())
        if tokens_to_remove:
            super().crop(tokens_to_remove)


@dataclass
class StreamPart(Part):
    """One twin in one forward.

    Attributes:
        stream: the twin and its columns.
        owner: the session.
        number: which of the session's references it is.
        queries: how many of the forward's last columns it runs.
        where: of those, which are replaced, shape (batch, queries); None for none.
        own: of those, which are own columns of the row, shape (batch, queries).
        answers: of those, which a contrast may act at: own columns that a next token is asked of.
        now: column after the forward's last one.
        layers: decoder layer -> kept keys and values.
        hidden: states of the last layer that ran, shape (batch, rows, hidden).
        stand_in: what the layers run before its own columns, in the forward that holds the prompt.
        given: keys and values that come before its own, in the forward that holds the prompt.
    """

    stream: Stream
    owner: object
    number: int
    queries: int
    where: Tensor | None
    own: Tensor
    answers: Tensor
    now: int
    layers: dict[int, ErasedLayer] = field(default_factory=dict)
    hidden: Tensor | None = None
    stand_in: MeanColumn | None = None
    given: Given | None = None

    @property
    def first(self) -> int:
        """The first column that it runs."""
        return self.now - self.queries

    @property
    def rows(self) -> int:
        """How many rows the layers run for it: its columns, and a stand-in before them."""
        return self.queries + (self.stand_in is not None)

    def after(self, layer: int, clean: Tensor, found: dict[Any, Tensor]) -> None:
        """Start from the clean states that it shares, where it departs."""
        if self.stream.reference.layer != layer:
            return
        own = clean[:, clean.shape[1] - self.queries :]
        if self.queries and self.where is not None:
            states = self.stream.reference.states(own, self.first, found)
            own = torch.where(self.where.to(own.device)[..., None], states, own)
        if self.stand_in is not None:
            own = torch.cat([clean[:, :1], own], 1)  # a row; what its attention is given is set in each layer
        self.hidden = own

    def follow(self, layer: int, added: Tensor) -> None:
        """Take on what the model adds to its states before a layer, where it added `added` to all clean ones."""
        assert self.hidden is not None
        more = self.stream.reference.added(layer, added[:, added.shape[1] - self.queries :], self.first)
        if self.stand_in is not None:
            more = torch.cat([torch.zeros_like(self.hidden[:, :1]), more], 1)
        self.hidden = self.hidden + more

    def states(self, m: int, norm: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Its last columns; they went through the norm with the clean ones."""
        assert self.hidden is not None
        return [self.hidden[:, self.rows - min(m, self.queries) :]]

    def logits(self, clean: Tensor, found: list[Tensor]) -> Tensor:
        """The head's."""
        return found[0]

    def kept(self, layer: int) -> ErasedLayer:
        """Where its keys and values at a layer are kept."""
        if layer not in self.layers:
            self.layers[layer] = ErasedLayer(self.owner, self.number, layer, self.stream)
            if self.given is not None:
                self.layers[layer].update(*self.given.layers[layer])
        return self.layers[layer]

    def riders(self, num_layers: int) -> list[ErasedLayer]:
        """One for each layer that it runs; a tail that is empty so far has empty ones."""
        found = [self.kept(layer) for layer in range(self.stream.reference.layer + 1, num_layers)]
        if self.given is not None:  # the riders hold them now
            self.stream.columns = replace(self.stream.columns, stand_ins=replace(self.given, layers={}))
        return found


def begin(reference: Twin, owner: object, number: int, modalities: ModalityMap) -> StreamPart:
    """Lay out a twin of a prompt.

    Args:
        reference: prepared for it.
        owner: the session.
        number: which of the session's references it is.
        modalities: of the prompt.

    Raises:
        ConfigError: the reference names a segment that its modality does not have.
    """
    n = modalities.real.shape[-1]
    layout = reference.layout(modalities)
    first = min(int(layout.start.min()), n)
    where = None if layout.replaced is None else layout.replaced[:, first:]
    shared = shared_columns(layout.start, layout.hidden, n)
    stream = Stream(reference, Columns(layout.start, first, layout.hidden, layout.stand_ins, shared))
    part = _part(stream, owner, number, n - first, n, where, asked(modalities)[:, first:])
    part.stand_in = layout.stand_ins if isinstance(layout.stand_ins, MeanColumn) else None
    part.given = layout.stand_ins if isinstance(layout.stand_ins, Given) else None
    return part


def shared_columns(start: Tensor, hidden: Tensor | None, n: int) -> tuple[tuple[int, int], ...]:
    """Ranges of columns outside which no query of a stream sees a clean key.

    Args:
        start: first own column of each row, shape (batch,).
        hidden: columns that are hidden from the stream, shape (batch, n); None for none.
        n: columns of the prompt.
    """
    seen = torch.arange(n, device=start.device)[None] < start[:, None]
    if hidden is not None:
        seen = seen & ~hidden
    found = runs(seen.any(0))
    if bool((start == NEVER).any()):  # a row that is left alone goes on to see what is generated
        found = *found[:-1], (found[-1][0] if found else 0, NEVER)
    return found if len(found) <= MOST_RANGES else ((found[0][0], found[-1][1]),)


def resume(reference: Twin, owner: object, number: int, cache: Cache, past: int, ids: Tensor) -> StreamPart:
    """Pick up a twin that rides on a cache; see `Reference.resume`."""
    mine = kept_by(owner, number, cache, past)
    batch, n = ids.shape
    stream = mine[0].stream
    if stream.columns.start.shape[0] != batch:
        raise UnsupportedModelError(
            f"past_key_values was filled for {len(stream.columns.start)} rows, this forward has {batch}"
        )
    part = _part(stream, owner, number, n, past + n, None, None)
    if stream.reference.replaces_generated:
        part.where = part.own
    part.layers = {layer.layer: layer for layer in mine}
    return part


def kept_by(owner: object, number: int, cache: Cache, past: int) -> list[Any]:
    """What rides on a cache for one reference.

    Args:
        owner: the session.
        number: which of its references.
        cache: the model's cache.
        past: columns in it.

    Raises:
        UnsupportedModelError: the cache was filled without the owner.
    """
    kept = riders(cache)
    mine = [layer for layer in kept if layer.number == number]
    if not mine or any(layer.owner is not owner for layer in kept):
        raise UnsupportedModelError(
            f"past_key_values holds {past} columns that were computed without this TCCD, so the erased "
            "stream has no keys and values for them; pass the whole prompt without past_key_values"
        )
    return mine


def _part(
    stream: Stream,
    owner: object,
    number: int,
    queries: int,
    now: int,
    where: Tensor | None,
    asked: Tensor | None,
) -> StreamPart:
    start = stream.columns.start
    position = torch.arange(now - queries, now, device=start.device)
    own = position[None] >= start[:, None]
    return StreamPart(stream, owner, number, queries, where, own, own if asked is None else own & asked, now)
