"""Streams that are no reference of tccd's: peers by their own definitions, and an oracle of the prior."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask

from eval.peers.mitigv import mitigv_groups
from eval.peers.questions import training
from probes.asking.asked import Asked
from tccd.decoder import find_decoder
from tccd.inputs import encode
from tccd.modality import vision_token_ids

Run = Callable[[Asked], list[Tensor]]

#: How strongly attention to the image is boosted, and whose queries are: the newest token's (PAI), or the tail's.
BOOSTS = (("newest", 0.2), ("newest", 1.0), ("tail", 1.0))
BOOSTED_FROM = 2
"""The first decoder layer whose attention is boosted: that of PAI's released settings for LLaVA."""
PICTURES = 48
"""Of the marginal."""
_BOOSTED = "tccd-eval-boosted"


def groups(model: Any, processor: Any) -> list[tuple[str, tuple[str, ...], Run]]:
    """Name, streams and function of every group."""
    boosts = tuple(f"boosted-{queries}-{alpha}" for queries, alpha in BOOSTS)
    found: list[tuple[str, tuple[str, ...], Run]] = [
        ("dola", ("dola-low", "dola-high"), dola),
        ("boosted", boosts, boosted),
        ("text-only", ("text-only",), lambda asked: [text_only(asked)]),
        ("marginal", ("marginal",), marginal(model, processor)),
    ]
    return found + mitigv_groups(model, processor)


def whole(asked: Asked, inputs: Mapping[str, Any] | None = None) -> Tensor:
    """Next-token logits of the model's own forward, shape (batch, vocabulary).

    Args:
        asked: the batch.
        inputs: what the model takes instead of the batch's own inputs.
    """
    given = asked.inputs if inputs is None else inputs
    return asked.model(**given, use_cache=False, logits_to_keep=1).logits[:, -1]


def text_only(asked: Asked) -> Tensor:
    """The model's own forward on the question alone: no image, no position left free for one."""
    prompts = [sample.prompt for sample in asked.samples]
    return whole(asked, dict(encode(asked.processor, [[]] * len(prompts), prompts)))


def dola(asked: Asked) -> list[Tensor]:
    """DoLa's scores, with its lower and its upper layers as candidates."""
    output = asked.model(**asked.inputs, use_cache=False, logits_to_keep=1, output_hidden_states=True)
    decoder = find_decoder(asked.model)
    states = [hidden[:, -1] for hidden in output.hidden_states]
    n = len(states) - 1
    tied = asked.model.get_input_embeddings().weight is decoder.head.weight
    candidates = {"low": range(2 if tied else 0, n // 2, 2), "high": range(n // 2, n, 2)}
    final = output.logits[:, -1]
    early = (torch.stack([decoder.head(states[i]) for i in layers]) for layers in candidates.values())
    return [dola_scores(final, found) for found in early]


def dola_scores(final: Tensor, premature: Tensor, relative_top: float = 0.1) -> Tensor:
    """DoLa by its own definition (Chuang et al., arXiv 2309.03883, eq. 3 to 5), as its code and transformers'
    have it.

    The candidate whose distribution has the largest Jensen-Shannon divergence from the last layer's is subtracted,
    both as log-probabilities, among tokens that the last layer finds likely. The clean logits are not added, and
    states below the last layer are not normed before the head: tccd's `early_exit` differs in both.

    Args:
        final: logits of the last layer, shape (batch, vocabulary).
        premature: logits of the candidates, shape (candidates, batch, vocabulary).
        relative_top: tokens below this share of the largest probability are left out.

    Returns:
        Scores of shape (batch, vocabulary), minus infinity for tokens that are left out.
    """
    last, early = final.log_softmax(-1), premature.log_softmax(-1)
    middle = ((last.exp() + early.exp()) / 2).log()
    divergence = (last.exp() * (last - middle) + early.exp() * (early - middle)).sum(-1)
    chosen = divergence.argmax(0)
    scores = last - early[chosen, torch.arange(len(last))]
    likely = last >= last.amax(-1, keepdim=True) + torch.log(torch.tensor(relative_top))
    return scores.masked_fill(~likely, -torch.inf)


def boosted(asked: Asked) -> list[Tensor]:
    """The model's own forward with its attention to the image boosted, by whose queries and by how much.

    PAI (Liu et al., ECCV 2024, arXiv 2407.21771): a score s before the softmax becomes s + alpha |s|.
    """
    ids = asked.inputs["input_ids"]
    vision = torch.isin(ids, torch.tensor(vision_token_ids(asked.model.config)))
    columns = torch.arange(ids.shape[1])
    tail = columns > torch.where(vision, columns, -1).amax(-1, keepdim=True)
    rows = {"newest": (columns == ids.shape[1] - 1).expand_as(tail), "tail": tail}
    found = []
    for queries, alpha in BOOSTS:
        with _boosting(asked.model, vision, rows[queries], alpha):
            found.append(whole(asked))
    return found


@contextmanager
def _boosting(model: Any, vision: Tensor, queries: Tensor, alpha: float) -> Iterator[None]:
    where = queries[:, None, :, None] & vision[:, None, None, :]

    def attention(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor,
        scaling: float,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        if module.layer_idx < BOOSTED_FROM:
            kwargs.pop("is_causal", None)
            return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        groups = query.shape[1] // key.shape[1]
        scores = query @ key.repeat_interleave(groups, 1).transpose(2, 3) * scaling
        scores = torch.where(where, scores + alpha * scores.abs(), scores) + attention_mask
        mixed = scores.softmax(-1) @ value.repeat_interleave(groups, 1)
        return mixed.transpose(1, 2).contiguous(), None

    config = model.config.get_text_config()
    before = config._attn_implementation
    AttentionInterface.register(_BOOSTED, attention)
    AttentionMaskInterface.register(_BOOSTED, eager_mask)
    config._attn_implementation = _BOOSTED
    try:
        yield
    finally:
        config._attn_implementation = before


def marginal(model: Any, processor: Any) -> Run:
    """The mean of a question's logits over 48 train images: what the model expects of any image. An oracle.

    It depends on the question string alone, so each is asked once.
    """
    known: dict[str, Tensor] = {}
    pictures: list[Image.Image] = []

    def one(prompt: str) -> Tensor:
        if not pictures:
            pictures.extend(sample.image for sample in training(PICTURES // 2, one_a_picture=True))
        inputs = encode(processor, [[picture] for picture in pictures], [prompt] * len(pictures))
        return model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1].mean(0)

    def run(asked: Asked) -> list[Tensor]:
        for sample in asked.samples:
            if sample.prompt not in known:
                known[sample.prompt] = one(sample.prompt)
        return [torch.stack([known[sample.prompt] for sample in asked.samples])]

    return run
