"""The settings of a contrast, validated once and used by every engine: the rule, and with it TCCD's reference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self, TypedDict

from tccd.decoding.gates import GATES
from tccd.errors import ConfigError

TOKENS = ("all", "first")


class RuleSettings(TypedDict, total=False):
    """The settings of a `Rule`, as keywords."""

    alpha_cd: float
    beta: float
    gate: str | None
    gate_threshold: float
    gate_ramp: float
    tokens: str


class TCCDSettings(RuleSettings, total=False):
    """The settings of a `TCCDConfig`, as keywords."""

    alpha_interp: float
    layer: int | None


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What is made of two rows of logits, the clean stream's and the reference's.

    Source: Paruchuri et al., "The Cost of Language", arXiv 2604.14363, for `alpha_cd`; Li et al. 2022, arXiv
    2210.15097, for `beta`; the gate is ours.

    Attributes:
        alpha_cd: strength of the contrast in `clean + alpha_cd * (clean - reference)`; 0 is plain decoding. 0.5
            to 2 is the usual range. A negative one adds what the reference says, which helps where the reference
            answers better than the model does. Measure it on your data.
        beta: plausibility. Only tokens with clean probability >= beta times the largest may win; 0 is off, 0.1 a
            good start where large `alpha_cd` lets odd tokens win.
        gate: label-free signal, all in [0, 1], that says where contrast acts. "margin": clean top-2
            probability margin is below `gate_threshold`. "entropy": clean entropy, as a share of its maximum,
            is above it. "jsd": Jensen-Shannon divergence of clean and reference, in bits, is above it.
            None is off.
        gate_threshold: the signal's value at which the gate is half open.
        gate_ramp: width of the linear ramp around the threshold; 0 is a hard switch.
        tokens: "all", or "first" for the first generated token only.

    Raises:
        ConfigError: a value is of the wrong type or out of range.

    Example:
        >>> Rule(alpha_cd=0.5, gate="margin", gate_threshold=0.5).alpha_cd
        0.5
    """

    alpha_cd: float = 1.0
    beta: float = 0.0
    gate: str | None = None
    gate_threshold: float = 0.5
    gate_ramp: float = 0.0
    tokens: str = "all"

    def __post_init__(self) -> None:
        _number("alpha_cd", self.alpha_cd, -math.inf, math.inf)
        for name in ("beta", "gate_threshold", "gate_ramp"):
            _number(name, getattr(self, name), 0.0, 1.0)
        _one_of("gate", self.gate, (None, *GATES))
        _one_of("tokens", self.tokens, TOKENS)
        if self.gate is None and (self.gate_threshold, self.gate_ramp) != (0.5, 0.0):
            raise ConfigError(
                f"gate_threshold={self.gate_threshold} and gate_ramp={self.gate_ramp} do nothing without a gate; "
                f"set gate to one of {', '.join(GATES)}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from a mapping, refusing keys that are not settings.

        Raises:
            ConfigError: an unknown key, or a value that the constructor refuses.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(repr(key) for key in set(values) - known)
        if unknown:
            raise ConfigError(f"unknown TCCD settings {', '.join(unknown)}; expected some of {sorted(known)}")
        return cls(**values)

    @property
    def is_off(self) -> bool:
        """Whether these settings are plain decoding whatever the model says."""
        return self.alpha_cd == 0 and self.beta == 0

    @property
    def needs_logits(self) -> bool:
        """Whether the combination needs both streams' logits, and not their states alone."""
        return self.beta > 0 or self.gate is not None


@dataclass(frozen=True, kw_only=True)
class TCCDConfig(Rule):
    """Settings of text-centroid contrastive decoding: the rule, and where and how far its reference erases.

    Attributes:
        alpha_interp: what is kept of a tail state's offset from its centroid in the reference; 0 erases
            it whole, 1 is the identity.
        layer: decoder layer whose output is replaced, from 0; None takes the bank's only text layer.

    Raises:
        ConfigError: a value is of the wrong type or out of range.

    Example:
        >>> TCCDConfig(alpha_cd=0.5, gate="margin", gate_threshold=0.5).alpha_interp
        0.4
    """

    alpha_interp: float = 0.4
    layer: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _number("alpha_interp", self.alpha_interp, 0.0, 1.0)
        if self.layer is not None and (type(self.layer) is not int or self.layer < 0):
            raise ConfigError(f"layer is {self.layer!r}; expected a decoder layer's index, from 0, or None")

    @property
    def is_off(self) -> bool:
        """Whether these settings are plain decoding whatever the model says."""
        return (self.alpha_cd == 0 or self.alpha_interp == 1) and self.beta == 0


def _number(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name} is {value!r} ({type(value).__name__}); expected a number")
    # Compared before it is made a float: an integer may be too large for one.
    if not low <= value <= high or abs(value) > 1e30:
        expected = "a finite number" if high == math.inf else f"{low:g} to {high:g}"
        raise ConfigError(f"{name} is {value}; expected {expected}")


def _one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(map(repr, allowed))}")
