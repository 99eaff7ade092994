"""Gates: label-free signals that say where a contrast acts. Adding one is a function and a line in `GATES`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Gate:
    """A signal, and which of its values open the gate.

    Attributes:
        signal: logits of the clean stream and of the reference, both of shape (..., vocabulary), to values in
            [0, 1] of shape (...).
        opens_below: whether small values open it; else large ones do.
    """

    signal: Callable[[Tensor, Tensor], Tensor]
    opens_below: bool = False

    def opening(self, clean: Tensor, reference: Tensor, threshold: float, ramp: float) -> Tensor:
        """How far the gate is open at each position, in [0, 1], shape (...).

        Args:
            clean: logits of the clean stream, shape (..., vocabulary).
            reference: logits of the reference, the same shape.
            threshold: the signal's value at which the gate is half open.
            ramp: width of a linear ramp around the threshold; 0 is a hard switch.
        """
        return opening(self.signal(clean, reference), threshold, ramp, self.opens_below)


def opening(values: Tensor, threshold: float, ramp: float, opens_below: bool = False) -> Tensor:
    """How far a gate is open at values of its signal: a switch, or a linear ramp around the threshold."""
    import torch

    away = (threshold - values) if opens_below else (values - threshold)
    if ramp <= torch.finfo(values.dtype).eps:
        return (away > 0).to(values.dtype)
    return (away / ramp + 0.5).clamp(0, 1)


def margin(clean: Tensor, reference: Tensor | None = None) -> Tensor:
    """Probability of the clean top token less that of the runner-up, in [0, 1], shape (...)."""
    top = clean.float().softmax(-1).topk(2, dim=-1).values
    return top[..., 0] - top[..., 1]


def entropy(clean: Tensor, reference: Tensor | None = None) -> Tensor:
    """Entropy of the clean distribution as a share of its maximum, log vocabulary; in [0, 1], shape (...)."""
    import torch

    log_p = clean.float().log_softmax(-1)
    nats = -torch.special.xlogy(log_p.exp(), log_p.exp()).sum(-1)
    return (nats / math.log(clean.shape[-1])).clamp(0, 1)


def jsd(clean: Tensor, reference: Tensor) -> Tensor:
    """Jensen-Shannon divergence of the two distributions in bits, in [0, 1], shape (...)."""
    import torch

    p, q = clean.float().softmax(-1), reference.float().softmax(-1)
    m = (p + q) / 2
    nats = torch.special.xlogy(p, p) + torch.special.xlogy(q, q) - 2 * torch.special.xlogy(m, m)
    return (nats.sum(-1) / (2 * math.log(2))).clamp(0, 1)


#: By the name that settings, requests and the command line take. This module loads without torch: `--help` needs
#: the names.
GATES: dict[str, Gate] = {
    "margin": Gate(margin, opens_below=True),
    "entropy": Gate(entropy),
    "jsd": Gate(jsd),
}
