"""A contrast in transformers: the clean stream and its references, and what their contrast did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from tccd.decoder import Decoder
from tccd.decoding.config import Rule
from tccd.decoding.contrast import combine_all, contrast_all
from tccd.engine.packing import Step
from tccd.engine.reference import Part, Reference
from tccd.engine.session import Session
from tccd.engine.support import check_uncompiled
from tccd.errors import ConfigError, UnsupportedModelError


@dataclass(frozen=True)
class Contrasted:
    """Where contrast acted in one forward.

    Attributes:
        position: column of the first of the logits below in the whole sequence, padding included.
        opened: the gate's opening, shape (batch, columns), the widest of several references; multiply by
            `alpha_cd` for the strength. Zero in a row without an image, where the reference needs one.
    """

    position: int
    opened: Tensor


class ContrastSession(Session):
    """Contrast of the clean stream and some references.

    Args:
        decoder: the model's parts.
        references: what is contrasted with.
        rule: what is made of the logits.
        weights: of each reference.
        prompt_length: columns of the prompt as `generate` hands them to a custom_generate, which keeps the model
            uncompiled; None where the first forward is taken to hold the prompt and nothing else.

    Attributes:
        trace: where contrast acted, one entry a forward.
    """

    def __init__(
        self,
        decoder: Decoder,
        references: Sequence[Reference],
        rule: Rule,
        weights: Sequence[float],
        prompt_length: int | None = None,
    ) -> None:
        # Settings that are plain decoding need no second stream: off means off.
        super().__init__(decoder, () if rule.is_off else tuple(references))
        self.rule = rule
        self.weights = weights
        self.prompt_length = prompt_length
        self.uncompiled = prompt_length is not None  # custom_generate knows the prompt and turns compilation off
        self.trace: list[Contrasted] = []
        self._asks_first = 0

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """As `Session.begin`; remembers which column asks for the first token."""
        super().begin(args, kwargs)
        step = self.step
        if step is not None and not self.uncompiled:
            check_uncompiled(step.cache, next(self.decoder.norm.parameters()).device.type)
        if step is not None and step.prefill:
            self._asks_first = (self.prompt_length or step.n) - 1
        if self.rule.tokens == "first" and kwargs.get("use_cache") is False:
            raise ConfigError("tokens='first' needs use_cache=True: without it every token looks like the first")

    def mask(self, step: Step, part: Part, m: int) -> Tensor:
        """Where contrast with one reference may act in the last m columns of this forward, shape (batch, m)."""
        known = min(m, part.queries)
        own = pad(part.answers[:, part.queries - known :], (m - known, 0))
        if self.rule.tokens == "first":
            if step.prefill and self.prompt_length is None and 1 < m < step.n:
                raise UnsupportedModelError(
                    "tokens='first': the first forward may hold drafted tokens behind the prompt (prompt lookup, "
                    "an assistant); use custom_generate=contrast, which tells them apart"
                )
            position = torch.arange(step.past + step.n - m, step.past + step.n, device=own.device)
            own = own & (position == self._asks_first)
        return own

    def combine_states(self, step: Step, clean: Tensor, others: list[Tensor]) -> Tensor | None:
        """Under a linear head the combination of states gives the combination of logits."""
        if not others:
            return clean
        if self.rule.needs_logits or not self.decoder.linear_logits:
            return None
        whole, allowed = self._aligned(step, clean, others)
        strengths = [
            self.rule.alpha_cd * weight * where[..., None]
            for weight, where in zip(self.weights, allowed, strict=True)
        ]
        mixed = combine_all(clean, whole, strengths)
        acted = torch.stack(allowed).any(0)
        self._record(step, acted.float())
        return torch.where(acted[..., None], mixed.to(clean.dtype), clean)

    def combine_logits(self, step: Step, clean: Tensor, others: list[Tensor]) -> Tensor:
        """The whole rule on logits: gate, combination, plausibility."""
        whole, allowed = self._aligned(step, clean, others)
        mixed, opened = contrast_all(clean, whole, self.rule, self.weights, allowed)
        self._record(step, opened)
        return torch.where(torch.stack(allowed).any(0)[..., None], mixed.to(clean.dtype), clean)

    def _aligned(self, step: Step, clean: Tensor, others: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Each reference's states or logits for all columns of the clean ones, and where contrast may act."""
        m = clean.shape[1]
        whole = [torch.cat([clean[:, : m - other.shape[1]], other.to(clean.device)], 1) for other in others]
        return whole, [self.mask(step, part, m).to(clean.device) for part in step.parts]

    def _record(self, step: Step, opened: Tensor) -> None:
        self.trace.append(Contrasted(step.past + step.n - opened.shape[1], opened.detach()))
