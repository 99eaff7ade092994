"""docs/families.md is the census of today: its rows, a sample judged again, a judge that sees what is wrong."""

from __future__ import annotations

import importlib.util
import random

import pytest
import transformers

from tccd import TCCD
from tests import oracle
from tests.census.architectures import NEED_TIMM, Architecture, architecture, architectures
from tests.census.judge import Verdict, judge
from tests.census.page import PAGE, read, shown, written

TOLD = read(PAGE.read_text())
HERE = transformers.__version__.startswith("5.19.")
only_here = pytest.mark.skipif(not HERE, reason="docs/families.md is about transformers 5.19")


def sample(outcome: str, count: int) -> list[str]:
    """Some rows of the page, others after each change of it."""
    found = importlib.util.find_spec("timm") is not None
    names = [name for name, told in TOLD.items() if told.outcome == outcome and (found or name not in NEED_TIMM)]
    return random.Random(PAGE.read_text()).sample(names, count)


@only_here
def test_every_architecture_of_the_mapping_is_on_the_page():
    assert list(TOLD) == [
        row.name
        for outcome in ("exact", "refused")
        for row in architectures()
        if TOLD[row.name].outcome == outcome
    ]
    assert len(TOLD) == len(architectures())


@only_here
@pytest.mark.parametrize("name", [*sample("exact", 4), *sample("refused", 8)])
def test_a_sample_of_the_page_is_true(name):
    row = architecture(name)
    found, told = shown(row, judge(row)), TOLD[name]
    assert (found.outcome, found.reason, found.left_out) == (told.outcome, told.reason, told.left_out)


def test_a_wrong_logit_is_seen(monkeypatch):
    monkeypatch.setattr(oracle, "withheld_logits", lambda model, batch: oracle.full_logits(model, batch))
    found = judge(architecture("llava"))
    assert (found.outcome, found.reason) == ("wrong", "no-vision, single")
    assert found.error > 1e-2 > 1e-4 > found.noise


def test_a_crash_is_seen_and_so_is_what_can_not_be_built(monkeypatch):
    def fails(*args, **kwargs):
        raise IndexError("out of range")

    monkeypatch.setattr(TCCD, "__call__", fails)
    found = judge(architecture("llava"))
    assert (found.outcome, found.reason) == ("crash", "text-centroid, single: IndexError: out of range")
    found = judge(Architecture("llava", "LlavaForConditionalGeneration", {"text_config": {"hidden_size": 7}}))
    assert found.outcome == "not built"


def test_a_page_is_read_as_it_was_written():
    verdicts = {
        Architecture("a", "A"): Verdict("exact", "", 2.2e-5, 1e-5, ["single (ValueError: no)"]),
        Architecture("b:c | d", "B"): Verdict("refused", "B: x | y (z)"),
        Architecture("e", "E"): Verdict("crash", "boom"),
    }
    text = written(verdicts, "5.19")
    found = read(text)
    assert list(map(str, found.values())) == [str(shown(row, one)) for row, one in verdicts.items()]
    assert str(found["a"]) == str(Verdict("exact", "", 2e-5, 1e-5, ["single (ValueError: no)"]))
    assert str(found["b:c | d"]) == str(Verdict("refused", "x | y (z)"))
    assert str(found["e"]) == str(Verdict("crash", "boom"))
    told = " ".join(text.split())
    assert "Of the 2 architectures that transformers 5.19 takes" in told
    assert "**1 are exact and 0 are refused**. Of 1 variants" in told
    assert "0 are exact and 1 are refused. **Neither: e**." in told


def test_what_fails_for_another_reason_is_not_called_refused():
    row = Architecture("llava", "LlavaForConditionalGeneration", {"vision_feature_layer": 9})
    found = judge(row)
    assert (found.outcome, len(found.left_out)) == ("not built", 0)
    assert found.reason.startswith("no scene runs: single (IndexError: ")
