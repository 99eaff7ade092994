"""A contrast on the twin engine: one clean stream and one reference, and what their contrast did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tccd.decoder import Decoder
from tccd.decoding.config import Rule
from tccd.decoding.contrast import combine, contrast
from tccd.engine.packing import Step
from tccd.engine.reference import Reference
from tccd.engine.session import Session
from tccd.engine.support import check_uncompiled
from tccd.errors import ConfigError


@dataclass(frozen=True)
class Contrasted:
    """Where contrast acted in one forward.

    Attributes:
        position: column of the first of the logits below in the whole sequence, padding included.
        opened: the gate's opening, shape (batch, columns); multiply by `alpha_cd` for the strength. Zero in a
            row without an image.
    """

    position: int
    opened: Tensor


class ContrastSession(Session):
    """Contrast of the clean stream and a reference.

    Attributes:
        trace: where contrast acted, one entry a forward.
    """

    def __init__(
        self, decoder: Decoder, reference: Reference, rule: Rule, prompt_length: int | None = None
    ) -> None:
        # Settings that are plain decoding need no second stream: off means off.
        super().__init__(decoder, () if rule.is_off else (reference,))
        self.rule = rule
        self.prompt_length = prompt_length
        self.uncompiled = prompt_length is not None  # custom_generate knows the prompt and turns compilation off
        self.trace: list[Contrasted] = []

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """As `Session.begin`; remembers how long the prompt is."""
        super().begin(args, kwargs)
        step = self.step
        if step is not None and not self.uncompiled:
            check_uncompiled(step.cache, next(self.decoder.norm.parameters()).device.type)
        if step is not None and step.prefill and self.prompt_length is None:
            self.prompt_length = step.n
        if self.rule.tokens == "first" and kwargs.get("use_cache") is False:
            raise ConfigError("tokens='first' needs use_cache=True: without it every token looks like the first")

    def mask(self, step: Step, m: int) -> Tensor:
        """Columns where contrast may act, shape (batch, m), for the last m own columns of this forward."""
        part = step.parts[0]
        own = part.answers[:, part.queries - m :]
        if self.rule.tokens == "first":
            assert self.prompt_length is not None
            position = torch.arange(step.past + step.n - m, step.past + step.n, device=own.device)
            own = own & (position == self.prompt_length - 1)
        return own

    def combine_states(self, step: Step, clean: Tensor, erased: list[Tensor]) -> Tensor | None:
        """Fact three: under a linear head the combination of states gives the combination of logits."""
        if not erased:
            return clean
        if self.rule.needs_logits or not self.decoder.linear_logits:
            return None
        m = erased[0].shape[1]
        opened = self.mask(step, m).to(clean.device)
        self._record(step, opened.float())
        tail = clean[:, clean.shape[1] - m :]
        mixed = combine(tail, erased[0], self.rule.alpha_cd).to(clean.dtype)
        return torch.cat([clean[:, : clean.shape[1] - m], torch.where(opened[..., None], mixed, tail)], 1)

    def combine_logits(self, step: Step, clean: Tensor, erased: list[Tensor]) -> Tensor:
        """The whole rule on logits: gate, combination, plausibility."""
        m = erased[0].shape[1]
        tail = clean[:, clean.shape[1] - m :]
        mixed, opened = contrast(tail, erased[0], self.rule)
        allowed = self.mask(step, m).to(clean.device)
        self._record(step, opened * allowed)
        mixed = torch.where(allowed[..., None], mixed.to(clean.dtype), tail)
        return torch.cat([clean[:, : clean.shape[1] - m], mixed], 1)

    def _record(self, step: Step, opened: Tensor) -> None:
        self.trace.append(Contrasted(step.past + step.n - opened.shape[1], opened.detach()))
