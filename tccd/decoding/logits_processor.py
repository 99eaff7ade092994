"""TCCD as a logits processor, for callers that take nothing else."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from tccd.decoder import Decoder
from tccd.decoding.config import Rule
from tccd.decoding.contrast import contrast_all
from tccd.decoding.session import Contrasted, ContrastSession
from tccd.engine.packing import Step
from tccd.engine.reference import Reference
from tccd.errors import TCCDError, UnsupportedModelError


class WatchingSession(ContrastSession):
    """Leaves the model's logits as they are, and keeps every stream's for a processor.

    It may outlive its `generate` call (an exception's traceback keeps the processor alive), so it disturbs
    nobody: a forward that can't be contrasted runs plainly, and the processor says why if it is asked.

    Attributes:
        seen: next-token logits of the clean stream, shape (batch, vocabulary), of each reference, and by
            reference the rows to contrast, shape (batch,).
        problem: why the last forward could not be contrasted.
        leave: ends the session and leaves the model as it was.
    """

    yields = True

    def __init__(
        self, decoder: Decoder, references: Sequence[Reference], rule: Rule, weights: Sequence[float]
    ) -> None:
        super().__init__(decoder, references, rule, weights)
        self.leave: Callable[[], Any] = self.close
        self.seen: tuple[Tensor, list[Tensor], list[Tensor]] | None = None
        self.problem: TCCDError | None = None

    @property
    def is_idle(self) -> bool:
        """Whether the forward that runs can't be contrasted."""
        return self.step is None

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """As `Session.begin`, but a refusal waits until the processor is asked."""
        self.seen = self.problem = None
        try:
            super().begin(args, kwargs)
        except TCCDError as error:
            self.step, self.problem = None, error

    def run_layer(
        self, index: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """As `Session.run_layer`; after a refusal nothing is left on the model, whoever keeps the processor."""
        try:
            return super().run_layer(index, forward, args, kwargs)
        except TCCDError:
            self.leave()
            raise

    def combine_states(self, step: Step, clean: Tensor, others: list[Tensor]) -> Tensor | None:
        """Ask for every stream's logits."""
        return None if others else clean

    def combine_logits(self, step: Step, clean: Tensor, others: list[Tensor]) -> Tensor:
        """Keep every stream's logits; hand on the clean ones."""
        whole, allowed = self._aligned(step, clean[:, -1:], [other[:, -1:] for other in others])
        self.seen = clean[:, -1].float(), [x[:, -1].float() for x in whole], [x[:, -1] for x in allowed]
        return clean


class TCCDLogitsProcessor(LogitsProcessor):
    """TCCD as a logits processor; made by `TCCD.logits_processor`.

    Right for greedy decoding, sampling and beams, where scores arrive log-softmaxed and leave so. It adds
    `alpha_cd * (clean - reference)` to the scores that earlier processors left, so their masks stay.

    Raises:
        UnsupportedModelError: called without a forward of its model before it in this thread, or for several
            tokens a forward (assisted decoding): use `custom_generate=tccd` there.
    """

    def __init__(self, session: WatchingSession) -> None:
        self._session = session
        context = session.active()
        context.__enter__()
        session.leave = self._close = weakref.finalize(self, _leave, context)

    def close(self) -> None:
        """Stop watching the model."""
        self._close()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Combine, shape (batch, vocabulary) in and out."""
        session = self._session
        if session.problem is not None:
            raise session.problem
        if session.rule.is_off:
            return scores
        if session.seen is None or session.seen[0].shape[0] != scores.shape[0]:
            raise UnsupportedModelError(
                "the TCCD processor saw no forward of its model for these scores: create it in the generate "
                "call, in the thread that generates, or use custom_generate=tccd"
            )
        clean, others, allowed = session.seen
        session.seen = None
        combined, opened = contrast_all(clean, others, session.rule, session.weights, allowed)
        shift = (combined - clean).masked_fill(clean == -math.inf, 0.0).to(scores.device)
        acted = torch.stack(allowed).any(0)
        mixed = scores + torch.where(acted[:, None].to(scores.device), shift, 0.0)
        session.trace.append(Contrasted(input_ids.shape[1] - 1, opened[:, None]))
        normalised = torch.logsumexp(scores, -1).abs().amax() < 1e-3
        return mixed.log_softmax(-1) if bool(normalised) else mixed


def _leave(context: AbstractContextManager[Any]) -> None:
    context.__exit__(None, None, None)
