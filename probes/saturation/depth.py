"""What a plain forward shows of the image by depth: attention, states, and what the head makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, log_softmax

from tccd.decoder import Decoder, attention_of, first_tensor
from tccd.errors import UnsupportedModelError
from tccd.modality import ModalityMap, modality_map, vision_token_ids

#: Statistics of a batch by name: the sum over rows, one a layer.
Sums = dict[str, list[float]]


def image_mass(weights: Tensor, where: ModalityMap) -> dict[str, Tensor]:
    """How much of its attention a row's text gives to the image, at one layer.

    Args:
        weights: of attention, shape (batch, heads, sequence, sequence).
        where: the modalities of the prompts, left padded.

    Returns:
        By name, each of shape (batch,): `tail` and `answer` (the last position), the mean over heads; `tail_top`
        and `answer_top`, the head with most; `tail_uniform` and `answer_uniform`, the share of vision tokens among
        the keys that are seen.
    """
    mass = (weights.float() * where.vision[:, None, None]).sum(-1)
    seen = (weights > 0).any(1)
    share = (seen & where.vision[:, None]).sum(-1) / seen.sum(-1).clamp(min=1)
    tail = where.tail.float()
    by_head = (mass * tail[:, None]).sum(-1) / tail.sum(-1).clamp(min=1)[:, None]
    answer = mass[:, :, -1]
    return {
        "tail": by_head.mean(1),
        "tail_top": by_head.amax(1),
        "tail_uniform": (share * tail).sum(-1) / tail.sum(-1).clamp(min=1),
        "answer": answer.mean(1),
        "answer_top": answer.amax(1),
        "answer_uniform": share[:, -1],
    }


def divergence(clean: Tensor, other: Tensor) -> Tensor:
    """KL(clean || other) in nats of two rows of logits, shape (..., vocabulary) -> (...)."""
    p, q = log_softmax(clean.float(), -1), log_softmax(other.float(), -1)
    return (p.exp() * (p - q)).sum(-1).clamp(min=0)


@torch.no_grad()
def by_depth(decoder: Decoder, inputs: dict[str, Any]) -> Sums:
    """One forward of a batch with eager attention; each layer's weights are reduced before the next one runs.

    Args:
        decoder: the model's parts.
        inputs: a batch, left padded.

    Returns:
        Sums over rows, by layer: what `image_mass` gives; `cosine_vision` and `cosine_text`, of a position's
        states before and after the layer; `lens_vision` and `lens_answer`, KL from the last layer's logits to
        those that norm and head make of this layer's state.

    Raises:
        UnsupportedModelError: the attention shows no weights.
    """
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    where = modality_map(ids, vision_token_ids(decoder.model.config), mask, has_images=True)
    sums: Sums = {}
    states: list[Tensor] = []

    def add(name: str, rows: Tensor) -> None:
        sums.setdefault(name, []).append(float(rows.double().sum()))

    def weighed(module: Any, args: Any, output: Any) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if not isinstance(weights, Tensor) or weights.ndim != 4:
            raise UnsupportedModelError(f"{type(module).__name__} shows no attention weights, which are measured")
        for name, rows in image_mass(weights, where).items():
            add(name, rows)

    def ran(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        before, after = args[0] if args else kwargs["hidden_states"], first_tensor(output)
        cosine = cosine_similarity(before.float(), after.float(), dim=-1)
        for name, at in (("vision", where.vision), ("text", where.real & ~where.vision)):
            add(f"cosine_{name}", (cosine * at).sum(-1) / at.sum(-1).clamp(min=1))
        states.append(after.detach())

    with _eager(decoder.model), _hooked(decoder, weighed, ran):
        decoder.model(**inputs, use_cache=False, logits_to_keep=1)
    if len(sums.get("tail", ())) != decoder.num_layers:
        raise UnsupportedModelError("not every decoder layer has one attention, whose weights are measured")
    for row in range(len(ids)):  # a row at a time: logits of every vision token are large
        last = _logits(decoder, states[-1][row])
        for layer, state in enumerate(states):
            found = divergence(last, _logits(decoder, state[row]))
            vision = found[where.vision[row]]
            for name, value in (("lens_vision", vision.mean() if len(vision) else found.new_zeros(())),
                                ("lens_answer", found[-1])):  # fmt: skip
                so_far = sums.setdefault(name, [0.0] * len(states))
                so_far[layer] += float(value)
    return sums


def _logits(decoder: Decoder, states: Tensor) -> Tensor:
    return decoder.head(decoder.norm(states))


@contextmanager
def _eager(model: Any) -> Iterator[None]:
    # The language model's alone: a vision tower may run another, and not every one runs eagerly.
    text = model.config.get_text_config()
    before = text._attn_implementation
    text._attn_implementation = "eager"
    try:
        yield
    finally:
        text._attn_implementation = before


@contextmanager
def _hooked(decoder: Decoder, weighed: Callable[..., None], ran: Callable[..., None]) -> Iterator[None]:
    handles = [attention_of(layer).register_forward_hook(weighed) for layer in decoder.layers]
    handles += [layer.register_forward_hook(ran, with_kwargs=True) for layer in decoder.layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
