"""The slow oracle: two whole uncached forwards and a hook, combined. Shares no code with the engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def tail_mask(ids: Tensor, attention: Tensor, vision_ids: set[int]) -> Tensor:
    """Every real token after the row's last vision token, by a plain loop; shape (batch, sequence)."""
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for row in range(ids.shape[0]):
        vision = [i for i, t in enumerate(ids[row].tolist()) if t in vision_ids and attention[row, i]]
        if vision:
            for i in range(vision[-1] + 1, ids.shape[1]):
                mask[row, i] = bool(attention[row, i])
    return mask


class BruteForce:
    """Replacement by definition: every distance, in the open. Remembers the closest call between two centroids.

    The nearest centroid jumps where two are as near, and no two computations agree there: a comparison is fair
    only while `gap` is well above rounding.
    """

    def __init__(self, centroids: Tensor, alpha_interp: float) -> None:
        self.centroids, self.alpha_interp = centroids.double(), alpha_interp
        self.gap = float("inf")

    def __call__(self, rows: Tensor) -> Tensor:
        x = rows.double()
        distance = (x[:, None] - self.centroids[None]).square().sum(-1).sqrt()
        if len(x) and len(self.centroids) > 1:
            nearest = distance.sort(-1).values
            self.gap = min(self.gap, float((nearest[:, 1] - nearest[:, 0]).min()))
        mu = self.centroids[distance.argmin(-1)]
        return (mu + self.alpha_interp * (x - mu)).to(rows.dtype)


def vision_ids_of(model: Any) -> set[int]:
    names = ("image_token_id", "image_token_index", "video_token_id")
    return {i for n in names if (i := getattr(model.config, n, None)) is not None}


def layers_of(model: Any) -> Any:
    """The decoder layers; some families wrap the module that has them."""
    module = model.get_decoder()
    while not hasattr(module, "layers"):
        module = getattr(module, "model", None) or module.decoder
    return module.layers


