"""A batch of pictures and prompts -> the hidden states of chosen positions at chosen decoder layers, and sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn

from tccd.centroids.vision_mean import VisionSums
from tccd.data.pictures import to_rgb
from tccd.decoder import Decoder, attention_of, first_tensor
from tccd.errors import ConfigError, DataError, UnsupportedModelError
from tccd.inputs import PAPER_PROMPT, check_context, encode
from tccd.modality import SEGMENTS, Modality, ModalityMap, modality_map, vision_token_ids


@dataclass(frozen=True)
class Reading:
    """Which prompts are run, and which of their positions are kept; `harvest` describes each.

    Raises:
        ConfigError: a parameter is out of range.
    """

    prompt: str | None = PAPER_PROMPT
    text_tokens: int = 16
    batch_size: int = 8
    vision: Literal["tokens", "span"] = "tokens"
    max_vision_tokens_per_image: int | None = None
    seed: int = 42
    vision_mean: bool = False

    def __post_init__(self) -> None:
        for name, value, least in (
            ("text_tokens", self.text_tokens, 1),
            ("batch_size", self.batch_size, 1),
            ("seed", self.seed, 0),
            ("max_vision_tokens_per_image", self.max_vision_tokens_per_image, 1),
        ):
            if name == "max_vision_tokens_per_image" and value is None:
                continue
            if type(value) is not int or value < least:
                raise ConfigError(f"{name} is {value!r}; expected an integer of at least {least}")
        if type(self.vision_mean) is not bool:
            raise ConfigError(f"vision_mean is {self.vision_mean!r}; expected True or False")
        if self.vision not in SEGMENTS["vision"]:
            raise ConfigError(f"vision is {self.vision!r}; expected one of {', '.join(SEGMENTS['vision'])}")

    def prompts(self, batch: Sequence[Any]) -> list[str]:
        """What each sample is asked."""
        return [sample.prompt if self.prompt is None else self.prompt for sample in batch]

    def most_rows(self, modality: Modality) -> int | None:
        """Rows that one prompt gives at most; None where only the model knows."""
        return self.text_tokens if modality == "text" else self.max_vision_tokens_per_image


def pictures_of(batch: Sequence[Any]) -> list[Image]:
    """The samples' pictures in RGB, each read once.

    Raises:
        DataError: a sample has no picture, or one that can't be read; names it.
    """
    found = []
    for sample in batch:
        picture = sample.image
        if not isinstance(picture, Image):
            raise DataError(f"sample {sample.id!r} has no image; a harvest needs one a sample")
        found.append(to_rgb(picture, f"of sample {sample.id}"))
    return found


class Read(NamedTuple):
    """What a batch gave.

    Attributes:
        rows: hidden states by name such as `text.12`.
        sums: of what each layer's attention is given for vision tokens, where the vision mean was asked for.
        short_tails: prompts with fewer text tokens than asked for.
        lengths: by modality, how many rows each sample has; rows stand in the samples' order.
    """

    rows: dict[str, Tensor]
    sums: VisionSums | None
    short_tails: int
    lengths: dict[Modality, list[int]]


class Reader:
    """Forward hooks that keep chosen positions of chosen layers, and sum up what attention is given of images.

    Args:
        decoder: of the model.
        processor: of the model.
        wanted: layers by modality.
        how: which positions, and whether to sum up.

    Raises:
        UnsupportedModelError: the vision mean is asked for, and a layer has no attention.
    """

    def __init__(self, decoder: Decoder, processor: Any, wanted: dict[Modality, tuple[int, ...]], how: Reading):
        self._decoder, self._processor, self._wanted, self._how = decoder, processor, wanted, how
        self._vision_ids = vision_token_ids(decoder.model.config)
        self._kept_at = sorted(set().union(*wanted.values()))
        # The forward ends after the last layer whose output is kept, or before the last attention.
        top = decoder.num_layers - 1
        self._last_output = max(self._kept_at, default=-1)
        self._attentions = _attentions(decoder) if how.vision_mean else []
        self._ends_before = top if how.vision_mean and self._last_output < top else None

    def read(self, batch: Sequence[Any], pictures: Sequence[Image], first: int) -> Read:
        """Run a batch.

        Args:
            batch: samples.
            pictures: theirs.
            first: how many samples came before them; with the seed it settles which vision rows are kept.

        Raises:
            DataError: a prompt with its picture is longer than the model's context.
            ModalityError: the vision positions of a prompt can't be told.
        """
        model: Any = self._decoder.model
        encoded = encode(self._processor, [[picture] for picture in pictures], self._how.prompts(batch))
        inputs = {
            name: value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)
            for name, value in encoded.items()
            if isinstance(value, Tensor)
        }
        check_context(model.config, inputs, [f"sample {sample.id}" for sample in batch])
        where = modality_map(inputs["input_ids"], self._vision_ids, inputs.get("attention_mask"), has_images=True)
        chances = [np.random.default_rng([self._how.seed, first + i]) for i in range(len(batch))]
        segments, short = _segments(where, self._how, chances)
        rows, sums = self._forward(inputs, segments, where.vision)
        lengths: dict[Modality, list[int]] = {
            modality: seen.sum(-1).tolist() for modality, seen in segments.items()
        }
        return Read(rows, sums if self._how.vision_mean else None, short, lengths)

    @torch.no_grad()
    def _forward(
        self, inputs: dict[str, Tensor], segments: dict[Modality, Tensor], vision: Tensor
    ) -> tuple[dict[str, Tensor], VisionSums]:
        rows: dict[str, Tensor] = {}
        sums = VisionSums.zeros(self._decoder.num_layers, self._decoder.hidden_size)
        seen = vision.flatten().nonzero().squeeze(-1)

        def add(layer: int, args: Any, kwargs: Any) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            sums.add(layer, hidden.flatten(0, 1).index_select(0, seen.to(hidden.device)))
            if layer == self._ends_before:
                raise _Done

        def keep(layer: int, output: Any) -> None:
            hidden = first_tensor(output)
            for modality, at in self._wanted.items():
                if layer in at:
                    mask = segments[modality].to(hidden.device)
                    rows[f"{modality}.{layer}"] = hidden[mask].cpu()
            if layer == self._last_output and self._ends_before is None:
                raise _Done

        model, layers = self._decoder.model, self._decoder.layers
        handles = [
            attention.register_forward_pre_hook(
                lambda _module, args, kwargs, layer=layer: add(layer, args, kwargs), with_kwargs=True
            )
            for layer, attention in enumerate(self._attentions)
        ]
        handles += [
            layers[layer].register_forward_hook(lambda _module, _args, output, layer=layer: keep(layer, output))
            for layer in self._kept_at
        ]
        training = model.training
        model.eval()
        try:
            model(**inputs, use_cache=False)
        except _Done:
            pass
        finally:
            for handle in handles:
                handle.remove()
            model.train(training)
        return rows, sums


def _attentions(decoder: Decoder) -> list[nn.Module]:
    try:
        return [attention_of(layer) for layer in decoder.layers]
    except UnsupportedModelError as error:
        raise UnsupportedModelError(
            f"there is no vision mean of this model: {error}. Leave it out (--no-vision-mean)"
        ) from error


class _Done(Exception):
    """Ends a forward pass where nothing more of it is wanted."""


def _segments(
    where: ModalityMap, how: Reading, chances: list[np.random.Generator]
) -> tuple[dict[Modality, Tensor], int]:
    text = where.tail & (where.tail.cumsum(-1) <= how.text_tokens)
    short = int((where.tail.sum(-1) < how.text_tokens).sum())
    seen = where.segment("vision", how.vision).clone()
    most = how.max_vision_tokens_per_image
    if most is not None:
        for row, chance in zip(seen, chances, strict=True):
            at = row.nonzero().squeeze(-1)
            if len(at) > most:
                row[at] = False
                row[at[torch.from_numpy(chance.permutation(len(at))[:most]).to(at.device)]] = True
    return {"text": text, "vision": seen}, short
