"""Adaptive conformal intervals against their definition, and the coverage that they promise."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftsched_lib.estimators import ESTIMATORS, Kalman
from driftsched_lib.estimators.interval import CAPACITY, MAX_LEVEL, MIN_RATIOS, STEP, AdaptiveInterval, SlidingWindow
from driftsched_lib.studies.drift_lab import lab_load, replay


def naive_bounds(ratios, level):
    """The conformal interval by counting: both ends leave out as many as the level allows, infinity counted in."""
    n = len(ratios)
    left_out = int((n + 1) * level / 2)
    padded = [0.0, *sorted(ratios), float("inf")]
    return (0.0, float("inf")) if left_out < 1 else (padded[left_out], padded[n + 1 - left_out])


@given(values=st.lists(st.floats(0, 1e6), max_size=3 * CAPACITY))
def test_a_sliding_window_against_sorting_its_last_values(values):
    window = SlidingWindow()
    for value in values:
        window.add(value)
    last = values[-CAPACITY:]
    assert window.values == last and window.ordered == sorted(last)
    middles = [sorted(last)[int((i + 0.5) / 10 * len(last))] for i in range(10)] if len(last) >= 10 else None
    assert window.slices() == middles


@given(ratios=st.lists(st.floats(0.01, 100), max_size=150), level=st.floats(-0.5, MAX_LEVEL))
def test_bounds_against_counting(ratios, level):
    interval = AdaptiveInterval(level=level)
    for ratio in ratios:
        interval.ratios.add(ratio)
    assert interval.bounds() == naive_bounds(ratios[-CAPACITY:], level)


@given(misses=st.lists(st.booleans(), max_size=300))
def test_the_level_against_the_update_of_gibbs_and_candes(misses):
    interval, level = AdaptiveInterval(), 0.1
    for i, missed in enumerate(misses):
        interval.learn(1.0, missed)
        if i >= MIN_RATIOS:
            level = min(level + STEP * (0.1 - missed), MAX_LEVEL)
        assert interval.level == pytest.approx(level)


@given(seed=st.integers(0, 100), scales=st.lists(st.floats(0.01, 100), min_size=1, max_size=8))
def test_misses_are_a_tenth_whatever_the_outcomes_do(seed, scales):
    """Gibbs and Candes, proposition 4.1: the share missed is off by at most (1 + step) / (step * n)."""
    rng = np.random.default_rng(seed)
    interval, missed = AdaptiveInterval(), []
    ratios = np.concatenate([np.exp(scale / 30 * rng.standard_normal(150)) for scale in scales])
    for ratio in ratios:
        low, high = interval.bounds()
        miss = not low <= ratio <= high
        if len(interval.ratios) >= MIN_RATIOS:
            missed.append(miss)
        interval.learn(float(ratio), miss)
    assert np.mean(missed) <= 0.1 + (0.1 + STEP) / (STEP * len(missed)) + 1e-9


def windows_of(kind, scenario, seeds, requests, delay):
    """The share of outcomes inside their interval, by windows of 200 without the warm-up, over the seeds."""
    inside = []
    for seed in seeds:
        table = replay(kind(), lab_load(scenario, seed=seed, requests=requests), delay=delay)
        inside.append(table.actual_tokens.between(table.low_tokens, table.high_tokens)[200:])
    return np.mean(inside, axis=0).reshape(-1, 200).mean(axis=1)


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name != "oracle"])
def test_nine_in_ten_outcomes_are_inside_through_an_abrupt_change(name):
    windows = windows_of(ESTIMATORS[name], "abrupt", (3, 4, 5), 1200, delay=16)
    assert 0.88 <= windows.mean() <= 0.92
    assert windows.min() >= 0.8  # of the change, which outputs from before it cannot know


@pytest.mark.parametrize("delay", [16, 300, 600])
def test_coverage_does_not_swing_however_late_outcomes_are_known(delay):
    """Judged by the intervals given at admission, windows of 200 went from 55% to 100%."""
    windows = windows_of(Kalman, "stationary", range(1, 6), 2000, delay)[4:]
    assert windows.min() >= 0.86 and windows.max() <= 0.94


def test_an_outcome_is_judged_by_the_interval_of_now():
    """Not by the one that was given at admission, which would call this outcome a miss."""
    estimator = Kalman()
    [request, *others] = [r for r in lab_load("stationary", seed=1, requests=200) if r.category == "summary"][:41]
    for other in others:
        estimator.observe(other, other.fixed_output_tokens)
    now = estimator.estimate(request)
    request.estimate = replace(now, low_tokens=0.0, high_tokens=1.0)
    for missed in (False, True):
        before = estimator.state_.intervals["summary"].level
        beyond = int(estimator.estimate(request).high_tokens) + 1
        estimator.observe(request, beyond if missed else now.output_tokens)
        assert estimator.state_.intervals["summary"].level == pytest.approx(before + STEP * (0.1 - missed))


def test_outcomes_that_are_all_alike_are_always_inside():
    estimator = Kalman()
    requests = [r for r in lab_load("stationary", seed=1, requests=800) if r.category == "report"]
    for request in requests:
        request.estimate = estimator.estimate(request)
        assert request.estimate.low_tokens <= request.max_tokens <= request.estimate.high_tokens
        estimator.observe(request, request.max_tokens)
    assert request.estimate.high_tokens - request.estimate.low_tokens <= 1
    assert estimator.state_.intervals["report"].level == MAX_LEVEL
