"""What TCCDConfig takes, what it refuses, and what it says."""

import dataclasses
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tccd.decoding.config import TOKENS, TCCDConfig
from tccd.decoding.gates import GATES
from tccd.errors import ConfigError

SHARES = ("alpha_interp", "beta", "gate_threshold", "gate_ramp")
NUMBERS = ("alpha_cd", *SHARES)
NAMES = tuple(f.name for f in dataclasses.fields(TCCDConfig))


def refusal(**values) -> str:
    with pytest.raises(ConfigError) as caught:
        TCCDConfig(**values)
    with pytest.raises(ConfigError, match=re.escape(str(caught.value))):
        TCCDConfig.from_dict(values)
    return str(caught.value)


def test_the_defaults_are_the_papers_and_nothing_else_is_on():
    config = TCCDConfig()
    assert (config.alpha_cd, config.alpha_interp) == (1.0, 0.4)
    assert (config.beta, config.gate, config.tokens, config.layer) == (0.0, None, "all", None)
    assert not config.is_off
    assert not config.needs_logits


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.001, -1])
def test_numbers_out_of_range_are_refused(name, value):
    if name == "alpha_cd" and math.isfinite(value):
        assert TCCDConfig(alpha_cd=value).alpha_cd == value  # of either sign
        return
    expected = "a finite number" if name == "alpha_cd" else "0 to 1"
    assert refusal(**{name: value}) == f"{name} is {value}; expected {expected}"


@pytest.mark.parametrize("name", SHARES)
@pytest.mark.parametrize("value", [1.0001, 2, 100])
def test_shares_end_at_one(name, value):
    assert refusal(**{name: value}) == f"{name} is {value}; expected 0 to 1"


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [True, False, "0.4", None, [0.4], 1j, {}])
def test_what_is_no_number_is_refused(name, value):
    assert refusal(**{name: value}) == f"{name} is {value!r} ({type(value).__name__}); expected a number"


@pytest.mark.parametrize("name", ["alpha_cd", "beta"])
def test_an_integer_too_large_for_a_float_is_refused(name):
    assert refusal(**{name: 10**400}).startswith(f"{name} is ")


@pytest.mark.parametrize("value", [-1, 1.0, "12", True, [12], math.nan])
def test_layers_that_are_no_index_are_refused(value):
    assert refusal(layer=value) == f"layer is {value!r}; expected a decoder layer's index, from 0, or None"


@pytest.mark.parametrize("name", ["gate", "tokens"])
@pytest.mark.parametrize("value", ["", "MARGIN", "last", 1, True, ["margin"], ("all",)])
def test_unknown_words_are_refused_and_the_known_ones_listed(name, value):
    message = refusal(**{name: value})
    assert message.startswith(f"{name} is {value!r}; expected one of ")
    assert all(repr(word) in message for word in (GATES if name == "gate" else TOKENS))


def test_no_token_selection_at_all_is_refused():
    assert refusal(tokens=None) == "tokens is None; expected one of 'all', 'first'"


@pytest.mark.parametrize("unknown", [{"alpha": 1.0}, {"alpha_cd": 1.0, "Beta": 0.1}, {"": 1}, {1: 2, "x": 3}])
def test_unknown_keys_are_refused_and_the_known_ones_listed(unknown):
    with pytest.raises(ConfigError, match="unknown TCCD settings") as caught:
        TCCDConfig.from_dict(unknown)
    assert all(repr(key) in str(caught.value) for key in set(unknown) - set(NAMES))
    assert all(repr(name) in str(caught.value) for name in NAMES)


SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "alpha_cd": st.floats(0, 1e6) | st.integers(0, 9),
        "layer": st.none() | st.integers(0, 99),
        "gate": st.sampled_from([None, *GATES]),
        "tokens": st.sampled_from(TOKENS),
        **{name: st.floats(0, 1) | st.integers(0, 1) for name in SHARES},
    },
).map(
    lambda values: (
        values
        if values.get("gate")
        else {k: v for k, v in values.items() if k not in ("gate_threshold", "gate_ramp")}
    )
)


@pytest.mark.parametrize("ignored", [{"gate_threshold": 0.3}, {"gate_ramp": 0.1}])
def test_settings_of_a_gate_that_is_not_there_are_refused(ignored):
    assert "do nothing without a gate" in refusal(**ignored)


@settings(deadline=None)
@given(SETTINGS)
def test_every_setting_in_range_is_kept_as_it_was_given(values):
    config = TCCDConfig.from_dict(values)
    assert config == TCCDConfig(**values)
    assert {name: getattr(config, name) for name in values} == values
    assert TCCDConfig.from_dict(dataclasses.asdict(config)) == config
    assert hash(config) == hash(TCCDConfig(**values))


@settings(deadline=None)
@given(SETTINGS)
def test_a_config_is_off_only_when_no_logit_can_differ(values):
    config = TCCDConfig(**values)
    no_contrast = config.alpha_cd == 0 or config.alpha_interp == 1
    assert config.is_off == (no_contrast and config.beta == 0)
    assert config.needs_logits == (config.beta > 0 or config.gate is not None)


def test_a_config_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TCCDConfig().alpha_cd = 2.0
