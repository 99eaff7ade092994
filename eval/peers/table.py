"""Settings chosen by one rule for all methods, and what they gain and harm on the other half."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from eval.peers.methods import Method, Mix
from eval.peers.outcomes import Scores
from eval.peers.questions import SOURCES, Questions
from probes.statistics.clusters import Clusters
from probes.statistics.folds import best
from probes.statistics.intervals import holm
from probes.statistics.outcomes import gain
from tccd.decoding.config import Rule

HARM = 0.002
"""What the grounded twin may lose, on the questions that settings are chosen on."""
DATA = ("both", *SOURCES)
BLANK = "blank-image, grey"
"""What every method is compared with: contrast with a grey picture, two passes."""


@dataclass(frozen=True)
class Setting:
    """What was chosen for a method; both None where nothing that it may be given gains: it is off.

    Attributes:
        mix: what its logits are taken from.
        rule: what it is given; None where the mix's one stream holds its scores.
        choosing: gain of the competing twin and of the grounded one where it was chosen, fractions.
    """

    mix: Mix | None
    rule: Rule | None
    choosing: tuple[float, float] = (0.0, 0.0)

    def describe(self) -> dict[str, Any]:
        """As JSON values."""
        if self.mix is None:
            return {"off": True}
        found = dict(self.mix.settings)
        if self.rule is not None:
            found |= {"alpha_cd": self.rule.alpha_cd, "beta": self.rule.beta}
            if self.rule.gate is not None:
                found |= {"gate": self.rule.gate, "gate_threshold": self.rule.gate_threshold}
        return found


@dataclass(frozen=True, eq=False)
class Twins:
    """The two models of a family, decoded in one way.

    Attributes:
        competing, grounded: their scores.
    """

    competing: Scores
    grounded: Scores

    def choose(self, method: Method, choosing: np.ndarray) -> Setting:
        """The method's settings with the largest gain of the competing twin among those that cost the grounded one
        `HARM` at most; off where none of them gains. A method as published takes the least harmful there.

        Args:
            method: what to choose settings of.
            choosing: which questions may be looked at, boolean, shape (n,).
        """
        if not method.rules:
            return Setting(method.mixes[0], None)
        where = torch.from_numpy(choosing)
        every = [(mix, rule) for mix in method.mixes for rule in method.rules]
        found = []
        for scores in (self.competing, self.grounded):
            plain = scores.judge(scores.streams["clean"])[:, where].float().mean().item()
            shares = [scores.shares(mix, method.rules, where) for mix in method.mixes]
            found.append(np.concatenate(shares) - plain)
        competing, grounded = found
        harmless = grounded >= -HARM - 1e-6
        if len(method.rules) > 1:
            if not harmless.any() or competing[harmless].max() <= 1e-6:
                return Setting(None, None)
            number = best(competing, harmless)
        else:
            number = best(competing, harmless) if harmless.any() else best(grounded)
        return Setting(*every[number], (float(competing[number]), float(grounded[number])))


def rows(
    family: str,
    decoding: str,
    twins: Twins,
    asked: Questions,
    methods: Sequence[Method],
    costs: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Every row of one family and one way to decode.

    Args:
        family: whose twins they are.
        decoding: "greedy" or "sampled".
        twins: their scores.
        asked: the questions.
        methods: what is compared; those whose streams are missing are left out.
        costs: CPU time of a request over plain's, by `Method.cost`.
    """
    there = [m for m in methods if m.needs <= set(twins.competing.streams)]
    chosen = {method.name: twins.choose(method, asked.choosing) for method in there}
    found: list[dict[str, Any]] = []
    outcomes = {
        (kind, name): _outcome(getattr(twins, kind), setting)
        for name, setting in chosen.items()
        for kind in ("competing", "grounded")
    }
    for data, part in _parts(asked):
        many = len(twins.competing.noise)
        clusters = _repeated(asked.clusters[part], many)
        for kind in ("competing", "grounded"):
            right = {m.name: outcomes[kind, m.name][:, part].reshape(-1) for m in there}
            harmed = {m.name: outcomes["grounded", m.name][:, part].reshape(-1) for m in there}
            block = [_row(m, chosen[m.name], right, harmed, clusters) for m in there]
            adjust(block, there)
            head = {"model": f"{family}-{kind}", "data": data, "decoding": decoding}
            for method, row in zip(there, block, strict=True):
                cost = {"cpu_ratio": costs.get(method.cost or ""), "passes": method.passes}
                found.append(head | {"method": method.name, "kind": method.kind} | row | cost)
    return found


def adjust(block: Sequence[dict[str, Any]], methods: Sequence[Method]) -> None:
    """Add `p_holm`: adjusted for all methods of one model, data and decoding, oracles and plain decoding left
    out."""
    tested = [i for i, m in enumerate(methods) if m.kind not in ("plain", "oracle")]
    for i, value in zip(tested, holm([block[i]["p_value"] for i in tested]).tolist(), strict=True):
        block[i]["p_holm"] = value


def _row(
    method: Method,
    setting: Setting,
    right: Mapping[str, np.ndarray],
    grounded: Mapping[str, np.ndarray],
    clusters: Clusters,
) -> dict[str, Any]:
    found = gain(right["plain"], right[method.name], clusters=clusters)
    harm = gain(grounded["plain"], grounded[method.name], clusters=clusters)
    row = {"settings": setting.describe(), **found, "p_holm": None}
    row |= {"harm": harm["delta"], "harm_ci95": harm["ci95"], "harm_p_value": harm["p_value"]}
    if method.kind != "plain" and method.name != BLANK:
        over = gain(right[BLANK], right[method.name], clusters=clusters)
        row |= {"over_blank": {key: over[key] for key in ("delta", "ci95", "p_value")}}
    return row | {"choosing": {"delta": setting.choosing[0], "harm": setting.choosing[1]}}


def _outcome(scores: Scores, setting: Setting) -> np.ndarray:
    if setting.mix is None:
        return scores.judge(scores.streams["clean"]).numpy()
    return scores.outcome(setting.mix, setting.rule)


def _parts(asked: Questions) -> Iterator[tuple[str, np.ndarray]]:
    """Held-out questions of both sources and of each, by number."""
    held_out = ~asked.choosing
    yield DATA[0], np.flatnonzero(held_out)
    for number, name in enumerate(SOURCES):
        yield name, np.flatnonzero(held_out & (asked.source == number))


def _repeated(clusters: Clusters, times: int) -> Clusters:
    """The clusters of as many draws: draws of one question share its picture and its wording."""
    assert clusters.question is not None
    assert clusters.both is not None
    return Clusters(*(np.tile(codes, times) for codes in (clusters.picture, clusters.question, clusters.both)))
