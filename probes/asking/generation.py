"""Short answers by greedy generation: from the clean stream, from a reference, or from their contrast."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from probes.asking.scoring import normalised
from tccd.decoder import find_decoder
from tccd.decoding.config import Rule
from tccd.decoding.huggingface import Contrast
from tccd.engine import Reference, Session, Step


class ReferenceSession(Session):
    """Decodes from one reference alone; its tokens are fed to the clean stream, which it needs the prefix of."""

    def combine_logits(self, step: Step, clean: Tensor, others: list[Tensor]) -> Tensor:
        """The reference's; before its first column both streams are one."""
        return torch.cat([clean[:, : clean.shape[1] - others[0].shape[1]], others[0]], 1)


@torch.no_grad()
def generate_tokens(
    model: Any,
    inputs: dict[str, Any],
    max_new_tokens: int,
    references: Sequence[Reference] = (),
    rule: Rule | None = None,
    weights: Sequence[float] = (1.0,),
) -> Tensor:
    """Continue a batch of prompts greedily.

    Args:
        model: the model.
        inputs: a batch, left padded.
        max_new_tokens: at most so many.
        references: none continues from the clean stream.
        rule: settings of the contrast with the references; None continues from the only one of them alone.
        weights: of each reference.

    Returns:
        The new tokens, shape (batch, at most max_new_tokens).
    """
    # Greedy means greedy: a checkpoint's own penalties would be a second, unrecorded correction.
    how: dict[str, Any] = {
        "do_sample": False,
        "num_beams": 1,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
    }
    alone: AbstractContextManager[Any] = nullcontext()
    if references and rule is not None:
        how["custom_generate"] = Contrast(model, references, weights=weights, rule=rule)
    elif references:
        alone = ReferenceSession(find_decoder(model), tuple(references)).active()
    with alone:
        tokens = model.generate(**inputs, **how, max_new_tokens=max_new_tokens, disable_compile=True)
    return tokens[:, inputs["input_ids"].shape[1] :]


def generate(
    processor: Any,
    model: Any,
    inputs: dict[str, Any],
    max_new_tokens: int,
    references: Sequence[Reference] = (),
    **door: Any,
) -> list[str]:
    """`generate_tokens` as normalised texts, one a row."""
    tokens = generate_tokens(model, inputs, max_new_tokens, references, **door)
    return [normalised(text) for text in processor.batch_decode(tokens, skip_special_tokens=True)]
