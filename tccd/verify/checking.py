"""transformers' half of `verify`: two whole forwards and a hook, along the tokens that vLLM chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tccd.centroids.bank import CentroidBank
from tccd.decoder import find_decoder, first_tensor, replace_first
from tccd.decoding.config import TCCDConfig
from tccd.decoding.contrast import contrast
from tccd.decoding.vllm.settings import PREFIX
from tccd.inputs import encode
from tccd.loading import Loaded, load_model
from tccd.modality import vision_token_ids
from tccd.verify.answering import Ask, Reply
from tccd.verify.asks import Prepared

#: Below it a log-probability is none: an implausible token's, which vLLM gets far below and transformers at -inf.
NOTHING = -5000.0


@dataclass(frozen=True)
class Compared:
    """One generated token of a reply, compared with transformers.

    Attributes:
        largest: largest difference of a log-probability.
        typical: median difference.
        equal: whether transformers' likeliest token is the one that vLLM chose.
        contrasted: whether TCCD decides on this step.
        broken: the typical difference that a broken stream would show, by its kind.
    """

    largest: float
    typical: float
    equal: bool
    contrasted: bool
    broken: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Checked:
    """A reply against transformers.

    Attributes:
        steps: one a token.
        prompt_equal: whether both saw the same prompt tokens; there are no steps if not.
        gap: how near two centroids came to being as near, as a share of the row's norm: below rounding no two
            computations need to agree.
    """

    steps: list[Compared]
    prompt_equal: bool
    gap: float


def check(
    model: str, prepared: Prepared, asked: Sequence[tuple[Ask, Reply]], trust_remote_code: bool
) -> list[Checked]:
    """Every reply against two whole forwards of transformers along the reply's own tokens.

    They are in fp32 whatever vLLM's dtype. Two engines of one half precision round plain logits alike, and a
    combination of them not: plain requests would show less noise than TCCD must have.
    """
    loaded = load_model(model, dtype="float32", trust_remote_code=trust_remote_code)
    vectors = CentroidBank.load(prepared.bank).tensors["text", prepared.layer]
    centroids = vectors.double().to(loaded.model.device)
    return [_check(loaded, centroids, prepared.layer, request, reply) for request, reply in asked]


@torch.no_grad()
def _check(loaded: Loaded, centroids: Tensor, layer: int, request: Ask, reply: Reply) -> Checked:
    model, processor = loaded
    device = model.device
    inputs = encode(processor, [request.images], [request.prompt]).to(device, model.dtype)
    prompt = inputs["input_ids"].shape[1]
    if inputs["input_ids"][0].tolist() != reply.prompt:
        return Checked([], False, 0.0)
    vision = set(vision_token_ids(model.config))
    # A vision token without an image means nothing; a model that was never trained may generate one.
    tokens = reply.tokens[: next((i + 1 for i, t in enumerate(reply.tokens) if t in vision), None)]
    more = torch.tensor([tokens[:-1]], dtype=torch.long, device=device)
    batch = {**inputs, "input_ids": torch.cat([inputs["input_ids"], more], 1)}
    for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0), ("token_type_ids", 0)):
        if name in batch:
            batch[name] = torch.cat([batch[name], torch.full_like(more, value, dtype=batch[name].dtype)], 1)
    ids = batch["input_ids"][0].tolist()
    tail = next((i + 1 for i in range(len(ids) - 1, -1, -1) if ids[i] in vision), len(ids))

    def logits(erasure: BruteForce | None = None, end: int | None = None) -> Tensor:
        handle = None
        if erasure is not None:

            def hook(_module: Any, _args: Any, output: Any) -> Any:
                hidden = first_tensor(output).clone()
                hidden[0, tail:end] = erasure(hidden[0, tail:end])
                return replace_first(output, hidden)

            handle = find_decoder(model).layers[layer].register_forward_hook(hook)
        try:
            return model(**batch, use_cache=False).logits[0, prompt - 1 :].float()
        finally:
            if handle is not None:
                handle.remove()

    clean = logits()
    chosen = list(zip(reply.logprobs, tokens, strict=False))
    if request.extra is None:
        wanted = clean.log_softmax(-1)
        return Checked(
            [_compared(top, wanted[i], token, False) for i, (top, token) in enumerate(chosen)], True, 1.0
        )
    config = TCCDConfig(**{name.removeprefix(PREFIX): value for name, value in request.extra.items()})

    def decided(erased: Tensor) -> Tensor:
        combined = contrast(clean, erased, config)[0]
        if config.tokens == "first":
            combined = torch.cat([combined[:1], clean[1:]])
        return combined.log_softmax(-1)

    erasure = BruteForce(centroids, config.alpha_interp)
    wanted = decided(logits(erasure))
    broken = {
        "no contrast": clean.log_softmax(-1),
        "other centroids": decided(logits(BruteForce(centroids, config.alpha_interp, shift=1))),
        "generated tokens not erased": decided(logits(BruteForce(centroids, config.alpha_interp), prompt)),
    }
    steps = []
    for i, (top, token) in enumerate(chosen):
        contrasted = config.tokens == "all" or i == 0
        steps.append(_compared(top, wanted[i], token, contrasted, {name: b[i] for name, b in broken.items()}))
    return Checked(steps, True, erasure.gap)


class BruteForce:
    """Replacement by definition: every distance, in fp64. Remembers the closest call between two centroids.

    Args:
        centroids: shape (K, hidden), fp64.
        alpha_interp: what is kept of a row's offset from its centroid.
        shift: take the centroid so many places after the nearest: a broken erasure.
    """

    def __init__(self, centroids: Tensor, alpha_interp: float, shift: int = 0) -> None:
        self.centroids, self.alpha_interp, self.shift, self.gap = centroids, alpha_interp, shift, 1.0

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows of shape (n, hidden), replaced, in their dtype."""
        out = rows.clone()
        for i, row in enumerate(rows):
            x = row.double()
            distances = (self.centroids - x).norm(dim=-1)
            if len(distances) > 1:
                first, second = distances.sort().values[:2].tolist()
                self.gap = min(self.gap, (second - first) / float(x.norm()))
            mu = self.centroids[(int(distances.argmin()) + self.shift) % len(distances)]
            out[i] = (mu + self.alpha_interp * (x - mu)).to(rows.dtype)
        return out


def difference(found: Sequence[float], wanted: Sequence[float]) -> tuple[float, float]:
    """Largest and median difference of log-probabilities; what neither side gives any probability is left out."""
    a, b = torch.tensor([list(found), list(wanted)], dtype=torch.float64).clamp(min=2 * NOTHING)
    there = (a >= NOTHING) | (b >= NOTHING)
    off = (a - b)[there].abs()
    return float(off.max()), float(off.median())


def _compared(
    found: dict[int, float], wanted: Tensor, token: int, contrasted: bool, broken: dict[str, Tensor] | None = None
) -> Compared:
    at = list(found)
    right = wanted[at].tolist()
    largest, typical = difference(list(found.values()), right)
    shown = {name: difference(other[at].tolist(), right)[1] for name, other in (broken or {}).items()}
    return Compared(largest, typical, int(wanted.argmax()) == token, contrasted, shown)
