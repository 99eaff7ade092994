from __future__ import annotations

import numpy as np
import pytest

from probes.statistics.bootstrap import paired_bootstrap_ratio
from probes.statistics.clusters import Clusters
from tccd.errors import ConfigError, DataError


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
    for clusters in (Clusters.of(images), Clusters.of(np.arange(4000), images)):
        clustered = paired_bootstrap_ratio(clean, text, vision, clusters=clusters)
        assert clustered.value == items.value
        assert clustered.high - clustered.low > 2 * (items.high - items.low)


def test_bootstrap_of_single_item_clusters_is_the_bootstrap_of_items():
    data = erased(2)
    assert paired_bootstrap_ratio(*data, clusters=Clusters.of(np.arange(3000))) == paired_bootstrap_ratio(*data)


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


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: paired_bootstrap_ratio([True], [True], [True, True]), DataError, "the same items"),
        (
            lambda: paired_bootstrap_ratio([1], [1], [0], clusters=Clusters.of([1, 2])),
            DataError,
            "one label an item",
        ),
        (lambda: paired_bootstrap_ratio([1], [1], [0], n_resamples=1), ConfigError, "at least 100"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
