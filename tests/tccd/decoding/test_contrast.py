"""The contrast rule against its definitions in plain Python floats, and its algebra."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from tccd.decoding.config import Rule, TCCDConfig
from tccd.decoding.contrast import combine, contrast, contrast_all, plausible
from tccd.decoding.gates import GATES, entropy, jsd, margin
from tccd.decoding.gates import opening as opening_of

LOGIT = st.floats(-30, 30, width=32)


def signal(clean, erased, gate):
    return GATES[gate].signal(clean, erased)


def opening(values, gate, threshold, ramp):
    return opening_of(values, threshold, ramp, GATES[gate].opens_below)


ALPHA = st.floats(0, 4)
SHARE = st.floats(0, 1)
RAMP = st.just(0.0) | st.floats(1e-6, 1)

quick = settings(deadline=None, max_examples=50)


def rows(count: int):
    """`count` lists of logits of one length, 2 to 12."""
    return st.integers(2, 12).flatmap(
        lambda n: st.tuples(*[st.lists(LOGIT, min_size=n, max_size=n)] * count).map(torch.tensor)
    )


def probabilities(logits) -> list[float]:
    top = max(float(x) for x in logits)
    weights = [math.exp(float(x) - top) for x in logits]
    return [w / sum(weights) for w in weights]


def nats(p: list[float]) -> float:
    return -sum(x * math.log(x) for x in p if x > 0)


@quick
@given(rows(2), ALPHA)
def test_combine_is_the_formula(pair, alpha):
    expected = [float(c) + alpha * (float(c) - float(e)) for c, e in zip(*pair, strict=True)]
    assert_close(combine(*pair, alpha).double(), torch.tensor(expected).double(), rtol=1e-5, atol=1e-4)


@quick
@given(rows(2), ALPHA)
def test_without_beta_and_gate_the_rule_is_the_formula_and_nothing_else(pair, alpha):
    combined, opened = contrast(*pair, TCCDConfig(alpha_cd=alpha))
    assert torch.equal(combined, combine(*pair, alpha))
    assert opened.shape == pair.shape[1:-1]
    assert (opened == 1).all()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, 2.5])
def test_the_head_of_the_combined_states_is_the_combination_of_the_logits(bias, alpha):
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 40, bias=bias)
    clean, erased = torch.randn(2, 3, 5, 16)
    assert_close(
        head(combine(clean, erased, alpha)), combine(head(clean), head(erased), alpha), rtol=1e-5, atol=1e-5
    )


@quick
@given(rows(2))
def test_no_strength_or_no_difference_is_the_clean_stream(pair):
    clean, erased = pair
    assert torch.equal(combine(clean, erased, 0.0), clean)
    assert torch.equal(combine(clean, clean, 2.0), clean)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_combination_is_made_in_fp32(dtype):
    clean, erased = torch.randn(2, 4, 9).to(dtype)
    assert torch.equal(combine(clean, erased, 0.7), combine(clean.float(), erased.float(), 0.7))
    assert contrast(clean, erased, TCCDConfig(beta=0.1))[0].dtype == torch.float32


def test_a_strength_for_each_row():
    clean, erased = torch.randn(2, 3, 9)
    got = combine(clean, erased, torch.tensor([[0.0], [1.0], [2.0]]))
    assert all(torch.equal(got[i], combine(clean[i], erased[i], float(i))) for i in range(3))


@pytest.mark.parametrize("beta", [0.0, 0.01, 0.1, 0.33, 0.5, 0.99, 1.0])
def test_plausible_tokens_have_beta_times_the_largest_probability(beta):
    shares = [*((i + 0.5) / 100 for i in range(100)), 1.0]  # of the largest probability
    logits = torch.tensor([7 + math.log(share) for share in shares])
    assert plausible(logits, beta).tolist() == [share >= beta for share in shares]


@quick
@given(rows(1), SHARE, SHARE)
def test_plausibility_keeps_the_clean_maximum_and_shrinks_with_beta(row, one, other):
    low, high = plausible(row, min(one, other)), plausible(row, max(one, other))
    assert not (high & ~low).any()
    assert high[row == row.max()].all()
    assert plausible(row, 0.0).all()
    assert torch.equal(plausible(row, 1.0), row == row.max())


@quick
@given(rows(2), ALPHA, st.floats(0.01, 1))
def test_beta_drops_implausible_tokens_and_changes_no_other(pair, alpha, beta):
    got, _ = contrast(*pair, TCCDConfig(alpha_cd=alpha, beta=beta))
    keep = plausible(pair[0], beta)
    assert torch.equal(got[keep], combine(*pair, alpha)[keep])
    assert (got[~keep] == -math.inf).all()


@quick
@given(rows(2))
def test_signals_are_their_definitions(pair):
    p, q = map(probabilities, pair)
    top = sorted(p)
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    divergence = (nats(middle) - (nats(p) + nats(q)) / 2) / math.log(2)
    assert float(margin(pair[0])) == pytest.approx(top[-1] - top[-2], abs=1e-5)
    assert float(entropy(pair[0])) == pytest.approx(nats(p) / math.log(len(p)), abs=1e-5)
    assert float(jsd(*pair)) == pytest.approx(divergence, abs=1e-5)


@pytest.mark.parametrize("gate", GATES)
@quick
@given(pair=rows(2))
def test_signals_lie_in_the_unit_interval(gate, pair):
    clean, erased = pair
    value = signal(clean[None, None], erased[None, None], gate)
    assert value.shape == (1, 1)
    assert 0 <= float(value) <= 1


@quick
@given(rows(2))
def test_jsd_is_symmetric_zero_on_equals_and_bounded_by_total_variation(pair):
    clean, erased = pair
    tv = (clean.softmax(-1) - erased.softmax(-1)).abs().sum().item() / 2
    value = float(jsd(clean, erased))
    assert value == pytest.approx(float(jsd(erased, clean)), abs=1e-6)
    assert tv**2 / (2 * math.log(2)) - 1e-5 <= value <= tv + 1e-5
    assert float(jsd(clean, clean)) == 0
    assert float(jsd(clean, clean + 3)) < 1e-6  # the same distribution


@pytest.mark.parametrize("vocabulary", [2, 3, 5, 7, 11, 1000, 32000])
def test_signals_at_their_ends(vocabulary):
    uniform, certain = torch.zeros(vocabulary), torch.zeros(vocabulary).index_fill(0, torch.tensor(1), 1e4)
    other = torch.zeros(vocabulary).index_fill(0, torch.tensor(0), 1e4)
    assert 1 - 1e-5 <= float(entropy(uniform)) <= 1
    assert float(entropy(certain)) == pytest.approx(0, abs=1e-6)
    assert (float(margin(uniform)), float(margin(certain))) == (0, 1)
    assert float(jsd(certain, other)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("gate", GATES)
@quick
@given(threshold=SHARE, ramp=RAMP)
def test_the_gate_opens_one_way_and_half_at_the_threshold(gate, threshold, ramp):
    values = torch.linspace(0, 1, 101)
    opened = opening(values, gate, threshold, ramp)
    steps = opened.diff() if gate != "margin" else -opened.diff()
    assert ((opened >= 0) & (opened <= 1)).all()
    assert (steps >= 0).all()
    if ramp > 1e-3:
        assert float(opening(torch.tensor(threshold), gate, threshold, ramp)) == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("gate", GATES)
def test_without_a_ramp_the_gate_is_a_switch_and_a_ramp_of_one_is_linear(gate):
    values, sign = torch.linspace(0, 1, 11), (-1 if gate == "margin" else 1)
    hard = opening(values, gate, 0.45, 0.0)
    assert hard.tolist() == [float(sign * (v - 0.45) > 0) for v in values.tolist()]
    assert opening(torch.tensor(0.5), gate, 0.5, 0.0) == 0
    assert_close(opening(values, gate, 0.5, 1.0), 0.5 + sign * (values - 0.5))


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("ramp", [1e-3, 1e-6, 1e-30, 1e-60])
def test_a_narrow_ramp_tends_to_the_switch(gate, ramp):
    values = torch.tensor([0.0, 0.49, 0.51, 1.0])
    assert torch.equal(opening(values, gate, 0.5, ramp), opening(values, gate, 0.5, 0.0))
    assert 0 <= float(opening(torch.tensor(0.5), gate, 0.5, ramp)) <= 1


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("beta", [0.0, 0.2])
@quick
@given(pair=rows(2), threshold=SHARE, ramp=RAMP, alpha=ALPHA)
def test_the_gate_scales_the_contrast_and_shut_it_gives_the_clean_logits_whole(
    gate, beta, pair, threshold, ramp, alpha
):
    clean, erased = pair
    config = TCCDConfig(alpha_cd=alpha, beta=beta, gate=gate, gate_threshold=threshold, gate_ramp=ramp)
    got, opened = contrast(clean, erased, config)
    assert torch.equal(opened, opening(signal(clean, erased, gate), gate, threshold, ramp))
    if opened == 0:
        assert torch.equal(got, clean)
    else:
        keep = plausible(clean, beta)
        assert_close(got[keep], combine(clean, erased, alpha * float(opened))[keep])
        assert (got[~keep] == -math.inf).all()


def test_each_row_has_its_own_gate():
    clean = torch.tensor([[9.0, 0.0, 0.0], [1.0, 0.9, 0.0]])
    erased = torch.tensor([[8.0, 3.0, 0.0], [1.2, 0.1, 0.0]])
    got, opened = contrast(clean, erased, TCCDConfig(gate="margin", beta=0.5))
    assert opened.tolist() == [0, 1]
    assert torch.equal(got[0], clean[0])
    assert torch.equal(got[1], contrast(clean[1], erased[1], TCCDConfig(beta=0.5))[0])


EXTREMES = {
    "far apart": ([1e4, -1e4, 0.0, 3.0], [-1e4, 1e4, 0.0, 2.0]),
    "one certain": ([1e4, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1e4]),
    "masked in both": ([1.0, 2.0, -math.inf, 0.5], [0.5, 1.0, -math.inf, 2.0]),
    "one left": ([-math.inf, 2.0, -math.inf, -math.inf], [-math.inf, 1.0, -math.inf, -math.inf]),
    "masked in the clean": ([1.0, 2.0, -math.inf, 0.5], [0.5, 1.0, 3.0, 2.0]),
}


@pytest.mark.parametrize("gate", [None, *GATES])
@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_logits_give_no_nan_and_masked_tokens_stay_masked(name, gate):
    clean, erased = map(torch.tensor, EXTREMES[name])
    for alpha, beta in itertools.product([0.0, 1.0], [0.0, 0.1]):
        got, opened = contrast(clean, erased, TCCDConfig(alpha_cd=alpha, beta=beta, gate=gate))
        assert not opened.isnan()
        assert not got.isnan().any()
        assert (got[clean == -math.inf] == -math.inf).all()
        assert got.softmax(-1).isfinite().all()


@pytest.mark.parametrize("gate", [None, "margin", "jsd"])
@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_several_references_by_their_definition(gate, beta):
    draws = torch.Generator().manual_seed(0)
    clean, *others = (torch.randn(6, 9, generator=draws) for _ in range(3))
    allowed = [torch.tensor([1, 1, 0, 1, 0, 1]).bool(), torch.tensor([1, 0, 1, 1, 0, 1]).bool()]
    weights = (1.5, -0.5)
    rule = Rule(alpha_cd=-0.8, beta=beta, gate=gate, **({"gate_threshold": 0.1} if gate else {}))
    combined, widest = contrast_all(clean, others, rule, weights, allowed)
    for row in range(6):
        expected, opened = clean[row].clone(), []
        for other, weight, where in zip(others, weights, allowed, strict=True):
            opening = 1.0 if gate is None else float(GATES[gate].opening(clean[row], other[row], 0.1, 0.0))
            opened.append(opening * float(where[row]))
            expected += -0.8 * weight * opened[-1] * (clean[row] - other[row])
        if beta and max(opened):
            p = clean[row].softmax(-1)
            expected[p < beta * p.max()] = -torch.inf
        assert_close(combined[row], expected)
        assert float(widest[row]) == max(opened)
