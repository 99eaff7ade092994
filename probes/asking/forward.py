"""Next-token logits of the clean stream and of many references, in as few forwards as memory allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from tccd.data import Sample
from tccd.decoder import Decoder
from tccd.engine import EarlyExit, Erasure, Layout, MeanImage, OtherPrompt, Reference, Session, Step, Withheld
from tccd.inputs import check_context, encode
from tccd.modality import ModalityMap, modality_map, vision_token_ids

#: Streams of one forward hold at most about this many columns for each clean one: memory grows with them, and the
#: clean columns run once more for each further forward.
COLUMNS = 8.0


@dataclass(frozen=True)
class Streams:
    """One batch under every reference.

    Attributes:
        clean: next-token logits, shape (batch, vocabulary).
        others: the same of each reference.
        moved: by reference, the sum over erased positions of the displacement's norm.
        replaced: by reference, the number of erased positions; 0 for one that is no erasure.
    """

    clean: Tensor
    others: list[Tensor]
    moved: list[float]
    replaced: list[int]


@dataclass
class _Dose:
    """How far an erasure moved states: the sum over positions of the displacement's norm, and their number."""

    moved: float = 0.0
    replaced: int = 0
    where: Tensor | None = None


@dataclass(frozen=True)
class _Watched(Erasure):
    """An erasure that notes how far it moves states in one forward."""

    dose: _Dose = field(default_factory=_Dose)

    def layout(self, modalities: ModalityMap) -> Layout:
        found = super().layout(modalities)
        self.dose.where = found.replaced
        return found

    def states(self, clean: Tensor, first: int, found: dict[Any, Tensor]) -> Tensor:
        erased = super().states(clean, first, found)
        assert self.dose.where is not None
        where = self.dose.where[:, first : first + clean.shape[1]].to(clean.device)
        before, after = clean[where], erased[where]
        self.dose.moved = float((after.float() - before.float()).norm(dim=-1).double().sum())
        self.dose.replaced = len(before)
        return erased


class _Collector(Session):
    """Keeps the next-token logits of every stream."""

    clean: Tensor
    others: list[Tensor]

    def combine_logits(self, step: Step, clean: Tensor, others: list[Tensor]) -> Tensor:
        self.clean = clean[:, -1]
        # A stream that owns no column of the longest row is the clean one.
        self.others = [other[:, -1] if other.shape[1] else clean[:, -1] for other in others]
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
def run_streams(decoder: Decoder, inputs: dict[str, Any], references: Sequence[Reference]) -> Streams:
    """Run a batch of prompts cleanly and under every reference.

    Args:
        decoder: the model's parts.
        inputs: a batch, left padded.
        references: one stream each.

    Raises:
        ConfigError: a reference's layer is out of range.
        UnsupportedModelError: the engine is not exact for this model.
    """
    if not references:
        return Streams(_run(decoder, inputs).logits[:, -1], [], [], [])
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    where = modality_map(ids, vision_token_ids(decoder.model.config), mask, has_images=True)
    doses = [_Dose() for _ in references]
    others: dict[int, Tensor] = {}
    for group in _groups(references, where):
        session = _Collector(decoder, tuple(_watched(references[i], doses[i]) for i in group))
        with session.active():
            # Another prompt goes on in a cache of its own, which is made like the clean stream's.
            _run(decoder, inputs, use_cache=any(isinstance(references[i], OtherPrompt) for i in group))
        others |= dict(zip(group, session.others, strict=True))
    moved, replaced = [dose.moved for dose in doses], [dose.replaced for dose in doses]
    return Streams(session.clean, [others[i] for i in range(len(references))], moved, replaced)


def _run(decoder: Decoder, inputs: dict[str, Any], use_cache: bool = False) -> Any:
    return decoder.model(**inputs, use_cache=use_cache, logits_to_keep=1)


def _watched(reference: Reference, dose: _Dose) -> Reference:
    if not isinstance(reference, Erasure):
        return reference
    return _Watched(**{f.name: getattr(reference, f.name) for f in fields(Erasure)}, dose=dose)


def _groups(references: Sequence[Reference], where: ModalityMap) -> list[list[int]]:
    """References that share a forward, those that depart after the same layer together."""
    columns = [_columns(reference, where) for reference in references]
    groups: list[list[int]] = []
    room = 0.0
    for i in sorted(range(len(references)), key=lambda i: (columns[i], getattr(references[i], "layer", 0))):
        if columns[i] > room:
            groups.append([])
            room = COLUMNS
        groups[-1].append(i)
        room -= columns[i]
    return groups


def _columns(reference: Reference, where: ModalityMap) -> float:
    """Columns that a reference runs for each clean one, at most."""
    n = where.real.shape[-1]
    if isinstance(reference, EarlyExit):
        return 1 / n
    if isinstance(reference, Erasure | MeanImage | Withheld):
        return max(1, n - int(reference.layout(where).start.min())) / n
    return 1.0
