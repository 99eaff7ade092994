"""A reference: what the same model would say without something. What a contrast is taken with.

A session asks each of its references for a *part* of every forward. There are three kinds, by where a part's
logits come from:

- a twin (`tccd.engine.streams`): columns of its own ride behind the clean ones in the layers above where it
  departs;
- an early exit (`tccd.engine.exits`): states that the clean stream has anyway, taken to the head from a lower
  layer;
- a shadow (`tccd.engine.shadow`): the model's own forward a second time, on a prompt of other words.

Adding a reference is a subclass of one of these; the session knows none of them by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache

from tccd.decoder import Decoder
from tccd.modality import ModalityMap

#: In a layer's place: before the first one, where there is nothing yet but the embeddings.
EMBEDDINGS = -1


class Part(ABC):
    """One reference in one forward.

    Attributes:
        queries: how many of the forward's last columns it has logits for.
        answers: of those, which a contrast may act at, boolean, shape (batch, queries).
    """

    queries: int
    answers: Tensor

    def after(self, layer: int, clean: Tensor, found: dict[Any, Tensor]) -> None:  # noqa: B027 - most have nothing to do
        """Told of what a decoder layer gave.

        Args:
            layer: its index; `EMBEDDINGS` for what the first one is given.
            clean: the clean states, shape (batch, n, hidden).
            found: what references that depart after this layer have worked out, by a key of their own.
        """

    def states(self, m: int, norm: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Normed states that the head has to see, each of shape (batch, <= m, hidden): its last columns.

        Args:
            m: columns that get logits.
            norm: the model's final norm.
        """
        return []

    @abstractmethod
    def logits(self, clean: Tensor, found: list[Tensor]) -> Tensor:
        """The reference's logits, shape (batch, <= m, vocabulary), of its last columns.

        Args:
            clean: the clean stream's, shape (batch, m, vocabulary).
            found: the head's output for each of `states`.
        """

    def riders(self, num_layers: int) -> list[Any]:
        """Layers that have to ride at the end of the model's cache, each a `Rider`.

        Args:
            num_layers: of the decoder.
        """
        return []


class Rider:
    """A layer of ours at the end of a model's cache, where whatever happens to the cache happens to it too.

    Attributes:
        owner: the session that put it there.
        number: of its reference among the session's.
    """

    owner: object
    number: int


def riders(cache: Cache | None) -> list[Any]:
    """The riders on a cache."""
    return [] if cache is None else [layer for layer in cache.layers if isinstance(layer, Rider)]


def detach(cache: Cache) -> None:
    """Leave a cache with the model's own layers only."""
    cache.layers[:] = [layer for layer in cache.layers if not isinstance(layer, Rider)]


class Reference(ABC):
    """What the same model would say without something.

    Attributes:
        needs_image: whether a row without an image has nothing to contrast with, and is decoded plainly.
        needs_logits: whether its logits are more than the head of one state a column.
    """

    needs_image: bool = True
    needs_logits: bool = False

    def bind(self, decoder: Decoder) -> Reference:
        """The reference for one model.

        Args:
            decoder: the model's parts.

        Raises:
            ConfigError: the model has no such reference; says why.
        """
        return self

    def prepare(self, decoder: Decoder, given: Mapping[str, Any]) -> Reference:
        """The reference for one batch of prompts, with whatever it has to compute beforehand.

        Args:
            decoder: the model's parts.
            given: the arguments of the model's call by name; `input_ids` has shape (batch, sequence).

        Raises:
            ConfigError: it was made for other prompts.
        """
        return self

    @abstractmethod
    def begin(self, owner: object, number: int, modalities: ModalityMap) -> Part:
        """Its part of the forward that holds the prompts.

        Args:
            owner: the session.
            number: which of the session's references it is.
            modalities: of the prompts.
        """

    @abstractmethod
    def resume(self, owner: object, number: int, cache: Cache, past: int, ids: Tensor) -> Part:
        """Its part of a later forward.

        Args:
            owner: the session.
            number: which of the session's references it is.
            cache: the model's cache, with `past` columns.
            past: columns in the cache.
            ids: the new token ids, shape (batch, n).

        Raises:
            UnsupportedModelError: the cache was filled without the owner, or for another batch.
        """


def asked(modalities: ModalityMap) -> Tensor:
    """Columns that a next token is asked of: the tail, and the last column where the tail is empty.

    Returns:
        Boolean, shape (batch, sequence).
    """
    columns = modalities.tail.clone()
    columns[:, -1] = modalities.real[:, -1]
    return columns