@torch.no_grad()
def full_logits(
    model: Any, inputs: dict[str, Any], layer: int | None = None, where: Tensor | None = None, replace: Any = None
) -> Tensor:
    """Logits of every position of one whole forward, rows `where` of the layer's output replaced."""
    handle = None
    if layer is not None:

        def hook(module: Any, args: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            changed = hidden.clone()
            changed[where] = replace(hidden[where])
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        handle = layers_of(model)[layer].register_forward_hook(hook)
    try:
        return model(**inputs, use_cache=False).logits
    finally:
        if handle is not None:
            handle.remove()


def extend(inputs: dict[str, Any], tokens: Tensor) -> dict[str, Any]:
    """The inputs with one more token a row."""
    longer = dict(inputs)
    longer["input_ids"] = torch.cat([inputs["input_ids"], tokens[:, None]], 1)
    for name in ("attention_mask", "mm_token_type_ids", "token_type_ids", "moe_mm_token_type_ids"):
        if name in inputs:
            new = torch.full_like(inputs[name][:, :1], 1 if name == "attention_mask" else 0)
            longer[name] = torch.cat([inputs[name], new], 1)
    longer.pop("position_ids", None)
    return longer


def two_streams(model: Any, inputs: dict[str, Any], layer: int, replace: Callable) -> tuple[Tensor, Tensor]:
    """Clean and erased logits of the next token, shape (batch, vocabulary)."""
    attention = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
    where = tail_mask(inputs["input_ids"], attention, vision_ids_of(model))
    clean = full_logits(model, inputs)[:, -1]
    erased = full_logits(model, inputs, layer, where, replace)[:, -1]
    return clean.float(), erased.float()


def greedy(
    model: Any,
    inputs: dict[str, Any],
    layer: int,
    replace: Callable,
    alpha_cd: float,
    steps: int,
    rule: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Tokens (batch, steps) and combined logits (batch, steps, vocabulary) of greedy two-stream decoding."""
    tokens, scores = [], []
    for _ in range(steps):
        clean, erased = two_streams(model, inputs, layer, replace)
        combined = clean + alpha_cd * (clean - erased) if rule is None else rule(clean, erased)
        scores.append(combined)
        tokens.append(combined.argmax(-1))
        inputs = extend(inputs, tokens[-1])
    return torch.stack(tokens, 1), torch.stack(scores, 1)


def greedy_with(
    model: Any,
    inputs: dict[str, Any],
    references: Sequence[Callable[[dict[str, Any]], Tensor]],
    strengths: Sequence[float],
    steps: int,
) -> tuple[Tensor, Tensor]:
    """As `greedy`, each reference's logits, shape (batch, sequence, vocabulary), by any whole forward."""
    tokens, scores = [], []
    for _ in range(steps):
        clean = full_logits(model, inputs)[:, -1].float()
        others = [reference(inputs)[:, -1].float() for reference in references]
        scores.append(clean + sum(a * (clean - other) for a, other in zip(strengths, others, strict=True)))
        tokens.append(scores[-1].argmax(-1))
        inputs = extend(inputs, tokens[-1])
    return torch.stack(tokens, 1), torch.stack(scores, 1)


@torch.no_grad()
def withheld_logits(model: Any, inputs: dict[str, Any], first: int = 0) -> Tensor:
    """Logits of a whole forward in which no position sees a vision position but that position itself, from layer
    `first` on.

    The image's own states stay where they are; nobody reads them.
    """
    ids = inputs["input_ids"]
    vision = torch.isin(ids, torch.tensor(sorted(vision_ids_of(model))))
    n = ids.shape[1]
    itself = torch.eye(n, dtype=torch.bool)

    def hide(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask = kwargs.get("attention_mask")
        if mask is None:
            mask = torch.ones(n, n, dtype=torch.bool).tril()[None, None]
        seen = mask if mask.dtype == torch.bool else mask == 0
        seen = seen & (~vision[:, None, None, :] | itself)
        if mask.dtype != torch.bool:
            seen = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        return args, kwargs | {"attention_mask": seen}

    handles = [layer.register_forward_pre_hook(hide, with_kwargs=True) for layer in layers_of(model)[first:]]
    try:
        return model(**inputs, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()


def _named(module: Any, *names: str) -> Any:
    """The submodule of the first of these names."""
    return next(found for name in names if (found := getattr(module, name, None)) is not None)


@torch.no_grad()
def mean_image_logits(model: Any, inputs: dict[str, Any], mean: Tensor) -> Tensor:
    """Logits of a whole forward in which every vision position is one and the same to each layer's attention.

    It gets the layer's row of `mean`, shape (layers, hidden), for it, and the place of the row's middle one.
    """
    ids = inputs["input_ids"]
    vision = torch.isin(ids, torch.tensor(sorted(vision_ids_of(model))))
    if "attention_mask" in inputs:
        vision = vision & inputs["attention_mask"].bool()
    attentions = [_named(layer, "self_attn", "attention", "attn", "self_attention") for layer in layers_of(model)]

    def moved(value: Tensor) -> Tensor:
        """Positions, shape (..., batch or 1, columns, width), the middle one's at every vision column."""
        value = value.expand(*value.shape[:-3], len(ids), *value.shape[-2:]).clone()
        for row in range(len(ids)):
            columns = vision[row].nonzero()[:, 0].tolist()
            if columns:
                middle = value[..., row, columns[(len(columns) - 1) // 2], :].clone()
                for column in columns:
                    value[..., row, column, :] = middle
        return value

    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        hidden = (args[0] if args else kwargs["hidden_states"]).clone()
        hidden[vision] = mean[attentions.index(module)].to(hidden.dtype)
        kwargs = {k: v for k, v in kwargs.items() if k != "hidden_states"}
        for name in [name for name in kwargs if name.startswith("position_embeddings")]:
            value = kwargs[name]
            kwargs[name] = moved(value) if isinstance(value, Tensor) else tuple(map(moved, value))
        return (hidden,), kwargs

    handles = [one.register_forward_pre_hook(hook, with_kwargs=True) for one in attentions]
    try:
        return model(**inputs, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def exit_logits(model: Any, inputs: dict[str, Any], layers: Sequence[int]) -> Tensor:
    """Logits after lower layers, -1 the embeddings: at each position of the one that is farthest from the last."""
    seen: dict[int, Tensor] = {}
    layers_there = layers_of(model)
    decoder = model.get_decoder()
    while not hasattr(decoder, "layers"):
        decoder = getattr(decoder, "model", None) or decoder.decoder
    norm = _named(decoder, "norm", "final_layernorm", "ln_f")

    def keep(layer: int) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: dict[str, Any], output: Any = None) -> None:
            state = output if layer >= 0 else (args[0] if args else kwargs["hidden_states"])
            seen[layer] = (state[0] if isinstance(state, tuple) else state).clone()

        return hook

    handles = [
        layers_there[layer].register_forward_hook(keep(layer), with_kwargs=True)
        if layer >= 0
        else layers_there[0].register_forward_pre_hook(keep(layer), with_kwargs=True)
        for layer in layers
    ]
    try:
        last = model(**inputs, use_cache=False).logits.float()
    finally:
        for handle in handles:
            handle.remove()
    found = [model.get_output_embeddings()(norm(seen[layer])).float() for layer in layers]
    chosen = found[0].clone()
    for row in range(last.shape[0]):
        for column in range(last.shape[1]):
            p = last[row, column].double().softmax(-1)
            distances = []
            for one in found:
                q = one[row, column].double().softmax(-1)
                middle = (p + q) / 2
                distances.append(float((p * (p / middle).log()).sum() + (q * (q / middle).log()).sum()))
            chosen[row, column] = found[distances.index(max(distances))][row, column]
    return chosen
