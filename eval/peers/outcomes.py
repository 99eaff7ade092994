"""Rows of logits and settings -> right or wrong: pure functions, the same for every method.

An answer is the token with the largest logit; sampled, the one whose logit plus Gumbel noise is largest, which
draws it by its probability. The noise of a seed is the same for every method and setting, plain decoding
included: what changes between them is the method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eval.peers.methods import Mix
from tccd.decoding.config import Rule
from tccd.decoding.contrast import contrast_all, plausible
from tccd.decoding.gates import GATES

SEEDS = (0, 1, 2)


@dataclass(frozen=True, eq=False)
class Scores:
    """Logits of one model, and what would be right.

    Attributes:
        streams: name -> next-token logits, shape (n, vocabulary).
        right: which tokens are right answers, boolean, shape (n, vocabulary).
        noise: of each draw, shape (n, vocabulary); None for greedy decoding.
    """

    streams: Mapping[str, Tensor]
    right: Tensor
    noise: tuple[Tensor | None, ...] = (None,)

    def sampled(self) -> Scores:
        """The same, sampled once with each of `SEEDS`."""
        return Scores(self.streams, self.right, tuple(gumbel(self.right.shape, seed) for seed in SEEDS))

    def judge(self, logits: Tensor) -> Tensor:
        """Whether the answers are right, boolean, shape (draws, n)."""
        answers = [(logits if noise is None else logits + noise).argmax(-1) for noise in self.noise]
        return torch.stack([self.right.gather(1, one[:, None])[:, 0] for one in answers])

    def outcome(self, mix: Mix, rule: Rule | None) -> np.ndarray:
        """Right or wrong under one setting, by the very functions that decode: boolean, shape (draws, n).

        Args:
            mix: what the logits are taken from.
            rule: the settings; None where the mix's one stream holds the scores.
        """
        references = [self.streams[name] for name in mix.references]
        if rule is None:
            return self.judge(references[0]).numpy()
        return self.judge(contrast_all(self.streams[mix.clean], references, rule, mix.weights)[0]).numpy()

    def shares(self, mix: Mix, rules: Sequence[Rule], where: Tensor) -> np.ndarray:
        """Share of right answers under each of many rules, shape (rules,).

        A hard gate gives either the clean answer or the ungated contrast's, so that each pair of `alpha_cd` and
        `beta` is worked out once for all gates.

        Args:
            mix: what the logits are taken from; with a gate that depends on the reference, of one reference.
            rules: the settings, their gates without a ramp.
            where: which questions count, boolean, shape (n,).
        """
        clean = self.streams[mix.clean][where]
        references = [self.streams[name][where] for name in mix.references]
        part = Scores({}, self.right[where], tuple(None if x is None else x[where] for x in self.noise))
        plain = part.judge(clean).float()
        gates = {(rule.gate, rule.gate_threshold): None for rule in rules}
        opened = torch.stack([_opened(clean, references, *gate) for gate in gates])
        shut = (1 - opened) @ plain.mean(0) / len(clean)
        away = sum(w * (clean.float() - r.float()) for w, r in zip(mix.weights, references, strict=True))
        allowed = {beta: plausible(clean, beta) for beta in {rule.beta for rule in rules}}
        found: dict[tuple[float, float], Tensor] = {}
        numbers = {gate: i for i, gate in enumerate(gates)}
        shares = np.empty(len(rules))
        for i, rule in enumerate(rules):
            key = rule.alpha_cd, rule.beta
            if key not in found:
                logits = (clean + rule.alpha_cd * away).masked_fill(~allowed[rule.beta], -torch.inf)
                found[key] = opened @ part.judge(logits).float().mean(0) / len(clean) + shut
            shares[i] = found[key][numbers[rule.gate, rule.gate_threshold]]
        return shares


def _opened(clean: Tensor, references: Sequence[Tensor], gate: str | None, threshold: float) -> Tensor:
    if gate is None:
        return torch.ones(len(clean))
    return GATES[gate].opening(clean, references[0], threshold, 0.0).float()


def gumbel(shape: Sequence[int], seed: int) -> Tensor:
    """Noise whose sum with logits is largest at a token as often as its softmax says."""
    uniform = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return -(-uniform.clamp_min(1e-300).log()).log().float()


def prior(clean: Tensor, strings: Sequence[str], choosing: np.ndarray) -> Tensor:
    """The mean log-probabilities of a question string over the other half's pictures: an oracle of the prior.

    It knows no answer, but it has seen what the model says of hundreds of test pictures. A string that the other
    half does not ask keeps its clean logits: there is nothing to contrast with.

    Args:
        clean: logits, shape (n, vocabulary).
        strings: each question's wording.
        choosing: the half that each is in, boolean, shape (n,).
    """
    log_p = clean.float().log_softmax(-1)
    known: dict[tuple[str, bool], list[int]] = {}
    for i, (string, half) in enumerate(zip(strings, choosing.tolist(), strict=True)):
        known.setdefault((string, half), []).append(i)
    means = {key: log_p[rows].mean(0) for key, rows in known.items()}
    halves = zip(strings, choosing.tolist(), strict=True)
    return torch.stack([means.get((s, not half), log_p[i]) for i, (s, half) in enumerate(halves)])
