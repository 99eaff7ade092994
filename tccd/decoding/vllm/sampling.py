"""From the rows of a request and its shadow to the logits that vLLM samples from.

After the model vLLM takes the post-norm states of the rows that a token is sampled from and calls the model's
`compute_logits`; what comes back goes through penalties, grammars and sampling. `ContrastingHead` stands in the
place of `compute_logits`, so that all of these see contrasted logits. The rows of all other requests pass
unchanged.

Where the rule is linear the two states are combined before the head. Otherwise the two rows of logits are. All
rows that are contrasted go through one call, whatever each asks for: settings are tensors, one value a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tccd.decoding.config import Rule
from tccd.decoding.contrast import combine
from tccd.decoding.gates import GATES
from tccd.decoding.vllm import objects
from tccd.errors import TCCDError

#: What an implausible token loses. Finite, where transformers has minus infinity: a grammar may forbid every
#: plausible token, and the clean stream then ranks the others. Its probability is 0 in fp32 all the same.
IMPLAUSIBLE = 1e4


@dataclass
class Pairs:
    """The rows of one step that are contrasted.

    Attributes:
        clean: row of each request.
        shadow: row of its shadow.
        rules: what each asks for.
    """

    clean: list[int] = field(default_factory=list)
    shadow: list[int] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)

    def add(self, clean: int, shadow: int, rule: Rule) -> None:
        """Contrast one row more."""
        self.clean.append(clean)
        self.shadow.append(shadow)
        self.rules.append(rule)

    def those(self, kept: Sequence[bool]) -> Pairs:
        """Some of them."""
        found = Pairs()
        for clean, shadow, rule, keep in zip(self.clean, self.shadow, self.rules, kept, strict=True):
            if keep:
                found.add(clean, shadow, rule)
        return found

    def __len__(self) -> int:
        return len(self.clean)


class ContrastingHead:
    """Stands where the model's `compute_logits` was.

    The first call after `expect` is for the rows that a token is sampled from: their logits are contrasted. Later
    calls of the step (prompt log-probabilities) are of the clean stream.

    Args:
        model: whose `compute_logits` maps post-norm states to logits.
        language: its language model.
    """

    def __init__(self, model: Any, language: Any) -> None:
        head = getattr(language, "logits_processor", None)
        #: Soft-capped logits are not linear in the states: both rows then go through the head.
        self.linear = head is not None and getattr(head, "soft_cap", 0) is None
        self._compute = objects.checked("logits", model)
        self.pending: Pairs | None = None
        self._shared: tuple[Tensor, Tensor] | None = None
        objects.put("logits", model, self)

    def expect(self, pairs: Pairs) -> None:
        """Say which rows the next call contrasts.

        Raises:
            TCCDError: those of the step before never came.
        """
        if self.pending is not None:
            raise TCCDError("TCCD in vLLM: a step's logits were never computed; refusing to go on")
        self.pending = pairs if len(pairs) else None
        self._shared = None

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
        """Logits of the states, those of contrasted requests contrasted; shape (rows, vocabulary)."""
        pairs, self.pending = self.pending, None
        if pairs is None:
            return self._compute(hidden_states, *args, **kwargs)
        device = hidden_states.device
        self._shared = _tensor(pairs.clean, device), _tensor(pairs.shadow, device)
        by_state = [self.linear and not rule.needs_logits for rule in pairs.rules]
        if any(by_state):
            linear = pairs.those(by_state)
            rows = _tensor(linear.clean, device)
            strength = torch.tensor([[rule.alpha_cd] for rule in linear.rules]).to(device, non_blocking=True)
            # In fp32 before the head: one rounding, where two rows of logits combined have two.
            combined = combine(hidden_states[rows], hidden_states[_tensor(linear.shadow, device)], strength)
            hidden_states = hidden_states.index_copy(0, rows, combined.to(hidden_states.dtype))
        logits = self._compute(hidden_states, *args, **kwargs)
        if all(by_state) or logits is None:  # None: another rank samples
            return logits
        others = pairs.those([not linear for linear in by_state])
        rows, logits = _tensor(others.clean, device), logits.float()
        reference = logits[_tensor(others.shadow, device)]
        return logits.index_copy(0, rows, decided(logits[rows], reference, others.rules))

    def share(self, tokens: Tensor) -> None:
        """Give each shadow its request's token, in place; shape (rows, ...)."""
        if self._shared is not None:
            clean, shadow = self._shared
            tokens[shadow] = tokens[clean]
            self._shared = None


def decided(clean: Tensor, reference: Tensor, rules: Sequence[Rule]) -> Tensor:
    """`contrast`, a rule for each row; implausible tokens lie far below the others, not at minus infinity.

    Args:
        clean: logits, shape (rows, vocabulary), fp32.
        reference: the same of the references.
        rules: one a row.
    """
    device = clean.device
    opened = _opened(clean, reference, rules)
    strength = (_column([rule.alpha_cd for rule in rules], device) * opened)[:, None]
    away = (strength * (clean - reference)).masked_fill(strength == 0, 0.0)  # and not the NaN of 0 * inf
    nothing = clean.isneginf()
    combined = (clean + away).masked_fill(nothing, -math.inf)
    if not any(rule.beta > 0 for rule in rules):
        return combined
    floor = _column([math.log(rule.beta) if rule.beta > 0 else -math.inf for rule in rules], device)
    largest = clean.amax(-1, keepdim=True)
    kept = (clean >= largest + floor[:, None]) | (opened == 0)[:, None]
    combined = combined.masked_fill(~kept, -math.inf)
    below = clean - largest + combined.amax(-1, keepdim=True) - IMPLAUSIBLE
    return torch.where(~kept & ~nothing, below, combined)


def _opened(clean: Tensor, reference: Tensor, rules: Sequence[Rule]) -> Tensor:
    """How far each row's gate is open, in [0, 1], shape (rows,)."""
    opened = torch.ones(len(rules), device=clean.device)
    for name in {rule.gate for rule in rules if rule.gate is not None}:
        gate, held = GATES[name], [(i, rule) for i, rule in enumerate(rules) if rule.gate == name]
        rows = _tensor([i for i, _ in held], clean.device)
        threshold = _column([rule.gate_threshold for _, rule in held], clean.device)
        ramp = _column([rule.gate_ramp for _, rule in held], clean.device)
        values = gate.signal(clean[rows], reference[rows])
        away = threshold - values if gate.opens_below else values - threshold
        hard = ramp <= torch.finfo(values.dtype).eps
        ramped = (away / torch.where(hard, 1.0, ramp) + 0.5).clamp(0, 1)
        opened = opened.index_copy(0, rows, torch.where(hard, (away > 0).to(values.dtype), ramped))
    return opened


def _tensor(rows: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(rows).to(device, non_blocking=True)


def _column(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).to(device, non_blocking=True)
