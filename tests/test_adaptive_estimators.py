"""Pooling, change detection, Kalman filtering, regression and quantiles, against references and by hand."""

from functools import partial
from math import exp, log

import numpy as np
import pytest
from helpers import make_request
from hypothesis import given
from hypothesis import strategies as st

from driftsched_lib.estimators import Kalman, PageHinkley, PaperEstimator, Pooled, Regression, RunningQuantiles
from driftsched_lib.estimators.base import MIN_VARIANCE
from driftsched_lib.estimators.features import MAX_WORDS, READ, SLOTS, ends, named, word_slots
from driftsched_lib.estimators.kalman import LocalLevel
from driftsched_lib.estimators.page_hinkley import THRESHOLD, TOLERANCE, WILD, ChangeDetector, RiseTest
from driftsched_lib.estimators.pooled import AgedMean, Group
from driftsched_lib.estimators.regression import PRIOR_VARIANCE
from driftsched_lib.requests import Tier
from driftsched_lib.studies.drift_lab import accuracy, lab_load, replay

BASES = {"summary": 100}
NUMBERS = st.floats(-5, 5)


def request(tenant="tenant-a", i=0, prompt="How does DNS work?", max_tokens=100_000, tier="standard"):
    request = make_request(i, max_tokens=max_tokens, tier=tier)
    request.category, request.tenant, request.prompt, request.estimate = "summary", tenant, prompt, None
    return request


@given(values=st.lists(NUMBERS, max_size=50), gain=st.floats(0.01, 1))
def test_an_aged_mean_against_its_weights(values, gain):
    mean, weights = AgedMean(), [(1 - gain) ** age for age in range(len(values))][::-1]
    for value in values:
        mean.learn(value, gain)
    assert mean.count == pytest.approx(sum(weights))
    assert mean.total == pytest.approx(np.dot(weights, values), abs=1e-9)


@given(values=st.lists(NUMBERS, min_size=1, max_size=50), noise=st.floats(0.01, 10), between=st.floats(0.001, 10))
def test_pooling_against_the_posterior_of_a_normal_mean(values, noise, between):
    """Prior N(0, between), observations with variance `noise`: precisions add, and means by their precision."""
    category = Group(LocalLevel(noise=noise), between)
    mean, variance = category.deviation(AgedMean(len(values), sum(values)))
    precision = len(values) / noise + 1 / between
    assert variance == pytest.approx(1 / precision)
    assert mean == pytest.approx(sum(values) / noise / precision, abs=1e-9)
    assert category.deviation(None) == (0.0, between)
    assert Group(between=-1.0).deviation(None) == (0.0, MIN_VARIANCE)


def test_a_new_tenant_starts_from_its_category_and_grows_its_own_habits():
    rng = np.random.default_rng(0)
    estimator = Pooled(BASES)
    factors = {f"tenant-{i}": factor for i, factor in enumerate(np.geomspace(0.5, 2, 8))}
    for i in range(1500):
        tenant = f"tenant-{rng.integers(8)}"
        estimator.observe(request(tenant, i), round(200 * factors[tenant] * rng.lognormal(0, 0.2)))
    for tenant, factor in (factors | {"tenant-new": 1.0}).items():
        assert estimator.estimate(request(tenant)).output_tokens == pytest.approx(200 * factor, rel=0.2)
    between = np.var(np.log(list(factors.values())))
    assert estimator.state_.categories["summary"].between == pytest.approx(between, rel=0.5)
    estimator.observe(request("tenant-new"), 800)
    after_one = estimator.estimate(request("tenant-new")).output_tokens
    assert 240 < after_one < 800  # one observation is believed, and not all of it


@pytest.mark.parametrize("kind", [Pooled, RunningQuantiles])
def test_the_tenant_longest_unseen_is_forgotten(kind):
    estimator = kind(BASES, max_tenants=2)
    for tenant in ("a", "b", "a", "c"):
        estimator.observe(request(tenant), 50)
    assert list(estimator.state_.tenants) == ["a", "c"]


