"""Two costs, and two models, by their difference over the same questions."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from probes.compare import compare
from probes.report import validate
from probes.report.headline import headline
from probes.report.page import render
from probes.report.pairs import between_costs, between_models, larger
from probes.report.sections import answer, findings
from probes.report.sections.cost import NEAR_ZERO
from probes.statistics.outcomes import bits, cost, outcomes_of
from tests.probes.probed import TASKS, probed


def close(text=0.30, vision=0.18, n=100, seed=3):
    """A report whose two costs have intervals that overlap though their paired difference is above zero: most of
    what vision loses text loses too."""
    result = probed(n=n, layers=(1,))
    questions = result["questions"]["competing"]
    plain = outcomes_of(questions["right"])
    draw = np.random.default_rng(seed).random(n)
    lost = {"text": draw < text, "vision": draw < vision}
    tasks = [TASKS[i % 2] for i in range(n)]
    for cell in result["cells"]:
        right = plain & ~lost[cell["modality"]]
        cell |= cost(plain, right, tasks) | {"right": bits(right)}
    return result


def test_costs_whose_intervals_overlap_are_told_apart_by_their_difference():
    result = close()
    chosen = headline(result, "competing")
    assert chosen.text["ci95"][0] < chosen.vision["ci95"][1], "by these alone they can't be told apart"
    which, difference = larger(result, chosen.text, chosen.vision)
    assert which == 1
    assert difference.value == pytest.approx(chosen.text["cost"] - chosen.vision["cost"])
    assert 0 < difference.low < difference.value < difference.high
    told = " ".join(answer(result))
    assert "Erasing text costs more accuracy than erasing vision" in told
    assert "difference +" in told
    bare = {k: v for k, v in result.items() if k != "questions"}
    assert larger(bare, chosen.text, chosen.vision) == (0, None)
    assert "can't be told apart" in " ".join(answer(bare))


def test_the_difference_turns_with_its_sides():
    result = close()
    text, vision = headline(result, "competing").text, headline(result, "competing").vision
    one, other = between_costs(result, text, vision), between_costs(result, vision, text)
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))
    assert larger(result, vision, text)[0] == -1
    assert larger(result, text, text)[0] == 0


def test_two_models_are_compared_over_the_same_questions_in_any_order():
    one, other = probed("one", helped=0.1), probed("other", seed=1)
    merged = compare({"a": one, "b": other})
    rows = {row["measure"]: row for row in between_models(merged)}
    assert set(rows) == {"accuracy", "text", "vision"}
    for measure, row in rows.items():
        expected = [
            result["models"][name]["accuracy"]["accuracy"]
            if measure == "accuracy"
            else getattr(headline(result, name), measure)["cost"]
            for name, result in (("one", one), ("other", other))
        ]
        assert row["difference"] == pytest.approx(expected[0] - expected[1])
        assert row["ci95"][0] < row["difference"] < row["ci95"][1]
        assert row["p_holm"] >= row["p_value"]
    turned = copy.deepcopy(other)
    questions = turned["questions"]["other"]
    for name, column in questions.items():
        questions[name] = column[::-1]
    for part in ("cells", "controls", "tccd_cells"):
        for cell in turned[part]:
            cell["right"] = cell["right"][::-1]
    again = between_models(compare({"a": one, "b": turned}))
    assert again == between_models(merged)
    page = render(merged)
    assert "Two models, by their difference" in page
    assert "one less other" in page
    assert "Two models, by their difference" not in render(one)


def test_models_that_were_asked_others_are_not_compared():
    one = probed("one")
    merged = compare({"a": one, "b": probed("other", seed=1)})
    merged["questions"]["other"]["id"][0] = "another"
    assert between_models(merged) == []
    del merged["questions"]
    assert between_models(merged) == []


@pytest.mark.parametrize(("vision", "unsure"), [(0.30, False), (0.06, True)])
def test_the_page_says_where_a_ratio_near_zero_can_err_to(vision, unsure):
    result = close(vision=vision)
    result["ratio"]["competing"] |= {"ratio": 3.0, "ci95": [2.0, 9.0]}
    assert (NEAR_ZERO in findings(result, "competing")) == unsure
    assert ("the ratio given is too small" in render(result)) == unsure


def test_reports_of_both_ages_are_valid_and_say_what_questions_share():
    old = probed()
    validate(old)
    new = probed()
    new["questions"]["competing"] |= {
        "picture": new["questions"]["competing"]["image_id"],
        "prompt": [f"string {i % 20}" for i in range(200)],
    }
    new["models"]["competing"]["accuracy"] |= {"pictures": 50, "question_strings": 20}
    validate(new)
    page = render(new)
    assert "about 50 pictures" in page
    assert "in 20 question strings" in page
    assert "their question strings were seen" in page
    assert "about 50 pictures" not in render(old)
