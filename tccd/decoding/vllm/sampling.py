"""From two streams to the logits that vLLM samples from.

After the model vLLM takes the post-norm states of the rows that a token is sampled from and calls the model's
`compute_logits`; what comes back goes through penalties, grammars and sampling. `ContrastingHead` stands in the
place of `compute_logits`, so that all of these see contrasted logits. Rows of plain requests pass unchanged.

Where the rule is linear the two states are combined and the head runs once. Otherwise it runs on both, in one
call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tccd.decoding.config import TCCDConfig
from tccd.decoding.contrast import combine, contrast
from tccd.decoding.vllm import objects
from tccd.decoding.vllm.batch import Chunk
from tccd.errors import TCCDError

#: What an implausible token loses. Finite, where transformers has minus infinity: a grammar may forbid every
#: plausible token, and the clean stream then ranks the others. Its probability is 0 in fp32 all the same.
IMPLAUSIBLE = 1e4


class ContrastingHead:
    """Stands where the model's `compute_logits` was.

    The first call after a step with erased rows is for the rows that a token is sampled from: their logits are
    contrasted. Later calls of the step (prompt log-probabilities) are of the clean stream.

    Args:
        model: whose `compute_logits` maps post-norm states to logits.
        language: its language model.
    """

    def __init__(self, model: Any, language: Any) -> None:
        head = getattr(language, "logits_processor", None)
        #: Soft-capped logits are not linear in the states: both streams then go through the head.
        self.linear = head is not None and getattr(head, "soft_cap", 0) is None
        self._compute = objects.checked("logits", model)
        self.pending: tuple[tuple[Chunk, ...], Tensor] | None = None
        objects.put("logits", model, self)

    def expect(self, chunks: Sequence[Chunk], erased: Tensor) -> None:
        """Keep the erased stream's post-norm states for the next call, shape (requests, hidden)."""
        if self.pending is not None:
            raise TCCDError("TCCD in vLLM: a step's logits were never computed; refusing to go on")
        self.pending = tuple(chunks), erased

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
        """Logits of the states, those of TCCD requests contrasted; shape (rows, vocabulary)."""
        if self.pending is None:
            return self._compute(hidden_states, *args, **kwargs)
        (chunks, erased), self.pending = self.pending, None
        kept = [i for i, chunk in enumerate(chunks) if chunk.contrasts]
        by_state = [i for i in kept if self.linear and not chunks[i].tail.settings.config.needs_logits]
        if by_state:
            at = [chunks[i].index for i in by_state]
            strength = torch.tensor([[chunks[i].strength] for i in by_state], device=erased.device)
            # In fp32 before the head: one rounding, where two products combined have two.
            combined = combine(hidden_states[at], erased[by_state], strength)
            hidden_states = hidden_states.index_copy(
                0, torch.tensor(at, device=erased.device), combined.to(hidden_states.dtype)
            )
        by_logits = sorted(set(kept) - set(by_state))
        if not by_logits:
            return self._compute(hidden_states, *args, **kwargs)
        rows = len(hidden_states)
        both = self._compute(torch.cat([hidden_states, erased[by_logits]]), *args, **kwargs)
        if both is None:  # another rank samples
            return None
        clean, other = both[:rows].float(), both[rows:].float()
        for row, i in enumerate(by_logits):
            index = chunks[i].index
            clean[index] = decided(clean[index], other[row], chunks[i].tail.settings.config)
        return clean


def decided(clean: Tensor, erased: Tensor, config: TCCDConfig) -> Tensor:
    """`contrast`, but implausible tokens lie far below the others instead of at minus infinity, (vocabulary,)."""
    combined, _ = contrast(clean, erased, config)
    if config.beta == 0:
        return combined
    dropped = combined.isneginf() & ~clean.isneginf()
    floor = clean - clean.max() + combined.max() - IMPLAUSIBLE
    return torch.where(dropped, floor, combined)
