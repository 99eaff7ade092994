"""TCCD as its reference does it, but cached: two whole forwards a token, one of them under a hook.

Shares no code with `tccd.decoding`: it is what the engine is measured against.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


@torch.no_grad()
def two_pass(
    model: Any,
    inputs: dict[str, Tensor],
    layer: int,
    replace: Callable[[Tensor], Tensor],
    alpha_cd: float,
    steps: int,
    on_token: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """Greedy decoding of a Qwen2.5-VL-like model, clean and erased stream with a cache each.

    Args:
        model: a transformers model whose images stand where `config.image_token_id` does.
        inputs: a prompt, left-padded; input_ids and attention_mask of shape (batch, sequence).
        layer: decoder layer whose output is replaced in the text tail.
        replace: rows of shape (rows, hidden) to their erased form.
        alpha_cd: strength of `clean + alpha_cd * (clean - erased)`.
        steps: tokens to generate.
        on_token: called after every token.

    Returns:
        Tokens (batch, steps) and combined logits (batch, steps, vocabulary).
    """
    vision = inputs["input_ids"] == model.config.image_token_id
    after_vision = (vision.cumsum(-1) == vision.sum(-1, keepdim=True)) & ~vision & vision.any(-1, keepdim=True)
    where = after_vision & inputs["attention_mask"].bool()
    caches = DynamicCache(config=model.config), DynamicCache(config=model.config)
    tokens, logits = [], []
    for _ in range(steps):
        clean = _next_logits(model, inputs, caches[0])
        with _replaced(model.get_decoder().layers[layer], where, replace):
            erased = _next_logits(model, inputs, caches[1])
        logits.append(clean + alpha_cd * (clean - erased))
        tokens.append(logits[-1].argmax(-1))
        inputs = _next_inputs(model, inputs, tokens[-1])
        where = vision.any(-1, keepdim=True)
        on_token()
    return torch.stack(tokens, 1), torch.stack(logits, 1)


def _next_logits(model: Any, inputs: dict[str, Tensor], cache: DynamicCache) -> Tensor:
    return model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].float()


@contextmanager
def _replaced(module: Any, where: Tensor, replace: Callable[[Tensor], Tensor]) -> Any:
    def hook(module: Any, args: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[where] = replace(hidden[where])
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _next_inputs(model: Any, inputs: dict[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:
    attention = torch.cat([inputs["attention_mask"], torch.ones_like(tokens[:, None])], 1)
    # M-RoPE: time, height and width of a text token are its place among the real ones, moved by what its
    # images took less than a position a token. The model remembers that from the prompt.
    position = attention.sum(-1, keepdim=True) - 1 + model.model.rope_deltas
    return {
        "input_ids": tokens[:, None],
        "attention_mask": attention,
        "position_ids": position[None].expand(3, -1, -1),
    }
