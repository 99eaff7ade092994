"""What is compared: each method, the streams that it is made of, and the settings that it may be given."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eval.peers import outside, streams
from tccd.decoding.config import Rule

STRENGTHS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0)
BETAS = (0.0, 0.03, 0.1, 0.3)
GATES = {
    "margin": (0.3, 0.5, 0.7, 0.9),
    "entropy": (0.02, 0.05, 0.1),
    "jsd": (0.003, 0.03, 0.1),
}
KINDS = ("plain", "reference", "peer", "control", "oracle")


def grid(gates: Sequence[str] = tuple(GATES), strengths: Sequence[float] = STRENGTHS) -> tuple[Rule, ...]:
    """Every rule that a method may be given, the mildest first, of either sign."""
    signed = [sign * strength for strength in strengths for sign in (1, -1)]
    opened: list[dict[str, Any]] = [{}]
    opened += [{"gate": gate, "gate_threshold": at} for gate in gates for at in GATES[gate]]
    return tuple(Rule(alpha_cd=a, beta=b, **g) for a, b, g in itertools.product(signed, BETAS, opened))


@dataclass(frozen=True)
class Mix:
    """Streams that a method's logits are taken from.

    Attributes:
        references: names of streams.
        weights: of each, of either sign.
        clean: what stands in the clean stream's place.
        settings: what the method was made with, for the report.
    """

    references: tuple[str, ...]
    weights: tuple[float, ...] = (1.0,)
    clean: str = "clean"
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        name: of the method.
        kind: one of `KINDS`.
        mixes: what it may be made of.
        rules: what it may be given; none where the one stream of a mix holds its scores already.
        passes: how often a request's image runs through the decoder, a blank one's prefix being kept; None for an
            oracle.
        cost: its name in `eval.speed.ways`, or that of the way that costs the same; None for an oracle.
        tail_only: runs nothing but the tail's rows beside plain decoding.
    """

    name: str
    kind: str
    mixes: tuple[Mix, ...]
    rules: tuple[Rule, ...] = ()
    passes: float | None = 1.0
    cost: str | None = None
    tail_only: bool = False

    @property
    def needs(self) -> set[str]:
        """The streams that it is made of."""
        return {name for mix in self.mixes for name in (mix.clean, *mix.references)}


def _one(stream: str) -> tuple[Mix, ...]:
    return (Mix((stream,)),)


def _each(stream: str, setting: str, values: Sequence[Any]) -> tuple[Mix, ...]:
    return tuple(Mix((stream.format(value),), settings={setting: value}) for value in values)


def _erasures(stream: str, *axes: Sequence[Any]) -> tuple[Mix, ...]:
    return tuple(
        Mix((f"{stream}-{layer}-{k}-{alpha}",), settings={"layer": layer, "k": k, "alpha_interp": alpha})
        for layer, k, alpha in itertools.product(*axes)
    )


def _together(weights: Sequence[float]) -> tuple[Mix, ...]:
    return tuple(
        Mix(("no-vision", "mean-vision"), (1 - w, w), settings={"weights": [round(1 - w, 2), w]}) for w in weights
    )


def _other_sign(weights: Sequence[float]) -> tuple[Mix, ...]:
    return tuple(
        Mix(("no-vision", *mix.references), (1.0, -w), settings=dict(mix.settings) | {"weights": [1.0, -w]})
        for mix in _erasures("text", streams.LAYERS, (16,), streams.KEPT)
        for w in weights
    )


def _pai() -> tuple[Mix, ...]:
    return tuple(
        Mix(("text-only",), clean=f"boosted-{queries}-{alpha}", settings={"queries": queries, "boost": alpha})
        for queries, alpha in outside.BOOSTS
    )


def _words() -> tuple[Mix, ...]:
    named = {name: f"prompt-{name}" for name in streams.PROMPTS} | {"the question alone": "text-only"}
    return tuple(Mix((stream,), settings={"words": name}) for name, stream in named.items())


def methods() -> list[Method]:
    """Every method, plain decoding first."""
    every, ungated = grid(), grid(("margin", "entropy"))
    sharper = tuple(rule for rule in every if rule.alpha_cd > -1)  # below it a temperature turns the order round
    control = streams.LAYERS, (streams.CONTROL_K,), streams.KEPT[:1]

    def tail(name: str, mixes: tuple[Mix, ...], cost: str, rules: tuple[Rule, ...] = every) -> Method:
        return Method(name, "reference", mixes, rules, 1.0, cost, tail_only=True)

    def blank(name: str, mixes: tuple[Mix, ...]) -> Method:
        return Method(name, "reference", mixes, every, 1.0, "blank_image")

    def two_pass(name: str, mixes: tuple[Mix, ...], cost: str) -> Method:
        return Method(name, "reference", mixes, every, 2.0, cost)

    return [
        Method("plain", "plain", (Mix(("clean",)),), cost="plain"),
        tail(
            "text-centroid, published",
            _erasures("text", streams.LAYERS, streams.KS, (0.4,)),
            "tccd",
            (Rule(alpha_cd=1.0),),
        ),
        tail("text-centroid", _erasures("text", streams.LAYERS, streams.KS, streams.KEPT), "tccd"),
        two_pass(
            "vision-centroid",
            _erasures("vision", streams.VISION_LAYERS, (streams.VISION_K,), streams.KEPT[:1]),
            "vision_centroid",
        ),
        tail("no-vision", _one("no-vision"), "no_vision"),
        tail("mean-vision", _one("mean-vision"), "mean_vision"),
        tail("no-vision + mean-vision", _together((0.25, 0.5, 0.75)), "no_vision_mean_vision", ungated),
        tail("no-vision - text-centroid", _other_sign((0.5, 1.0)), "no_vision_text_centroid", ungated),
        *(blank(f"blank-image, {color}", _one(f"blank-{color}")) for color in streams.COLORS),
        two_pass("noised-image", _each("noised-{}", "step", streams.STEPS), "noised_image"),
        two_pass("prompt", _words(), "prompt"),
        tail("early-exit, low", _one("exit-low"), "early_exit_low"),
        tail("early-exit, high", _one("exit-high"), "early_exit_high"),
        tail("early-exit, one layer", _each("exit-{}", "layers", (-1, *streams.LAYERS)), "early_exit"),
        Method("DoLa, low", "peer", _one("dola-low"), cost="early_exit_low"),
        Method("DoLa, high", "peer", _one("dola-high"), cost="early_exit_high"),
        Method("PAI", "peer", _pai(), every, 1.0, "question_alone"),
        Method("mitigv VCD, its defaults", "peer", _one("mitigv-vcd"), (), 2.0, "mitigv_vcd"),
        Method("mitigv VCD", "peer", _one("mitigv-noised"), every, 2.0, "mitigv_vcd"),
        Method("mitigv PAI, its defaults", "peer", _one("mitigv-pai"), (), 1.0, "question_alone"),
        Method("random direction", "control", _erasures("direction", *control), every, cost="tccd"),
        Method("random centroids", "control", _erasures("centroid", *control), every, cost="tccd"),
        Method("sharper", "control", _one("uniform"), sharper, cost="plain"),
        Method("marginal of 48 images", "oracle", _one("marginal"), every, None),
        Method("mean per question", "oracle", _one("prior"), every, None),
    ]
