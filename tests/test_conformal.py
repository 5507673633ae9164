"""Adaptive conformal intervals against their definition, and the coverage that they promise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftsched_lib.drift_lab import lab_load, replay
from driftsched_lib.estimators import ESTIMATORS, Kalman
from driftsched_lib.estimators.conformal import HIGHEST_LEVEL, LEAST_RATIOS, STEP, AdaptiveInterval
from driftsched_lib.estimators.sliding import CAPACITY


def naive_bounds(ratios, level):
    """The conformal interval by counting: both ends leave out as many as the level allows, infinity counted in."""
    n = len(ratios)
    left_out = int((n + 1) * level / 2)
    padded = [0.0, *sorted(ratios), float("inf")]
    return (0.0, float("inf")) if left_out < 1 else (padded[left_out], padded[n + 1 - left_out])


@given(ratios=st.lists(st.floats(0.01, 100), max_size=150), level=st.floats(-0.5, HIGHEST_LEVEL))
def test_bounds_against_counting(ratios, level):
    interval = AdaptiveInterval(level=level)
    for ratio in ratios:
        interval.ratios.add(ratio)
    low, high = interval.bounds()
    assert (low, high) == naive_bounds(ratios[-CAPACITY:], level)
    assert low <= high


@given(misses=st.lists(st.booleans(), max_size=300))
def test_the_level_against_the_update_of_gibbs_and_candes(misses):
    interval, level = AdaptiveInterval(), 0.1
    for i, missed in enumerate(misses):
        interval.learn(1.0, missed)
        if i >= LEAST_RATIOS:
            level = min(level + STEP * (0.1 - missed), HIGHEST_LEVEL)
        assert interval.level == pytest.approx(level)


@given(seed=st.integers(0, 100), scales=st.lists(st.floats(0.01, 100), min_size=1, max_size=8))
def test_misses_are_a_tenth_whatever_the_outcomes_do(seed, scales):
    """The bound of Gibbs and Candes, proposition 4.1: the share missed is off by at most (1 + step) / (step * n) for
    levels from 0 to 1; here they end at `HIGHEST_LEVEL`, which atomless outcomes do not reach."""
    rng = np.random.default_rng(seed)
    interval, missed = AdaptiveInterval(), []
    ratios = np.concatenate([np.exp(scale / 30 * rng.standard_normal(150)) for scale in scales])
    for ratio in ratios:
        low, high = interval.bounds()
        miss = not low <= ratio <= high
        if len(interval.ratios) >= LEAST_RATIOS:
            missed.append(miss)
        interval.learn(float(ratio), miss)
    assert np.mean(missed) <= 0.1 + (0.1 + STEP) / (STEP * len(missed)) + 1e-9


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name != "oracle"])
def test_nine_in_ten_outcomes_are_inside_through_an_abrupt_change(name):
    table = replay(ESTIMATORS[name](), lab_load("abrupt", seed=3, requests=1200))
    inside = table.actual_tokens.between(table.low_tokens, table.high_tokens)[200:]
    assert 0.87 <= inside.mean() <= 0.93


def test_an_outcome_is_judged_by_the_interval_that_was_given_at_admission():
    estimator = Kalman()
    [request, *others] = [r for r in lab_load("stationary", seed=1, requests=200) if r.category == "summary"][:41]
    for other in others:
        estimator.observe(other, other.pinned_tokens)
    given = estimator.estimate(request)
    level = estimator.state_.intervals["summary"].level
    request.estimate = given
    estimator.observe(request, int(given.high_tokens) + 1)
    assert estimator.state_.intervals["summary"].level == pytest.approx(level + STEP * (0.1 - 1))


def test_outcomes_that_are_all_alike_are_always_inside():
    estimator = Kalman()
    requests = [r for r in lab_load("stationary", seed=1, requests=800) if r.category == "report"]
    for request in requests:
        request.estimate = estimator.estimate(request)
        assert request.estimate.low_tokens <= request.max_tokens <= request.estimate.high_tokens
        estimator.observe(request, request.max_tokens)
    assert request.estimate.high_tokens - request.estimate.low_tokens <= 1
    assert estimator.state_.intervals["report"].level == HIGHEST_LEVEL
