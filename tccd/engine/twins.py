"""The twins: an erasure, the image withheld, a mean image, another image. What a twin is: `streams`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from tccd.decoder import Decoder, attention_of
from tccd.engine.embeddings import beside, read_embeddings, repeated
from tccd.engine.reference import EMBEDDINGS
from tccd.engine.stand_ins import MeanColumn
from tccd.engine.streams import NEVER, Layout, Twin
from tccd.errors import ConfigError
from tccd.modality import Modality, ModalityMap


@dataclass(frozen=True)
class Erasure(Twin):
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
class Withheld(Twin):
    """The image withheld: nothing after it may see a vision position, from the first layer on or above `layer`.

    What was read of the image before the tail (a marker between two tiles, text between two images) runs again
    without it. Positions stay as they are. The outcome is that of the prompt with its vision tokens taken out and
    a gap in its position ids.

    Attributes:
        layer: the last decoder layer in which the image is seen; `EMBEDDINGS` for none.
    """

    layer: int = EMBEDDINGS

    def layout(self, modalities: ModalityMap) -> Layout:
        """From the first column on that could have read the image."""
        return Layout(_behind_an_image(modalities), hidden=modalities.vision)


@dataclass(frozen=True)
class MeanImage(Twin):
    """The mean of many images in each image's place: as many equal vision tokens as the image has.

    At every layer the attention is given, for a vision token, the mean of what it is given for those of many
    images: behind the layer's first norm, so that what they have in common counts and what they differ in does
    not. One column stands for all of a row, where the middle one of them is.

    Attributes:
        mean: what the attention of each layer is given, shape (layers, hidden).

    Raises:
        ConfigError: it is of another width or number of layers than the model; by `bind`.
        UnsupportedModelError: a layer has no attention that could be found; by `bind`.
    """

    mean: Tensor
    layer: int = field(default=EMBEDDINGS, init=False)

    def bind(self, decoder: Decoder) -> MeanImage:
        """Refuses another model's mean besides."""
        super().bind(decoder)
        expected = decoder.num_layers, decoder.hidden_size
        if tuple(self.mean.shape) != expected:
            raise ConfigError(
                f"the mean image has shape {tuple(self.mean.shape)}; expected one state a layer, {expected}: it "
                "was fitted for another model"
            )
        for layer in decoder.layers:
            attention_of(layer)
        return self

    def layout(self, modalities: ModalityMap) -> Layout:
        """From the first column on that could have read the image."""
        vision = modalities.vision
        middle = (vision.cumsum(-1) == (vision.sum(-1, keepdim=True) + 1) // 2) & vision
        column = MeanColumn(self.mean, vision, middle.int().argmax(-1))
        return Layout(_behind_an_image(modalities), hidden=vision, stand_ins=column)


@dataclass(frozen=True)
class OtherImage(Twin):
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

    def prepare(self, decoder: Decoder, given: Mapping[str, Any]) -> OtherImage:
        """Read what the model makes of the other pictures before its first layer, and between layers."""
        ids = given["input_ids"]
        inputs = beside(ids, self.inputs, decoder.model)
        prompts = inputs["input_ids"]
        # Without a cache every forward holds the prompts again, and what was generated behind them.
        more = max(0, ids.shape[1] - prompts.shape[1])
        times = repeated(prompts, ids[:, : ids.shape[1] - more])
        embeddings, additions = read_embeddings(decoder, inputs)

        def whole(one: Tensor) -> Tensor:
            return pad(one.repeat_interleave(times, 0), (0, 0, 0, more))

        return replace(
            self, embeddings=whole(embeddings), additions={layer: whole(one) for layer, one in additions.items()}
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


def _behind_an_image(modalities: ModalityMap) -> Tensor:
    """The first column of each row that could have read an image and is none; the prompt's length for none."""
    seen = modalities.vision.cumsum(-1) > 0
    start = first_column(seen & ~modalities.vision & modalities.real).clamp(max=seen.shape[-1])
    return torch.where(modalities.has_vision, start, NEVER)
