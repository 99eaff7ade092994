"""The peers' harness: its fast evaluation against the functions that decode, its rule of choice, its rows."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from eval import zoo
from eval.peers import __main__ as command
from eval.peers import page, table
from eval.peers.methods import Method, Mix, grid, methods
from eval.peers.outcomes import Scores, gumbel, prior
from eval.peers.questions import Questions, questions
from eval.speed import ways
from eval.speed.models import random_qwen
from probes.statistics.clusters import Clusters
from tccd import CentroidBank
from tccd.data import Sample
from tccd.decoding.config import Rule

N, VOCABULARY = 60, 7


def drawn(seed: int, *names: str) -> Scores:
    draws = torch.Generator().manual_seed(seed)
    streams = {name: 2 * torch.randn(N, VOCABULARY, generator=draws) for name in ("clean", *names)}
    right = torch.nn.functional.one_hot(torch.randint(VOCABULARY, (N,), generator=draws), VOCABULARY).bool()
    return Scores(streams, right)


@pytest.mark.parametrize("sampled", [False, True])
def test_shares_are_those_of_the_functions_that_decode(sampled):
    scores = drawn(0, "a", "b")
    scores = scores.sampled() if sampled else scores
    where = torch.arange(N) % 3 > 0
    for mix, rules in (
        (Mix(("a",)), grid(strengths=(0.5, 2.0))),
        (Mix(("a", "b"), (1.0, -0.5), clean="b"), grid(("margin", "entropy"), (0.5, 2.0))),
    ):
        outcomes = np.stack([scores.outcome(mix, rule)[:, where].mean() for rule in rules])
        np.testing.assert_allclose(scores.shares(mix, rules, where), outcomes, atol=1e-6)
        assert len(set(outcomes.round(6).tolist())) > 6


def test_sampling_draws_by_probability():
    logits = torch.tensor([2.0, 1.0, 0.0, -math.inf]).expand(20_000, 4)
    drawn = (logits + gumbel(logits.shape, 3)).argmax(-1)
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(shares, logits[0].softmax(-1), rtol=0, atol=0.01)
    assert not torch.equal(gumbel((5, 4), 0), gumbel((5, 4), 1))


def test_every_seed_draws_anew_and_all_methods_alike():
    scores = drawn(1, "a").sampled()
    plain = scores.judge(scores.streams["clean"])
    assert plain.shape == (3, N)
    assert not torch.equal(plain[0], plain[1])
    assert np.array_equal(scores.outcome(Mix(("a",)), Rule(alpha_cd=0.0)), plain.numpy())


def test_the_prior_is_read_from_the_other_half():
    clean = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    log_p = clean.log_softmax(-1)
    found = prior(clean, ["a", "a", "a", "b", "b"], np.array([True, True, False, False, False]))
    torch.testing.assert_close(found[0], log_p[2])
    torch.testing.assert_close(found[2], log_p[:2].mean(0))
    torch.testing.assert_close(found[3], log_p[3])  # nobody asks it there: nothing to contrast with


def twins(competing: dict[str, list[float]], grounded: dict[str, list[float]]) -> table.Twins:
    """Two answers, the first is right; each stream's logit of it, by question."""

    def scores(margins: dict[str, list[float]]) -> Scores:
        streams = {name: torch.tensor([[m, 0.0] for m in values]) for name, values in margins.items()}
        return Scores(streams, torch.tensor([[True, False]] * len(margins["clean"])))

    return table.Twins(scores(competing), scores(grounded))


def test_choice_is_the_largest_gain_among_the_harmless():
    both = twins(
        {"clean": [-1.0, -1.0, -1.0, 1.0], "mild": [-3.0, 0.0, 0.0, 0.0], "strong": [-9.0, -9.0, 0.0, 0.0]},
        {"clean": [1.0, 1.0, 1.0, 1.0], "mild": [0.0, 0.0, 0.0, 0.0], "strong": [9.0, 0.0, 0.0, 0.0]},
    )
    every = np.ones(4, dtype=bool)
    mixes = (Mix(("strong",)), Mix(("mild",)))
    chosen = both.choose(Method("any", "reference", mixes, (Rule(alpha_cd=1.0), Rule(alpha_cd=0.5))), every)
    assert chosen.mix == mixes[1]
    assert chosen.choosing == (0.25, 0.0)
    assert chosen.rule == Rule(alpha_cd=1.0)
    off = both.choose(Method("any", "reference", mixes[:1], (Rule(alpha_cd=1.0), Rule(alpha_cd=0.5))), every)
    assert off.describe() == {"off": True}
    published = both.choose(Method("any", "reference", mixes[:1], (Rule(alpha_cd=1.0),)), every)
    assert published.mix == mixes[0]
    assert published.choosing[1] == -0.25


def test_choice_sees_the_choosing_half_alone():
    margins = {"clean": [-1.0, -1.0, -1.0, 1.0], "early": [-9.0, -9.0, 0.0, 0.0], "late": [0.0, 0.0, -9.0, 0.0]}
    both = twins(margins, {"clean": [1.0] * 4, "early": [0.0] * 4, "late": [0.0] * 4})
    method = Method("any", "reference", (Mix(("early",)), Mix(("late",))), (Rule(alpha_cd=0.5), Rule()))
    first = np.array([True, True, False, False])
    for half, name, gained in ((first, "early", 1.0), (~first, "late", 0.5)):
        chosen = both.choose(method, half)
        assert chosen.mix is not None
        assert chosen.mix.references == (name,)
        assert chosen.choosing == (gained, 0.0)


