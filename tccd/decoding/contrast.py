"""Contrast of a clean stream and a reference: pure functions of tensors, the same for every engine."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tccd.decoding.config import Rule
from tccd.decoding.gates import GATES


def combine(clean: Tensor, reference: Tensor, strength: float | Tensor) -> Tensor:
    """`clean + strength * (clean - reference)`, in fp32 (arXiv 2604.14363, eq. of TCCD).

    Linear, so it serves logits and, under a linear head, post-norm states alike.

    Args:
        clean: logits or states of the clean stream, shape (..., width).
        reference: the same of the reference.
        strength: a number, or a tensor that broadcasts against (..., width).
    """
    clean = clean.float()
    return clean + strength * (clean - reference.float())


def combine_all(clean: Tensor, references: Sequence[Tensor], strengths: Sequence[Tensor]) -> Tensor:
    """`clean + sum of strength * (clean - reference)`, in fp32; a reference of strength 0 may be anything.

    Args:
        clean: logits or states of the clean stream, shape (..., width).
        references: the same of each reference.
        strengths: of each, broadcast against (..., width).
    """
    clean = clean.float()
    combined = clean
    for reference, strength in zip(references, strengths, strict=True):
        away = strength * (clean - reference.float())
        combined = combined + away.masked_fill(strength == 0, 0.0)  # and not the NaN of 0 * inf
    return combined


def plausible(clean: Tensor, beta: float) -> Tensor:
    """Tokens whose clean probability is at least `beta` times the largest (Li et al. 2022, eq. 2).

    Args:
        clean: logits, shape (..., vocabulary).
        beta: 0 (every token) to 1 (the most probable only).

    Returns:
        Boolean mask of the shape of `clean`; the clean maximum is always in it.
    """
    if beta <= 0:
        return torch.ones_like(clean, dtype=torch.bool)
    clean = clean.float()
    return clean >= clean.amax(-1, keepdim=True) + math.log(beta)


def contrast(clean: Tensor, reference: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """The whole rule for one reference: gate, combination, plausibility.

    Args:
        clean: logits of the clean stream, shape (..., vocabulary).
        reference: logits of the reference, the same shape.
        rule: the settings; with `beta = 0` and no gate this is the paper's formula exactly.

    Returns:
        As `contrast_all`.
    """
    return contrast_all(clean, [reference], rule)


def contrast_all(
    clean: Tensor,
    references: Sequence[Tensor],
    rule: Rule,
    weights: Sequence[float] = (1.0,),
    allowed: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The whole rule for some references: `clean + alpha_cd * sum of weight * (clean - reference)`.

    Each reference has a gate of its own, where the gate's signal depends on it.

    Args:
        clean: logits of the clean stream, shape (..., vocabulary).
        references: logits of each reference, the same shape.
        rule: the settings.
        weights: of each reference, of either sign.
        allowed: where each may act, boolean, shape (...); everywhere when None.

    Returns:
        Logits in fp32, implausible tokens at minus infinity, and the widest opening of the gates, shape (...),
        which scaled `alpha_cd` at each position (all ones without a gate). Where all are shut the clean logits
        come back
        whole: no contrast, so nothing for plausibility to guard.
    """
    widest = torch.zeros(clean.shape[:-1], device=clean.device)
    strengths = []
    for number, (reference, weight) in enumerate(zip(references, weights, strict=True)):
        if rule.gate is None:
            opened = torch.ones_like(widest)
        else:
            opened = GATES[rule.gate].opening(clean, reference, rule.gate_threshold, rule.gate_ramp)
        if allowed is not None:
            opened = opened * allowed[number]
        strengths.append(rule.alpha_cd * weight * opened[..., None])
        widest = torch.maximum(widest, opened)
    combined = combine_all(clean, references, strengths)
    combined = combined.masked_fill(clean == -math.inf, -math.inf)  # and not the NaN of inf - inf
    if rule.beta > 0:
        kept = plausible(clean, rule.beta) | (widest == 0)[..., None]
        combined = combined.masked_fill(~kept, -math.inf)
    return combined, widest
