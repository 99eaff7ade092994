"""What a request may ask for, and which banks an operator may name."""

from __future__ import annotations

import pytest
import torch

from tccd import CentroidBank
from tccd.decoder import ModelIdentity
from tccd.decoding.config import TCCDConfig
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


def test_a_bank_needs_text_centroids():
    with pytest.raises(BankError, match="no text centroids"):
        Banks({"a": bank(2, modality="vision")})
    with pytest.raises(BankError, match="no bank"):
        Banks({})


def test_the_digest_is_of_the_centroids():
    other = Banks({"x": bank(3), "y": bank(4)})
    assert other.digest("x", 3) == BANKS.digest("a", 3)
    assert other.digest("x", 3) != other.digest("y", 4)
    assert other.digests["x"] == BANKS.digests["a"] != other.digests["y"]
    assert BANKS.digests["b"] not in (other.digests["y"], Banks({"x": bank(1)}).digests["x"])


def test_implausible_tokens_stay_ranked_far_below_the_others():
    generator = torch.Generator().manual_seed(0)
    clean, erased = 3 * torch.randn(2, 50, generator=generator)
    clean[7] = -torch.inf
    config = TCCDConfig(alpha_cd=2.0, beta=0.2)
    found = decided(clean, erased, config)
    from tccd.decoding.contrast import contrast

    wanted, _ = contrast(clean, erased, config)
    kept = wanted.isfinite()
    assert torch.equal(found[kept], wanted[kept])
    assert torch.allclose(found.softmax(-1), wanted.softmax(-1), atol=1e-7)
    assert found[7].isneginf()
    rest = ~kept & clean.isfinite()
    assert rest.any()
    assert (found[rest].argsort() == clean[rest].argsort()).all()
    assert (found[rest] < found[kept].min() - 100).all()


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