def asked(n: int) -> Questions:
    def load():
        raise AssertionError("no picture is needed")

    samples = [Sample(str(i), str(i // 2), f"question {i % 9}", "yes", None, None, load) for i in range(n)]
    numbers = np.arange(n)
    clusters = Clusters.of(numbers // 2, numbers % 9)
    return Questions(samples, numbers % 2 == 0, (numbers % 4 > 1).astype(int), clusters)


def report(decodings: tuple[str, ...] = ("greedy", "sampled")) -> list[dict]:
    """Rows of three families with drawn logits."""
    every = [m for m in methods() if m.name in ("plain", "no-vision", "sharper", "random direction", table.BLANK)]
    every += [m for m in methods() if m.name in ("DoLa, low", "marginal of 48 images")]
    names = sorted(set().union(*(m.needs for m in every)) - {"clean", "uniform"})
    found = []
    for number, family in enumerate(zoo.FAMILIES):
        both = [drawn(number + 10 * k, *names) for k in range(2)]
        both = [Scores({**s.streams, "uniform": torch.zeros(N, VOCABULARY)}, s.right) for s in both]
        for decoding in decodings:
            mine = table.Twins(*(s.sampled() if decoding == "sampled" else s for s in both))
            costs = {"plain": 1.0, "no_vision": 1.05, "tccd": 1.07, "early_exit_low": 1.01, "blank_image": 1.1}
            found += table.rows(family, decoding, mine, asked(N), every, costs)
    return found


def test_rows_say_what_was_measured():
    found = report()
    assert len(found) == 3 * 2 * 2 * 3 * 7
    keys = {
        "model",
        "method",
        "kind",
        "settings",
        "n",
        "baseline",
        "accuracy",
        "delta",
        "ci95",
        "p_value",
        "p_holm",
    }
    keys |= {"cpu_ratio", "passes", "harm", "harm_ci95", "decoding", "data", "pictures", "question_strings"}
    for row in found:
        assert keys <= set(row)
        assert row["delta"] == pytest.approx(row["accuracy"] - row["baseline"])
        assert row["ci95"][0] <= row["delta"] <= row["ci95"][1]
        assert row["n"] == {"both": 30, "easy-vqa": 15, "digits": 15}[row["data"]] * (
            3 if row["decoding"] == "sampled" else 1
        )
        if row["model"].endswith("grounded"):
            assert row["harm"] == row["delta"]
        if row["kind"] == "plain":
            assert row["delta"] == 0
    twin = {(r["model"], r["method"], r["data"], r["decoding"]): r for r in found}
    row = twin["llava-competing", "DoLa, low", "both", "greedy"]
    assert row["harm"] == twin["llava-grounded", "DoLa, low", "both", "greedy"]["delta"] != row["delta"]
    sharper = [r for r in found if (r["method"], r["decoding"]) == ("sharper", "greedy")]
    assert {r["delta"] for r in sharper} == {0.0}  # a temperature changes no largest logit
    block = [r for r in found if (r["model"], r["data"], r["decoding"]) == ("llava-competing", "both", "greedy")]
    tested = [r for r in block if r["kind"] not in ("plain", "oracle")]
    assert all(r["p_holm"] >= r["p_value"] for r in tested)
    assert [r["p_holm"] for r in block if r not in tested] == [None, None]


def test_report_is_json_with_one_row_a_line():
    rows = [{"a": 1, "b": [0.123456789, {"c": 1e-12}]}, {"a": 2, "b": None}]
    text = command.written({"schema": "any", "config": {"seeds": (0, 1)}, "rows": rows})
    rows[0]["b"][0] = 0.12346
    assert json.loads(text) == {"schema": "any", "config": {"seeds": [0, 1]}, "rows": rows}
    assert '  {"a": 2, "b": null}\n' in text


def test_page_holds_every_method_and_is_drawn(tmp_path):
    found = report()
    file = tmp_path / "peers.md"
    file.write_text("before\n" + "\n".join(f"{a}\nold\n{b}" for a, b in page.MARKS.values()) + "\nafter\n")
    page.fill(file, found)
    page.fill(file, found)
    text = file.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    for method in {row["method"] for row in found} - {"plain"}:
        assert text.count(f"| {method} |") == 2
    page.draw(found, tmp_path / "peers.png")
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")


def test_costs_are_those_of_the_speed_benchmark(tmp_path):
    file = tmp_path / "speed.json"
    file.write_text(json.dumps({"of_contrast": {"prefill": {"tccd": 9}, "request": {"tccd": 1.05}}}))
    assert command.costs(file) == {"tccd": 1.05}
    assert command.costs(tmp_path / "none.json") == {}


def test_every_cost_is_timed_by_the_speed_benchmark():
    model = random_qwen(2, 64, 96, 4, 2, 1024, torch.float32)
    vectors = {(name, 0): torch.randn(4, 64) for name in ("text", "vision")}
    bank = CentroidBank.from_arrays(model, vectors, vision_mean=torch.randn(2, 64))
    timed, missing = ways.methods(model, bank, 0, 3)
    assert {method.cost for method in methods() if method.cost} <= set(timed) | set(missing)


def test_questions_are_two_halves_without_a_common_picture():
    found = questions(200, 300)
    assert len(found.samples) == 500
    pictures = np.array([sample.picture_digest for sample in found.samples])
    assert not set(pictures[found.choosing]) & set(pictures[~found.choosing])
    assert found.choosing.sum() == 200
    shares = [found.source[found.choosing == side].mean() for side in (True, False)]
    assert shares == pytest.approx([0.26, 0.26], abs=0.01)
    assert found.digest() == questions(200, 300).digest() != questions(200, 301).digest()
