"""Short answers by greedy generation: from the clean stream, from a reference, or from their contrast."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from probes.asking.scoring import normalised
from tccd.decoder import Decoder
from tccd.decoding.config import Rule
from tccd.decoding.session import ContrastSession
from tccd.engine import Reference, Session, Step


class ReferenceSession(Session):
    """Decodes from one reference alone; its tokens are fed to the clean stream, which it needs the prefix of."""

    def combine_states(self, step: Step, clean: Tensor, erased: list[Tensor]) -> Tensor:
        """The reference's states; before its first column both streams are one."""
        return torch.cat([clean[:, : clean.shape[1] - erased[0].shape[1]], erased[0]], 1)


@torch.no_grad()
def generate_tokens(
    decoder: Decoder,
    inputs: dict[str, Any],
    max_new_tokens: int,
    reference: Reference | None = None,
    rule: Rule | None = None,
) -> Tensor:
    """Continue a batch of prompts greedily.

    Args:
        decoder: the model's parts.
        inputs: a batch, left padded.
        max_new_tokens: at most so many.
        reference: None continues from the clean stream.
        rule: settings of the contrast with the reference; None continues from the reference alone.

    Returns:
        The new tokens, shape (batch, at most max_new_tokens).
    """
    model: Any = decoder.model
    width = inputs["input_ids"].shape[1]
    session: Session | None = None
    if reference is not None and rule is None:
        session = ReferenceSession(decoder, (reference,))
    elif reference is not None and rule is not None:
        session = ContrastSession(decoder, reference, rule, prompt_length=width)
    # Greedy means greedy: a checkpoint's own penalties would be a second, unrecorded correction.
    greedy = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
    with nullcontext() if session is None else session.active():
        tokens = model.generate(**inputs, **greedy, max_new_tokens=max_new_tokens, disable_compile=True)
    return tokens[:, width:]


def generate(
    processor: Any, decoder: Decoder, inputs: dict[str, Any], max_new_tokens: int, **door: Any
) -> list[str]:
    """`generate_tokens` as normalised texts, one a row."""
    tokens = generate_tokens(decoder, inputs, max_new_tokens, **door)
    return [normalised(text) for text in processor.batch_decode(tokens, skip_special_tokens=True)]
