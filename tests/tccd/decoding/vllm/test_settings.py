"""What a request may ask for, and which banks an operator may name."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tccd import CentroidBank
from tccd.decoder import ModelIdentity
from tccd.decoding.config import Rule
from tccd.decoding.vllm.banks import Banks, parse
from tccd.decoding.vllm.sampling import decided
from tccd.decoding.vllm.settings import read, settings, tail_start
from tccd.errors import BankError, ConfigError
from tests.tccd.decoding.common import text_centroids

MODEL = ModelIdentity("demo", None, "llava", hidden_size=64, num_layers=6, fingerprint=None)


def bank(*layers: int, modality: str = "text") -> CentroidBank:
    return CentroidBank.from_arrays(MODEL, {(modality, layer): text_centroids(seed=layer) for layer in layers})


BANKS = Banks({"a": bank(3), "b": bank(1, 4)})


def test_no_key_is_no_tccd():
    assert settings(None, BANKS) is None
    assert settings({"session_id": "x"}, BANKS) is None


def test_the_first_bank_and_its_only_layer_are_the_default():
    found = settings({"tccd_alpha_cd": 0.5}, BANKS)
    assert (found.bank, found.layer, found.config.alpha_cd, found.config.alpha_interp) == ("a", 3, 0.5, 0.4)


def test_a_bank_by_name():
    found = settings({"tccd_bank": "b", "tccd_layer": 4, "tccd_gate": "margin"}, BANKS)
    assert (found.bank, found.layer, found.config.gate) == ("b", 4, "margin")


@pytest.mark.parametrize("key", ["session_id", "top_k", "gate_threshold", "code", "tcp_port", "cd_layers_x"])
def test_keys_of_others_are_theirs(key):
    assert settings({key: 1}, BANKS) is None


def test_settings_that_do_nothing_are_plain_decoding_but_still_checked():
    assert settings({"tccd_alpha_cd": 0}, BANKS) is None
    assert settings({"tccd_alpha_interp": 1.0}, BANKS) is None
    with pytest.raises(ConfigError, match="expected one of"):
        settings({"tccd_alpha_cd": 0, "tccd_gate": "door"}, BANKS)


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        ({"tccd_alfa": 1}, "unknown TCCD parameters tccd_alfa; expected some of tccd_alpha_cd"),
        ({"TCCD_LAYER": 3}, r"unknown TCCD parameters TCCD_LAYER \(did you mean tccd_layer\?\)"),
        ({"tccd-layer": 3}, "did you mean tccd_layer"),
        ({"tccdlayer": 3}, "did you mean tccd_layer"),
        ({"Tccd_layer": 3}, "did you mean tccd_layer"),
        ({"tccd_apha_cd": 1}, "did you mean tccd_alpha_cd"),
        ({"tcd_alpha_cd": 1}, "did you mean tccd_alpha_cd"),
        ({"tccd": {"alpha_cd": 1}}, "unknown TCCD parameters tccd;"),
        ({"tccd_alpha_cd": True}, r"alpha_cd is True \(bool\)"),
        ({"tccd_layer": False}, "layer is False"),
        ({"tccd_gate": "x" * 300}, r"tccd_gate is 'x{199}\.\.\. \(300 characters\)"),
        ({"tccd_layer": 10**5000}, "tccd_layer is an integer of 16610 bits"),
        ({"tccd_bank": "c"}, "tccd_bank is 'c'; this server has 'a', 'b'"),
        ({"tccd_bank": ["a"]}, "tccd_bank is"),
        ({"tccd_bank": "b"}, r"layers \[1, 4\]; name one as tccd_layer"),
        ({"tccd_layer": 1}, r"bank 'a' has text centroids at \[3\]"),
        ({"tccd_layer": "3"}, "layer is '3'"),
        ({"tccd_alpha_cd": "1"}, "alpha_cd is '1' .*expected a number"),
        ({"tccd_alpha_cd": float("nan")}, "alpha_cd is nan"),
        ({"tccd_alpha_cd": float("inf")}, "alpha_cd is inf"),
        ({"tccd_beta": [0.1]}, "beta is"),
        ({"tccd_gate_threshold": 0.3}, "do nothing without a gate"),
        ({"tccd_tokens": "last"}, "tokens is 'last'"),
    ],
)
def test_bad_parameters_say_what_is_wrong(extra, match):
    with pytest.raises(ConfigError, match=match):
        settings(extra, BANKS)


def test_tail_start_is_behind_the_last_vision_token():
    assert tail_start([1, 9, 9, 2, 9, 3, 4], (9,)) == 5
    assert tail_start([1, 2, 9], (8, 9)) == 3
    assert tail_start([1, 2], (9,)) is None
    assert tail_start([], (9,)) is None


def test_operators_name_banks():
    assert parse("bank.safetensors") == {"default": "bank.safetensors"}
    assert parse("a=/x/a.st, b=b.st") == {"a": "/x/a.st", "b": "b.st"}


@pytest.mark.parametrize("value", ["", "a=", "=x", "a=x,a=y", "x,y", "a b=x", "a=x,"])
def test_malformed_lists_of_banks(value):
    with pytest.raises(ConfigError, match="TCCD_BANK"):
        parse(value)


def test_a_path_with_a_comma_is_explained():
    with pytest.raises(ConfigError, match=r"'/x/a' has no name.*If the comma is part of a path, rename the file"):
        parse("/x/a,b/bank.st")


def test_a_bank_needs_centroids():
    with pytest.raises(BankError, match="no text centroids"):
        Banks({"a": CentroidBank.from_arrays(MODEL, {}, vision_mean=torch.zeros(6, 64))})


def test_without_a_bank_there_are_references_that_need_none():
    none = Banks({})
    assert parse("none") == {}
    assert settings({"tccd_reference": "no-vision"}, none).modality is None
    for extra in ({}, {"tccd_reference": "text-centroid"}, {"tccd_reference": "vision-centroid"}):
        with pytest.raises(ConfigError, match="needs a bank, and this server has none"):
            settings({"tccd_alpha_cd": 1.0} | extra, none)


def test_a_reference_takes_its_own_centroids_and_default():
    both = Banks({"a": bank(3), "v": bank(2, modality="vision")})
    found = settings({"tccd_reference": "vision-centroid", "tccd_bank": "v"}, both)
    assert (found.modality, found.layer, found.config.alpha_interp) == ("vision", 2, 0.0)
    with pytest.raises(ConfigError, match=r"bank 'a' has vision centroids at \[\]"):
        settings({"tccd_reference": "vision-centroid"}, both)
    assert both.entries == (("a", "text", 3), ("v", "vision", 2))
    assert "text centroids at layers 3" in both.describe()


def test_the_digest_is_of_the_centroids():
    other = Banks({"x": bank(3), "y": bank(4)})
    assert other.digest("x", 3) == BANKS.digest("a", 3)
    assert other.digest("x", 3) != other.digest("y", 4)
    assert other.digests["x"] == BANKS.digests["a"] != other.digests["y"]
    assert BANKS.digests["b"] not in (other.digests["y"], Banks({"x": bank(1)}).digests["x"])


RULES = st.builds(
    lambda gate, **more: Rule(gate=gate, **(more if gate else {k: v for k, v in more.items() if "gate" not in k})),
    alpha_cd=st.floats(-2, 2),
    beta=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    gate=st.sampled_from([None, "margin", "entropy", "jsd"]),
    gate_threshold=st.floats(0, 1),
    gate_ramp=st.sampled_from([0.0, 0.3, 1.0]),
)


@given(rules=st.lists(RULES, min_size=1, max_size=6), seed=st.integers(0, 99))
def test_a_rule_for_each_row_is_the_rule_of_that_row(rules, seed):
    from tccd.decoding.contrast import contrast

    generator = torch.Generator().manual_seed(seed)
    clean, erased = 3 * torch.randn(2, len(rules), 50, generator=generator)
    clean[:, 7] = -torch.inf
    found = decided(clean, erased, rules)
    for row, rule in enumerate(rules):
        wanted, _ = contrast(clean[row], erased[row], rule)
        kept = wanted.isfinite()
        torch.testing.assert_close(found[row][kept], wanted[kept], rtol=1e-5, atol=1e-5)
        assert found[row][7].isneginf()
        rest = ~kept & clean[row].isfinite()
        assert (found[row][rest][clean[row][rest].argsort()].diff() >= 0).all()
        if rest.any():  # far below, so that a grammar that forbids the others finds the clean stream's order
            assert (found[row][rest] < found[row][kept].min() - 100).all()


def test_one_class_satisfies_both_runners():
    pytest.importorskip("vllm")
    from vllm.v1.sample.logits_processor import LogitsProcessor as V1
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as V2

    from tccd.decoding.vllm.processor import TCCDProcessor

    assert issubclass(TCCDProcessor, V1)
    assert issubclass(TCCDProcessor, V2)
    logits = torch.zeros(1, 4)
    assert TCCDProcessor(None, None, False).apply(logits) is logits
    assert TCCDProcessor(None, None).apply(logits, None) is logits


def test_equal_parameters_are_read_once_and_errors_each_time():
    read.cache_clear()
    for _ in range(3):
        assert settings({"tccd_alpha_cd": 1.0, "tccd_beta": 0.1}, BANKS).config.alpha_cd == 1.0
        assert settings({"tccd_beta": 0.1, "tccd_alpha_cd": 1.0}, BANKS).config.beta == 0.1
    assert read.cache_info().misses == 1
    with pytest.raises(ConfigError, match="alpha_cd is True"):  # equal to 1.0, and not the same
        settings({"tccd_alpha_cd": True, "tccd_beta": 0.1}, BANKS)
    for _ in range(2):
        with pytest.raises(ConfigError, match="beta is -1"):
            settings({"tccd_beta": -1}, BANKS)
    assert read.cache_info().currsize == 1
    assert settings({"tccd_alpha_cd": 1.0, "tccd_beta": 0.1, "other": [1]}, BANKS) is not None
    assert read.cache_info().misses == 4
