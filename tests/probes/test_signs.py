"""The best of many settings: a p-value that knows how many there were."""

from __future__ import annotations

import numpy as np
import pytest

from probes.statistics.clusters import Clusters, turned_signs
from probes.statistics.signs import GAINS, PASSES, gains_of_many
from tccd.errors import DataError


def measured(seed=0, n=400, helped=0.03, settings=1):
    """Plain outcomes, outcomes by setting that gain `helped` on average, and four questions a picture."""
    generator = np.random.default_rng(seed)
    plain = generator.random(n) < 0.7
    draw = generator.random((settings, n))
    return plain, np.where(plain, draw > 0.02, draw < (helped + 0.014) / 0.3), Clusters.of(np.arange(n) // 4)


@pytest.mark.parametrize("seed", range(6))
def test_one_setting_has_half_the_p_value_of_all_turned_signs(seed):
    plain, settings, clusters = measured(seed)
    sums = np.bincount(clusters.picture, weights=settings[0].astype(int) - plain)
    largest = np.sqrt(max(sums @ sums, (settings[0] != plain).sum()) / (sums @ sums))
    if largest == 1:  # the variance by picture is the largest, so that the two tests are one
        # Half of the two-sided one, and all of what equals it; 5,000 turns have an error.
        assert gains_of_many(plain, settings, clusters).p_values[0] == pytest.approx(
            turned_signs(sums) / 2, abs=0.01
        )


def test_more_settings_cost_and_the_same_setting_again_does_not():
    plain, settings, clusters = measured(settings=12)
    alone = [gains_of_many(plain, settings[i : i + 1], clusters).p_values[0] for i in range(12)]
    together = gains_of_many(plain, settings, clusters).p_values
    assert (together >= np.array(alone) - 1e-12).all()
    assert (together > alone).any()
    twice = gains_of_many(plain, np.concatenate([settings, settings]), clusters).p_values
    assert twice == pytest.approx(np.concatenate([together, together]))


def test_what_changes_nothing_or_harms_has_no_p_value_to_speak_of():
    plain, _, clusters = measured()
    found = gains_of_many(plain, [plain, plain & (np.arange(400) % 7 > 0)], clusters)
    assert found.p_values.tolist() == [1.0, 1.0]
    assert found.power[0].tolist() == [0.0] * len(GAINS)


def test_a_mild_setting_is_found_beside_a_strong_one_that_harms():
    plain, settings, clusters = measured(helped=0.05)
    harmful = plain & (np.random.default_rng(1).random(400) > 0.3)
    p_values = gains_of_many(plain, np.stack([settings[0], harmful]), clusters).p_values
    assert p_values[0] < 0.01
    assert p_values[1] == 1.0


def test_questions_of_one_wording_are_turned_together():
    """Ten of twenty wordings answered better look like much by picture, and like little by wording."""
    n = 400
    plain, string = np.zeros(n, bool), np.arange(n) % 20
    settings = (string < 5)[None]
    by_picture = gains_of_many(plain, settings, Clusters.of(np.arange(n)))
    by_both = gains_of_many(plain, settings, Clusters.of(np.arange(n), string))
    assert by_picture.p_values[0] < 0.001
    assert by_both.p_values[0] > 0.025


def test_power_grows_with_the_gain_and_is_what_is_found():
    told = gains_of_many(*measured(helped=0.02)).power[0]
    assert (np.diff(told) > 0).all()
    found = [gains_of_many(*measured(seed, helped=0.02), draws=999).p_values[0] <= PASSES for seed in range(200)]
    assert np.mean(found) == pytest.approx(told[GAINS.index(0.02)], abs=0.15)


def test_power_for_a_gain_is_alike_whatever_gain_is_at_hand():
    told = [
        np.mean([gains_of_many(*measured(seed, helped=gain), draws=999).power[0] for seed in range(20)], axis=0)
        for gain in (0.0, 0.1)
    ]
    assert told[1] == pytest.approx(told[0], abs=0.15)


def test_shapes_that_do_not_fit_are_refused():
    plain, settings, clusters = measured()
    for bad in (
        (plain, settings[:, :5], clusters),
        (plain, settings[:0], clusters),
        (plain[:5], settings[:, :5], clusters),
    ):
        with pytest.raises(DataError, match="at least one setting"):
            gains_of_many(*bad)
