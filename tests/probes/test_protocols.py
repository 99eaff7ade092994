from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.statistics.protocols import best, cv, fixed, leave_one_model_out, protocols
from tccd.errors import ConfigError, DataError

alphas = (0.0, 0.2, 0.4, 0.8)
tables = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.fixed_dictionaries({a: st.floats(-1, 1) for a in alphas}),
    min_size=2,
    max_size=6,
)


@given(tables)
def test_no_protocol_beats_the_oracle(table):
    oracle = best(table)
    assert oracle.oracle
    for protocol in (cv(table), *(fixed(table, alpha) for alpha in alphas)):
        assert not protocol.oracle
        assert protocol.mean <= oracle.mean + 1e-12
        assert all(table[task][a] == protocol.values[task] for task, a in protocol.chosen.items())


@given(tables)
def test_a_task_has_no_say_in_its_own_alpha(table):
    task = next(iter(table))
    changed = {**table, task: {a: -value for a, value in table[task].items()}}
    assert cv(changed).chosen[task] == cv(table).chosen[task]
    models = {"one": table, "two": {"t": {a: -a for a in alphas}}}
    changed_models = {**models, "one": {t: {a: 5.0 * a for a in alphas} for t in table}}
    chosen, changed_chosen = (leave_one_model_out(m).chosen for m in (models, changed_models))
    assert chosen["one"] == changed_chosen["one"] == 0.0


@given(tables)
def test_protocols_do_not_depend_on_the_order_of_tasks_or_alphas(table):
    turned = {t: dict(reversed(row.items())) for t, row in reversed(table.items())}
    assert cv(turned).chosen == cv(table).chosen
    assert best(turned).chosen == best(table).chosen


def test_ties_go_to_the_smallest_alpha():
    flat = {task: {0.8: 0.1, 0.2: 0.1, 0.4: 0.1} for task in "xyz"}
    assert set(cv(flat).chosen.values()) == set(best(flat).chosen.values()) == {0.2}
    assert set(leave_one_model_out({"a": flat, "b": flat}).chosen.values()) == {0.2}
    # The same ten deltas, summed from either end: equal means whose last bits may differ.
    crossed = {str(i): {0.0: 0.1 * i, 1.0: 0.1 * (9 - i)} for i in range(10)}
    assert cv({**crossed, "last": {0.0: 0.0, 1.0: 0.0}}).chosen["last"] == 0.0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fixed({"a": {0.4: 0.1}}, 0.5), ConfigError, "not in the table"),
        (lambda: cv({"a": {0.4: 0.1}}), DataError, "two tasks"),
        (lambda: best({}), DataError, "empty"),
        (lambda: best({"a": {}}), DataError, "empty"),
        (lambda: best({"a": {0.1: 0.0}, "b": {0.2: 0.0}}), DataError, "task b holds alphas"),
        (lambda: best({"a": {0.1: math.nan}}), DataError, "not finite"),
        (lambda: leave_one_model_out({"m": {"a": {0.1: 0.0}}}), DataError, "two models"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def cell(delta, alpha_cd, alpha_interp=0.4, layer=3):
    rest = {"k": 8, "beta": 0.0, "gate": None}
    by_task = [{"task": task, "delta": delta} for task in ("colour", "shape")]
    return {"alpha_cd": alpha_cd, "alpha_interp": alpha_interp, "layer": layer, **rest, "by_task": by_task}


@given(st.permutations(range(5)))
def test_cells_in_any_order_give_the_same_choice_and_of_equals_the_mildest(order):
    cells = [cell(0.1, 2.0), cell(0.1, 0.5, 0.0), cell(0.1, 0.5, layer=4), cell(0.1, 0.5), cell(0.0, 1.0, layer=4)]
    found = {protocol["name"]: protocol["chosen"] for protocol in protocols([cells[i] for i in order])}
    chosen = {name: {order[i] for i in at.values()} for name, at in found.items()}
    assert chosen == {"fixed": {4}, "cv": {2}, "best": {2}}
