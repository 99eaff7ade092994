"""Contrast of a clean stream and a reference: pure functions of tensors, the same for every engine."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tccd.decoding.config import Rule
from tccd.errors import ConfigError


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


def margin(clean: Tensor) -> Tensor:
    """Probability of the clean top token less that of the runner-up, in [0, 1], shape (...)."""
    top = clean.float().softmax(-1).topk(2, dim=-1).values
    return top[..., 0] - top[..., 1]


def entropy(clean: Tensor) -> Tensor:
    """Entropy of the clean distribution as a share of its maximum, log vocabulary; in [0, 1], shape (...)."""
    log_p = clean.float().log_softmax(-1)
    nats = -torch.special.xlogy(log_p.exp(), log_p.exp()).sum(-1)
    return (nats / math.log(clean.shape[-1])).clamp(0, 1)


def jsd(clean: Tensor, erased: Tensor) -> Tensor:
    """Jensen-Shannon divergence of the two distributions in bits, in [0, 1], shape (...)."""
    p, q = clean.float().softmax(-1), erased.float().softmax(-1)
    m = (p + q) / 2
    nats = torch.special.xlogy(p, p) + torch.special.xlogy(q, q) - 2 * torch.special.xlogy(m, m)
    return (nats.sum(-1) / (2 * math.log(2))).clamp(0, 1)


def signal(clean: Tensor, erased: Tensor, gate: str) -> Tensor:
    """The gate's signal at each position, in [0, 1], shape (...).

    Raises:
        ConfigError: unknown gate.
    """
    if gate == "margin":
        return margin(clean)
    if gate == "entropy":
        return entropy(clean)
    if gate == "jsd":
        return jsd(clean, erased)
    raise ConfigError(f"unknown gate {gate!r}")


def opening(values: Tensor, gate: str, threshold: float, ramp: float) -> Tensor:
    """How far the gate is open, in [0, 1]: a switch, or a linear ramp of width `ramp` around the threshold.

    A margin opens the gate where it is small; entropy and divergence where they are large.
    """
    away = (threshold - values) if gate == "margin" else (values - threshold)
    if ramp <= torch.finfo(values.dtype).eps:
        return (away > 0).to(values.dtype)
    return (away / ramp + 0.5).clamp(0, 1)


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
        values = signal(clean, reference, rule.gate)
        opened = opening(values, rule.gate, rule.gate_threshold, rule.gate_ramp)
    combined = combine(clean, reference, rule.alpha_cd * opened[..., None])
    combined = combined.masked_fill(clean == -math.inf, -math.inf)  # and not the NaN of inf - inf
    if rule.beta > 0:
        allowed = plausible(clean, rule.beta) | (opened == 0)[..., None]
        combined = combined.masked_fill(~allowed, -math.inf)
    return combined, opened
