from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.bootstrap import clustered_interval, paired_bootstrap_ratio
from probes.statistics import difference_interval, mcnemar
from tccd.errors import ConfigError, DataError

outcomes = st.integers(1, 60).flatmap(lambda n: st.tuples(*[st.lists(st.booleans(), min_size=n, max_size=n)] * 2))


def erased(seed, n=3000, text=0.25, vision=0.06):
    generator = np.random.default_rng(seed)
    clean = generator.random(n) < 0.95
    return clean, clean & (generator.random(n) > text), clean & (generator.random(n) > vision)


def test_bootstrap_ratio_is_the_ratio_of_costs_and_repeats():
    clean, text, vision = erased(0)
    result = paired_bootstrap_ratio(clean, text, vision, seed=3)
    assert result.value == pytest.approx((clean.mean() - text.mean()) / (clean.mean() - vision.mean()), rel=1e-12)
    assert result.low < result.value < result.high
    assert result.reason is None
    assert paired_bootstrap_ratio(clean, text, vision, seed=3) == result


def test_bootstrap_ratio_covers_at_its_level():
    covered = 0
    for seed in range(200):
        result = paired_bootstrap_ratio(*erased(seed), n_resamples=1000)
        covered += result.low <= 0.25 / 0.06 <= result.high
    assert covered / 200 > 0.91


def test_bootstrap_over_images_is_wider_where_items_of_an_image_agree():
    clean, text, vision = (np.repeat(x, 10) for x in erased(1, n=400))
    images = np.repeat([f"image-{i}" for i in range(400)], 10)
    items = paired_bootstrap_ratio(clean, text, vision)
    clustered = paired_bootstrap_ratio(clean, text, vision, clusters=images)
    assert clustered.value == items.value
    assert clustered.high - clustered.low > 2 * (items.high - items.low)


def test_bootstrap_of_single_item_clusters_is_the_bootstrap_of_items():
    data = erased(2)
    assert paired_bootstrap_ratio(*data, clusters=np.arange(3000)) == paired_bootstrap_ratio(*data)


@pytest.mark.parametrize("which", ["nothing", "noise", "gain"])
def test_ratio_without_a_vision_cost_is_not_estimable(which):
    clean, text, vision = erased(4)
    vision = clean.copy()
    if which == "noise":
        vision[np.flatnonzero(clean)[:2]] = False
    baseline = text if which == "gain" else clean
    result = paired_bootstrap_ratio(baseline, text, vision)
    assert (result.value, result.low, result.high) == (None, None, None)
    assert "not estimable" in result.reason
    assert ("lies below zero" if which == "gain" else "reaches zero") in result.reason


@given(outcomes, st.integers(0, 3))
@settings(max_examples=40)
def test_a_clustered_interval_holds_the_score_interval_and_mirrors(pair, seed):
    before, after = pair
    test = mcnemar(before, after)
    low, high = clustered_interval(before, after, range(len(before)), n_resamples=500, seed=seed)
    score = difference_interval(test.c, test.b, len(before))
    assert -1 <= low <= score[0] <= score[1] <= high <= 1
    mirrored = clustered_interval(after, before, range(len(before)), n_resamples=500, seed=seed)
    # Percentiles of other draws: alike, not equal.
    assert mirrored == pytest.approx((-high, -low), abs=0.1)


def test_items_that_go_together_widen_the_interval():
    before = np.zeros(400, bool)
    after = np.arange(400) % 40 < 10  # ten whole images of forty were put right
    images = np.arange(400) % 40
    alone = clustered_interval(before, after, range(400))
    together = clustered_interval(before, after, images)
    assert alone == pytest.approx((0.21, 0.29), abs=0.01)
    assert together == pytest.approx((0.125, 0.4), abs=0.03)


def test_a_clustered_interval_covers_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        # 80 images with 5 questions each; an image's questions change together half of the time.
        change = np.repeat(generator.random(80), 5)
        own = generator.random(400)
        value = np.where(np.repeat(generator.random(80) < 0.5, 5), change, own)
        helped, harmed = value < 0.15, value > 0.95
        before = (~helped & generator.integers(0, 2, 400).astype(bool)) | harmed
        after = (before & ~harmed) | helped
        low, high = clustered_interval(before, after, np.repeat(np.arange(80), 5), n_resamples=300)
        covered += low <= 0.10 <= high
    assert covered >= 180


@pytest.mark.parametrize("bad", [[1, 2], [[1, 2, 3]]])
def test_clusters_that_do_not_fit_are_refused(bad):
    with pytest.raises(DataError, match="one label an item"):
        clustered_interval([True, False, True], [True, True, True], bad)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: paired_bootstrap_ratio([True], [True], [True, True]), DataError, "the same items"),
        (lambda: paired_bootstrap_ratio([1], [1], [0], clusters=[1, 2]), DataError, "one label an item"),
        (lambda: paired_bootstrap_ratio([1], [1], [0], n_resamples=1), ConfigError, "at least 100"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
