"""The algebra of folds: what is judged never had a say in what was chosen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.statistics.folds import OFF, best, choose, folds, held_out
from tccd.errors import ConfigError, DataError

images = st.integers(2, 30).flatmap(
    lambda n: st.lists(st.integers(0, n - 1), min_size=n, max_size=80).filter(lambda ids: len(set(ids)) >= 2)
)


@st.composite
def measured(draw):
    """Plain outcomes, outcomes by setting, and an image for each item."""
    ids = draw(images)
    n = len(ids)
    bits = st.lists(st.booleans(), min_size=n, max_size=n)
    settings = draw(st.lists(bits, min_size=1, max_size=5))
    return np.array(draw(bits)), np.array(settings), np.array(ids)


@given(images, st.integers(2, 6), st.integers(0, 5))
def test_folds_hold_whole_images_and_are_even(ids, n_folds, seed):
    if len(set(ids)) < n_folds:
        with pytest.raises(DataError, match="at least one image a fold"):
            folds(ids, n_folds, seed)
        return
    fold = folds(ids, n_folds, seed)
    assert set(fold) == set(range(n_folds))
    owners = {image: {int(f) for f, i in zip(fold, ids, strict=True) if i == image} for image in set(ids)}
    assert all(len(of) == 1 for of in owners.values())
    sizes = np.bincount([of.pop() for of in owners.values()], minlength=n_folds)
    assert sizes.max() - sizes.min() <= 1


@given(images, st.randoms())
def test_folds_do_not_depend_on_the_order_of_items(ids, random):
    fold = dict(zip(ids, folds(ids, 2), strict=True))
    random.shuffle(ids)
    assert dict(zip(ids, folds(ids, 2), strict=True)) == fold


@given(measured())
def test_every_item_is_answered_once_by_the_choice_of_the_other_folds(case):
    plain, settings, ids = case
    fold = folds(ids, 2)
    found = held_out(plain, settings, fold)
    for name, choice in enumerate(found.chosen):
        judged = fold == name
        expected = plain[judged] if choice == OFF else settings[choice, judged]
        assert (found.outcomes[judged] == expected).all()
        assert choice == choose(plain[~judged], settings[:, ~judged])


@given(measured(), st.integers(0, 1), st.randoms())
def test_what_is_judged_has_no_say_in_the_choice(case, name, random):
    plain, settings, ids = case
    fold = folds(ids, 2)
    before = held_out(plain, settings, fold).chosen[name]
    other = settings.copy()
    other[:, fold == name] ^= random.random() < 0.7
    plain = plain.copy()
    plain[fold == name] = random.random() < 0.5
    assert held_out(plain, other, fold).chosen[name] == before


@given(measured())
def test_a_choice_gains_on_what_it_was_chosen_on_or_is_off(case):
    plain, settings, _ = case
    choice = choose(plain, settings)
    gains = settings.sum(1) - plain.sum()
    if choice == OFF:
        assert gains.max() <= 0
    else:
        assert gains[choice] == gains.max() > 0
        assert not (gains[:choice] == gains.max()).any(), "of equals the mildest comes first"


def test_a_setting_that_always_helps_is_always_chosen():
    plain = np.array([True, False] * 20)
    found = held_out(plain, [plain, np.ones(40, bool)], folds(range(40), 5))
    assert found.chosen == (1,) * 5
    assert found.outcomes.all()


def test_bad_folds_are_refused():
    with pytest.raises(ConfigError, match="at least 2"):
        folds([1, 2, 3], 1)
    with pytest.raises(DataError, match="one fold"):
        held_out([True, False], [[True, True]], [0, 0])
    with pytest.raises(DataError, match="at least one setting"):
        held_out([True, False], np.zeros((0, 2)), [0, 1])
    with pytest.raises(DataError, match="expected"):
        held_out([True, False], [[True]], [0, 1])


@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=1, max_size=12))
def test_the_best_is_the_first_of_the_highest_that_may_be_chosen(settings):
    scores, allowed = (np.array(of) for of in zip(*settings, strict=True))
    assert best(scores) == scores.tolist().index(scores.max())
    if allowed.any():
        found = best(scores, allowed)
        assert allowed[found]
        assert scores[found] == scores[allowed].max()
        assert not (allowed & (scores == scores[found]))[:found].any()
