"""What a soak asks, and what it takes for another answer; and the stored one has none. Nothing is served here."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from eval import soak
from eval.soak.__main__ import differs
from eval.soak.asks import BAD, CONTRASTS, bad, good
from tccd.decoding.vllm.settings import REFERENCES

STORED = json.loads((Path(soak.__file__).parents[1] / "results" / "soak.json").read_text())
ANSWER = {
    "choices": [{"logprobs": {"content": [{"token": "red", "logprob": -0.5}, {"token": ".", "logprob": -0.25}]}}],
    "usage": {"prompt_tokens": 70},
}


def test_every_reference_is_asked_for():
    asked = {extra.get("tccd_reference", "text-centroid") for extra in CONTRASTS.values() if extra}
    assert asked == set(REFERENCES)
    assert good(2) == good(2)
    assert len(good(2)) == 2 * len(CONTRASTS)
    assert len(bad()) > len(BAD)


@pytest.mark.parametrize("change", ["token", "logprob", "usage", None])
def test_any_difference_is_one(change):
    other = copy.deepcopy(ANSWER)
    if change == "usage":
        other["usage"]["prompt_tokens"] = 71
    elif change is not None:
        other["choices"][0]["logprobs"]["content"][1][change] = {"token": "!", "logprob": -0.2}[change]
    assert differs(other, ANSWER) == (change is not None)


def test_the_stored_soak_found_nothing():
    for counts in (STORED["counts"], STORED["after kill -9 and restart"]):
        assert not {"lost", "different", "bad served"} & set(counts)
        assert all(counts[f"same: {name}"] > 0 for name in CONTRASTS)
    assert STORED["notes"] == []
    assert STORED["out_of_step"] == 0
    assert STORED["preemptions"] > 0
    assert STORED["stopped_after_kill"]
