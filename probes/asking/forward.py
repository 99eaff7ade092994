"""Next-token logits of the clean stream and of many erased ones, in as few forwards as memory allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from tccd.data import Sample
from tccd.decoder import Decoder, first_tensor
from tccd.engine import Erasure, Session, Step
from tccd.inputs import check_context, encode

#: Streams of one forward hold at most about this many columns for each clean one: memory grows with them, and the
#: clean columns run once more for each further forward.
COLUMNS = 8.0


@dataclass(frozen=True)
class Streams:
    """One batch under every erasure.

    Attributes:
        clean: next-token logits, shape (batch, vocabulary).
        erased: the same of each erased stream.
        moved: by erasure, the sum over replaced positions of the displacement's norm.
        replaced: by erasure, the number of replaced positions.
    """

    clean: Tensor
    erased: list[Tensor]
    moved: list[float]
    replaced: list[int]


class _Collector(Session):
    """Keeps the next-token logits of every stream, and how far each was moved."""

    clean: Tensor
    erased: list[Tensor]

    def __init__(self, decoder: Decoder, erasures: tuple[Erasure, ...]) -> None:
        super().__init__(decoder, erasures)
        self.moved, self.replaced = [0.0] * len(erasures), [0] * len(erasures)

    def run_layer(
        self, index: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        output = super().run_layer(index, forward, args, kwargs)
        assert self.step is not None
        for number, part in enumerate(self.step.parts):
            if part.stream.reference.layer == index and part.queries:
                assert part.hidden is not None
                before, after = first_tensor(output)[:, -part.queries :][part.where], part.hidden[part.where]
                self.moved[number] = float((after.float() - before.float()).norm(dim=-1).double().sum())
                self.replaced[number] = len(before)
        return output

    def combine_logits(self, step: Step, clean: Tensor, erased: list[Tensor]) -> Tensor:
        self.clean = clean[:, -1]
        # A stream that owns no column of the longest row is the clean one.
        self.erased = [e[:, -1] if e.shape[1] else clean[:, -1] for e in erased]
        return clean


def encode_samples(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    images: Sequence[Image] | None = None,
    new_tokens: int = 0,
) -> dict[str, Any]:
    """A batch of prompts, left padded, where the model is and in its precision.

    Args:
        model: the model.
        processor: its processor.
        samples: one question a row.
        images: shown instead of the samples' own, one a row.
        new_tokens: tokens that each answer may have.

    Raises:
        DataError: an image can't be read, or a prompt with its image is longer than the model's context; names
            the sample.
    """
    shown = [s.image for s in samples] if images is None else images
    inputs = encode(processor, [[image] for image in shown], [s.prompt for s in samples])
    check_context(model.config, inputs, [f"sample {s.id}" for s in samples], new_tokens)
    # BatchFeature.to changes the precision of floating tensors alone.
    return dict(inputs.to(model.device, model.dtype))


@torch.no_grad()
def run_streams(decoder: Decoder, inputs: dict[str, Any], erasures: Sequence[Erasure]) -> Streams:
    """Run a batch of prompts cleanly and under every erasure.

    Args:
        decoder: the model's parts.
        inputs: a batch, left padded.
        erasures: one stream each.

    Raises:
        ConfigError: an erasure's layer is out of range.
        UnsupportedModelError: the engine is not exact for this model.
    """
    options = {"use_cache": False, "logits_to_keep": 1}
    if not erasures:
        return Streams(decoder.model(**inputs, **options).logits[:, -1], [], [], [])
    found: dict[int, tuple[Tensor, float, int]] = {}
    for group in _groups(erasures):
        session = _Collector(decoder, tuple(erasures[i] for i in group))
        with session.active():
            decoder.model(**inputs, **options)
        found |= dict(zip(group, zip(session.erased, session.moved, session.replaced, strict=True), strict=True))
    erased, moved, replaced = zip(*(found[i] for i in range(len(erasures))), strict=True)
    return Streams(session.clean, list(erased), list(moved), list(replaced))


def _groups(erasures: Sequence[Erasure]) -> list[list[int]]:
    """Erasures that share a forward: a text stream has few columns, a vision stream nearly all of them."""
    groups: list[list[int]] = []
    room = 0.0
    for i in sorted(range(len(erasures)), key=lambda i: (erasures[i].modality, erasures[i].layer)):
        columns = 0.15 if erasures[i].modality == "text" and erasures[i].segment != "system" else 1.0
        if columns > room:
            groups.append([])
            room = COLUMNS
        groups[-1].append(i)
        room -= columns
    return groups