@given(residuals=st.lists(st.floats(-3, 3), max_size=100))
def test_page_hinkley_against_its_cumulative_sums(residuals):
    test, sums = RiseTest(), [0.0]
    for residual in residuals:
        test.learn(residual, residual)
        sums.append(sums[-1] + residual - TOLERANCE)
        assert test.excess == pytest.approx(sums[-1] - min(sums), abs=1e-9)
        if test.excess > 1e-9:
            assert test.total == pytest.approx(sum(residuals[len(sums) - 1 - test.count : len(sums) - 1]), abs=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_change_is_found_with_the_mean_since_it_began_and_false_alarms_are_as_rare_as_said(sign):
    detector, steps = ChangeDetector(), int(THRESHOLD / (2 - TOLERANCE)) + 1
    assert all(detector.learn(0.0, 0.0) is None for _ in range(100))
    found = [detector.learn(sign * 2.0, sign * 2.0) for _ in range(5)]
    assert found.index((sign * 2.0, steps)) == steps - 1
    assert ChangeDetector().learn(1000.0, 1000.0) is None and WILD < THRESHOLD  # never by one alone
    detector, normal = ChangeDetector(), np.random.default_rng(0).standard_normal(100_000).tolist()
    assert 100_000 / sum(detector.learn(z, z) is not None for z in normal) == pytest.approx(1300, rel=0.35)


def test_a_level_that_does_not_drift_is_about_the_mean_of_its_values():
    """With a wide prior and next to no drift, gains are about 1, 1/2, 1/3 ...; the noise is learnt meanwhile."""
    values = np.random.default_rng(0).normal(0.5, 0.3, 200).tolist()
    level = LocalLevel(variance=1e6, noise=0.09, gain=1e-6)
    for i, value in enumerate(values, 1):
        level.learn(value - level.level, 0.0, 1e-6)
        level.gain = 1e-6
        if i in (1, 5, 200):
            assert level.level == pytest.approx(np.mean(values[:i]), abs=0.03)
    assert level.variance == pytest.approx(level.noise / 200, rel=0.5)


@pytest.mark.parametrize("kind", [PageHinkley, Kalman])
def test_adaptive_gain_is_calm_and_then_quick(kind):
    """Against EMA 0.1: no noisier where nothing changes, and nearer ten observations after a change."""
    noise, late = {}, {}
    ema = partial(PaperEstimator, tiers={"standard": Tier()})
    for name, make in {"adaptive": kind, "ema": ema}.items():
        calm, error = [], []
        for seed in range(10):
            rng, estimator = np.random.default_rng(seed), make(BASES)
            for i in range(400):
                estimator.observe(request(i=i), round(100 * rng.lognormal(0, 0.3)))
                if i >= 200:
                    calm.append(log(estimator.estimate(request()).output_tokens / 100))
            for i in range(10):
                estimator.observe(request(i=i), round(200 * rng.lognormal(0, 0.3)))
            error.append(log(estimator.estimate(request()).output_tokens / 200))
        noise[name], late[name] = np.std(calm), abs(np.mean(error))
    assert noise["adaptive"] <= noise["ema"]
    assert late["adaptive"] < log(1.1) < late["ema"]


def test_the_kalman_gain_grows_where_the_level_drifts():
    calm, drifting = Kalman(BASES), Kalman(BASES)
    rng = np.random.default_rng(0)
    for i in range(1000):
        spread = rng.lognormal(0, 0.3)
        calm.observe(request(i=i), round(200 * spread))
        drifting.observe(request(i=i), round(200 * exp(0.5 * np.sin(i / 12)) * spread))
    assert drifting.state_.levels["summary"].gain > 3 * calm.state_.levels["summary"].gain


@pytest.mark.parametrize("scenario", ["stationary", "recurring"])
def test_regression_learns_words_tenants_and_hours(scenario):
    table, blind = (replay(kind(), lab_load(scenario, seed=5)) for kind in (Regression, Kalman))
    assert accuracy(table[1000:]).mae_tokens < 0.8 * accuracy(blind[1000:]).mae_tokens


def test_features_are_the_same_in_every_process_and_of_long_prompts_only_the_ends_are_read():
    assert word_slots("Explain TLS.") == word_slots("explain tls") == (1610, 1943)
    long = " ".join(f"word{i}x" for i in range(10_000))
    assert len(ends(long)) == 2 * READ + 1 and len(word_slots(ends(long))) == MAX_WORDS
    assert {word_slots("word0x")[0], word_slots("word9999x")[0]} <= set(named(request(prompt=long)))
    assert named(request(prompt=long)) == named(request(prompt=long[:1000] + "middle" + long[-1000:]))
    assert named(request(prompt=long)) != named(request(prompt="other " + long))
    assert word_slots("Request 17") == word_slots("Request 99")
    assert all(0 <= slot < SLOTS for slot in named(request()))


def test_a_feature_that_is_always_zero_is_no_less_known_than_at_first():
    estimator = Regression(BASES)
    for i in range(300):
        midnight = request(i=i)
        midnight.arrival_s = 0.0  # the sine of the hour is 0
        estimator.observe(midnight, 100 + i % 50)
    assert estimator.state_.variances[2] == PRIOR_VARIANCE == max(estimator.state_.variances)


@given(lengths=st.lists(st.integers(0, 1000), min_size=1, max_size=120))
def test_running_quantiles_against_sorting(lengths):
    estimator = RunningQuantiles(BASES, min_observations=5)
    for i, length in enumerate(lengths):
        estimator.observe(request(i=i), length)
    last = sorted(lengths[-100:])
    estimate = estimator.estimate(request())
    assert estimate.output_tokens == max(1, last[len(last) // 2])
    if len(lengths) >= 10:
        assert list(estimate.quantiles) == [last[int((i + 0.5) / 10 * len(last))] for i in range(10)]


def test_lower_limits_neither_hold_the_median_of_a_window_nor_shorten_its_tail():
    held, cut, whole = (RunningQuantiles(BASES, min_observations=100) for _ in range(3))
    for i in range(100):
        held.observe(request(i=i, max_tokens=300), 300) if i % 5 < 3 else held.observe(request("tenant-b", i), 2000)
    assert held.estimate(request("tenant-c")).output_tokens == 2000
    for i, spread in enumerate(np.random.default_rng(0).lognormal(0, 1, 1000)):
        whole.observe(request(f"tenant-{i % 2}"), round(100 * spread))
        limit = 150 if i % 2 else 100_000
        cut.observe(request(f"tenant-{i % 2}", max_tokens=limit), min(round(100 * spread), limit))
    quantiles = [made.estimate(request("tenant-c")).quantiles for made in (cut, whole)]
    assert quantiles[0] == pytest.approx(quantiles[1], rel=0.35)


def test_a_tenant_with_few_observations_has_its_categorys_quantiles():
    estimator = RunningQuantiles(BASES, min_observations=5)
    for tenant, length in [("tenant-a", 300)] * 50 + [("tenant-b", 50)] * 4:
        estimator.observe(request(tenant), length)
    assert estimator.estimate(request("tenant-b")).output_tokens == 300
    estimator.observe(request("tenant-b"), 50)
    assert estimator.estimate(request("tenant-b")).output_tokens == 50
