"""A routed model the slow way: whole uncached forwards, masks and hooks. Shares no code with `tccd.routing`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.oracle import extend, layers_of, vision_ids_of


def norm_of(model: Any) -> Any:
    module = model.get_decoder()
    while not hasattr(module, "layers"):
        module = getattr(module, "model", None) or module.decoder
    return next(
        getattr(module, name)
        for name in ("norm", "final_layernorm", "embedding_norm", "ln_f")
        if hasattr(module, name)
    )


def lengthen(model: Any, inputs: dict[str, Any], tokens: Tensor) -> dict[str, Any]:
    """The inputs with one more token a row, which is no part of PaliGemma's prefix."""
    longer = extend(inputs, tokens)
    if model.config.model_type == "paligemma":
        longer["token_type_ids"][:, -1] = 1
    return longer


def allowed(mask: Tensor | None, n: int, rows: int) -> Tensor:
    """What each query sees, boolean, shape (rows, n, n)."""
    if mask is None:
        return torch.ones(n, n, dtype=torch.bool).tril().expand(rows, n, n)
    return (mask if mask.dtype == torch.bool else mask == 0)[:, 0].expand(rows, n, n)


def like(seen: Tensor, mask: Tensor | None) -> Tensor:
    """A boolean mask as the model's own kind."""
    if mask is None or mask.dtype == torch.bool:
        return seen
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)


def branch_rows(
    branch: Any, hidden: Tensor, more: tuple[Any, ...], kwargs: dict[str, Any], vision: Tensor
) -> Tensor:
    """The branch's output in the image's places, a row at a time."""
    out = hidden.clone()
    seen = allowed(kwargs.get("attention_mask"), hidden.shape[1], len(hidden))
    for row in range(len(hidden)):
        columns = vision[row].nonzero()[:, 0].tolist()
        if not columns:
            continue

        def some(value: Tensor, row: int = row, columns: list[int] = columns) -> Tensor:
            value = value.expand(*value.shape[:-3], len(hidden), *value.shape[-2:])
            return value[..., row : row + 1, columns, :]

        given = {name: value for name, value in kwargs.items() if "past" not in name and "cache" not in name}
        for name, value in given.items():
            if name.startswith("position_embeddings"):
                given[name] = some(value) if isinstance(value, Tensor) else tuple(map(some, value))
                if branch.settings.positions == "none":
                    cosine, sine = given[name]
                    given[name] = torch.ones_like(cosine), torch.zeros_like(sine)
            elif name == "position_ids" and value is not None:
                given[name] = value.expand(*value.shape[:-2], len(hidden), -1)[..., row : row + 1, columns]
            elif isinstance(value, Tensor) and value.shape[:2] == hidden.shape[:2]:
                given[name] = value[row : row + 1, columns]
        mask = seen[row][columns][:, columns]
        if branch.settings.mask == "full":
            mask = torch.ones_like(mask)
        given["attention_mask"] = like(mask[None, None], kwargs.get("attention_mask"))
        by_place = [one[row : row + 1, columns] if isinstance(one, Tensor) else one for one in more]
        made = branch.layer(hidden[row : row + 1, columns], *by_place, **given)
        out[row, columns] = made[0][0] if isinstance(made, tuple) else made[0]
    return out


def routed_logits(
    model: Any, inputs: dict[str, Any], split: int, stop: int, branch: Any, grad: bool = False
) -> Tensor:
    """Logits of every position of one whole forward of the routed model.

    Args:
        branch: a `Branch`; None where the image's rows wait.
    """
    vision = torch.isin(inputs["input_ids"], torch.tensor(sorted(vision_ids_of(model))))
    layers, n = layers_of(model), inputs["input_ids"].shape[1]
    itself = torch.eye(n, dtype=torch.bool)
    waiting: dict[str, Tensor] = {}

    def before(index: int) -> Any:
        def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            kwargs = dict(kwargs)
            hidden = args[0] if args else kwargs.pop("hidden_states")
            if index == split:
                waiting["rows"] = (
                    hidden if branch is None else branch_rows(branch, hidden, args[1:], kwargs, vision)
                )
            if split <= index < stop:
                mask = kwargs.get("attention_mask")
                seen = allowed(mask, n, len(hidden)) & (~vision[:, None, :] | itself)
                kwargs["attention_mask"] = like(seen[:, None], mask)
            if index == stop:
                hidden = torch.where(vision[..., None], waiting["rows"], hidden)
            return (hidden, *args[1:]), kwargs

        return hook

    hooked = [*layers, norm_of(model)]
    handles = [one.register_forward_pre_hook(before(i), with_kwargs=True) for i, one in enumerate(hooked)]
    try:
        with torch.set_grad_enabled(grad):
            return model(**inputs, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()


def greedy(
    model: Any, inputs: dict[str, Any], split: int, stop: int, branch: Any, steps: int
) -> tuple[Tensor, Tensor]:
    """Tokens (batch, steps) and logits (batch, steps, vocabulary) of greedy decoding."""
    tokens, scores = [], []
    for _ in range(steps):
        scores.append(routed_logits(model, inputs, split, stop, branch)[:, -1].float())
        tokens.append(scores[-1].argmax(-1))
        inputs = lengthen(model, inputs, tokens[-1])
    return torch.stack(tokens, 1), torch.stack(scores, 1)
