"""Contrast of a clean stream and a reference: pure functions of tensors, the same for every engine."""

from __future__ import annotations

import math

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
    """The whole rule: gate, combination, plausibility.

    Args:
        clean: logits of the clean stream, shape (..., vocabulary).
        reference: logits of the reference stream, the same shape.
        rule: the settings; with `beta = 0` and no gate this is the paper's formula exactly.

    Returns:
        Logits in fp32, implausible tokens at minus infinity, and the gate's opening of shape (...), which
        scaled `alpha_cd` at each position (all ones without a gate). Where the gate is shut the clean logits
        come back whole: no contrast, so nothing for plausibility to guard.
    """
    if rule.gate is None:
        opened = torch.ones(clean.shape[:-1], device=clean.device)
    else:
        opened = GATES[rule.gate].opening(clean, reference, rule.gate_threshold, rule.gate_ramp)
    combined = combine(clean, reference, rule.alpha_cd * opened[..., None])
    combined = combined.masked_fill(clean == -math.inf, -math.inf)  # and not the NaN of inf - inf
    if rule.beta > 0:
        allowed = plausible(clean, rule.beta) | (opened == 0)[..., None]
        combined = combined.masked_fill(~allowed, -math.inf)
    return combined, opened
