"""A reference: what the same model would say without something. The second stream that a contrast is taken with.

A reference departs from the clean stream after one layer, or before the first. From there on it runs some columns
of each row itself, its *own*: always a suffix of the row, since what stands before is the same by causality and
is shared. It says what its states are where it departs (`states`), which columns its own may not see (`hidden`),
and what the model adds to its states between two layers (`added`).

Adding a reference is a subclass of `Reference`; the engine knows none of them by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tccd.decoder import Decoder
from tccd.engine.embeddings import read_embeddings, repeated
from tccd.modality import Modality, ModalityMap

#: `Reference.layer` of one that departs before the first layer.
EMBEDDINGS = -1

#: Start of a row that a reference leaves alone: beyond any sequence.
NEVER = 2**62


@dataclass(frozen=True)
class Layout:
    """Where a reference stands in a batch of prompts.

    Attributes:
        start: first own column of each row, shape (batch,); `NEVER` in a row that is left alone, the prompt's
            length where the first generated token is the first own one.
        replaced: where `states` stand in for the clean ones, boolean, shape (batch, sequence); None for nowhere.
        hidden: columns that no own column sees but itself, boolean, shape (batch, sequence); None for none.
    """

    start: Tensor
    replaced: Tensor | None = None
    hidden: Tensor | None = None


class Reference(ABC):
    """What a second stream does otherwise than the clean one.

    Attributes:
        layer: the last decoder layer whose output both share, but for what is replaced in it; `EMBEDDINGS` where
            nothing but the embeddings is.
        replaces_generated: whether `states` stand in for those of generated tokens too.
    """

    layer: int
    replaces_generated: bool = False

    def prepare(self, decoder: Decoder, ids: Tensor) -> Reference:
        """The reference for one batch of prompts, with whatever it has to compute beforehand.

        Args:
            decoder: the model's parts.
            ids: token ids, shape (batch, sequence).
        """
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


@dataclass(frozen=True)
class Erasure(Reference):
    """A segment of one modality replaced after one layer.

    Attributes:
        layer: decoder layer whose output is replaced.
        replace: rows of hidden states, shape (..., hidden), to their erased form, the same shape and dtype; with a
            `search`, takes what that found as its second argument.
        modality: "text" or "vision".
        segment: one of `tccd.modality.SEGMENTS[modality]`; None takes the first.
        spare: how many of each prompt's last positions are left as they are: 1 spares the one that answers.
        search: rows to what `replace` needs to know of them; erasures with the same one share its outcome.

    Raises:
        ConfigError: the modality has no such segment; raised by `layout`.
    """

    layer: int
    replace: Callable[..., Tensor]
    modality: Modality = "text"
    segment: str | None = None
    spare: int = 0
    search: Callable[[Tensor], Tensor] | None = None

    @property
    def replaces_generated(self) -> bool:  # type: ignore[override]
        """Of all segments, only the whole tail holds generated tokens."""
        return self.modality == "text" and self.segment in (None, "all") and not self.spare

    def layout(self, modalities: ModalityMap) -> Layout:
        """From the first replaced column on."""
        where = modalities.segment(self.modality, self.segment)
        if self.spare:
            where = where & (modalities.real.flip(-1).cumsum(-1).flip(-1) > self.spare)
        start = first_column(where)
        if self.replaces_generated:
            # A prompt that ends with the image has an empty tail: its stream starts with the first new token.
            start = torch.where(modalities.has_vision, start.clamp(max=where.shape[-1]), NEVER)
        return Layout(start, replaced=where)

    def states(self, clean: Tensor, first: int, found: dict[Any, Tensor]) -> Tensor:
        """Replaced."""
        if self.search is None:
            return self.replace(clean)
        key = self.search, first
        if key not in found:
            found[key] = self.search(clean)
        return self.replace(clean, found[key])


@dataclass(frozen=True)
class Withheld(Reference):
    """The image withheld: nothing after it may see a vision position, from the first layer on.

    What was read of the image before the tail (a marker between two tiles, text between two images) runs again
    without it. Positions stay as they are. The outcome is that of the prompt with its vision tokens taken out and
    a gap in its position ids.
    """

    layer: int = EMBEDDINGS

    def layout(self, modalities: ModalityMap) -> Layout:
        """From the first column on that could have read the image."""
        seen = modalities.vision.cumsum(-1) > 0
        n = seen.shape[-1]
        start = first_column(seen & ~modalities.vision & modalities.real).clamp(max=n)
        return Layout(torch.where(modalities.has_vision, start, NEVER), hidden=modalities.vision)


@dataclass(frozen=True)
class OtherImage(Reference):
    """Another picture in the image's place: a blank one, say.

    Attributes:
        inputs: what the model takes for the same prompts with the other pictures, by name: the processor's output.
        embeddings: set by `prepare`: the first layer's input, shape (batch, sequence, hidden).
        additions: set by `prepare`: layer -> what the model adds before it, of the same shape.

    Raises:
        ConfigError: the prompts are not those of the batch; raised by `prepare`.
    """

    inputs: dict[str, Any]
    layer: int = field(default=EMBEDDINGS, init=False)
    embeddings: Tensor | None = None
    additions: dict[int, Tensor] | None = None

    def prepare(self, decoder: Decoder, ids: Tensor) -> OtherImage:
        """Read what the model makes of the other pictures before its first layer, and between layers."""
        times = repeated(self.inputs["input_ids"].to(ids.device), ids)
        embeddings, additions = read_embeddings(decoder, self.inputs)
        return replace(
            self,
            embeddings=embeddings.repeat_interleave(times, 0),
            additions={layer: one.repeat_interleave(times, 0) for layer, one in additions.items()},
        )

    def layout(self, modalities: ModalityMap) -> Layout:
        """From the first vision token on."""
        return Layout(first_column(modalities.vision), replaced=modalities.vision)

    def states(self, clean: Tensor, first: int, found: dict[Any, Tensor]) -> Tensor:
        """The other picture's embeddings."""
        assert self.embeddings is not None
        return self.embeddings[:, first : first + clean.shape[1]].to(clean)

    def added(self, layer: int, clean: Tensor, first: int) -> Tensor:
        """What the model adds for the other picture; what it adds for no picture where that is past."""
        assert self.additions is not None
        assert self.embeddings is not None
        if first >= self.embeddings.shape[1]:
            return clean
        found = self.additions.get(layer)
        return torch.zeros_like(clean) if found is None else found[:, first : first + clean.shape[1]].to(clean)


def first_column(where: Tensor) -> Tensor:
    """The first true column of each row of (batch, sequence); `NEVER` where there is none."""
    return torch.where(where.any(-1), where.int().argmax(-1), NEVER)
