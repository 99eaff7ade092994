"""The words of a report: right for either sign, and as sure as its tests."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probes.report import validate
from probes.report.page import render
from probes.report.prose import interval, points, probability
from probes.report.schema import plain
from probes.report.sections import answer, findings
from probes.report.summary import summarise
from probes.statistics.intervals import mcnemar_counts
from tests.probes.probed import probed
from tests.probes.reports import Reader, cell, compared, result, run


@given(st.integers(0, 60), st.integers(0, 60))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_sentences_follow_the_sign_and_the_test(b, c):
    told = {**result(), "tccd": {"grounded": run(400, 300, b, c)}}
    p_value = mcnemar_counts(b, c).p_value
    for sentence in (answer(told)[-1], next(s for s in findings(told, "grounded") if s.startswith("TCCD"))):
        if p_value >= 0.05:
            assert "no significant change" in sentence
        else:
            assert ("raised" if c > b else "lowered") in sentence
        if b > c and p_value >= 0.05:
            assert "\u2212" in sentence


def test_the_answer_of_a_realistic_result():
    text = " ".join(answer(result()))
    assert "Erasing text costs more accuracy than erasing vision: 13.8 against 0.2 points in the comp" in text
    assert "TCCD raised accuracy on held-out pictures by 7.5 points on the competing model (p = " in text
    assert "TCCD made no significant change on the grounded model (\u22120.2 points" in text
    grounded = " ".join(findings(result(), "grounded"))
    assert "not estimable: it reaches zero." in grounded
    assert "text cost 4.0 times as much as vision (95\u202f% CI 2.5 to 7.0)" in " ".join(
        findings(result(), "competing")
    )


@pytest.mark.parametrize(
    ("text", "vision", "expected"),
    [
        (60, 5, "Erasing text costs more accuracy than erasing vision"),
        (5, 60, "Erasing text costs less accuracy than erasing vision"),
        (30, 29, "can't be told apart"),
    ],
)
def test_the_answer_compares_only_what_differs(text, vision, expected):
    told = result()
    told["cells"] = [cell("grounded", "text", 0, text), cell("grounded", "vision", 0, vision)]
    assert any(expected in sentence for sentence in answer({**told, "ratio": {}}))


def test_erasing_that_helps_is_told_as_it_is():
    told = result()
    told["cells"] = [cell("grounded", "vision", 0, lost=1, gained=18)]
    assert "erasing vision at layer 0 raised accuracy by 4.2 points" in " ".join(answer({**told, "ratio": {}}))


def test_numbers_read_well():
    assert points(-0.0001) == "0.0"
    assert points(-0.0062) == "\u22120.6"
    assert points(0.0616, signed=True) == "+6.2"
    assert interval([-0.003, 0.003]) == "\u22120.3 to 0.3"
    assert probability(0.5) == "= 0.50"
    assert probability(0.0312) == "= 0.031"
    assert probability(0.00051) == "= 0.0005"
    assert re.sub(r"\s", " ", probability(3.2e-36)) == "= 3 \u00d7 10\u207b\u00b3\u2076"
    assert probability(0.0) == "< 10\u207b\u00b3\u2070\u2070"


def test_text_and_vision_erased_at_layers_of_their_own():
    shown = probed()
    shown["cells"] = [c for c in shown["cells"] if (c["modality"], c["layer"]) in (("text", 1), ("vision", 2))]
    shown["controls"], shown["examples"] = [], []
    shown["ratio"]["competing"] |= {"vision_layer": 2}
    validate(shown)
    row = summarise(shown)[0]
    assert (row["text"]["layer"], row["vision"]["layer"]) == (1, 2)
    assert "text at layer 1, vision at layer 2" in answer(shown)[0]
    assert "At layer 1 (vision at layer 2) text cost 4.0 times" in " ".join(findings(shown, "competing"))
    assert {m: len(of) for m, of in row["headline"].by_dose.items()} == {"text": 3, "vision": 3}


def test_the_answer_tells_what_is_advised():
    text = "".join(Reader(render(plain(compared()))).text)
    assert re.search(r"Contrast with text-centroid is recommended for competing at layer.=.\d", text)
    assert "Contrast is best left off for a-model-with-quite-a-long-name-7b" in text


def test_a_warning_is_a_sentence_and_names_its_model_among_several():
    warning = {"code": "x", "model": "competing", "text": "the cost is -2.5 points, 95 % of all"}
    one = render(plain(probed() | {"warnings": [warning]}))
    assert "<li>The cost is \u22122.5 points, 95\u202f% of all.</li>" in one
    two = compared()
    two["warnings"] = [warning]
    assert "<li>competing: the cost is \u22122.5 points" in render(plain(two))


def test_what_is_left_off_says_by_which_test():
    off = "".join(Reader(render(plain(compared()))).text)
    assert re.search(r"with-quite-a-long-name-7b \(.* for the best of 8 settings\)", off)
    single = probed(helped=0)
    single["tccd_cells"], single["protocols"] = single["tccd_cells"][:1], {}
    assert re.search(r"p = \S+\)\.$", answer(single)[-1])
