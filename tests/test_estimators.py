"""The paper's estimator against numbers worked out by hand, and what holds of every estimator."""

import doctest
import json
from dataclasses import asdict
from functools import partial
from importlib import import_module
from itertools import product

import numpy as np
import pytest
from helpers import make_request
from hypothesis import given
from hypothesis import strategies as st

from driftsched_lib.estimators import ESTIMATORS, Censored, Feedback, IntervalEstimator, PaperEstimator
from driftsched_lib.requests import Tier
from driftsched_lib.studies.drift_lab import lab_load

KINDS = [*ESTIMATORS.values(), IntervalEstimator]
LEARNING = [name for name in ESTIMATORS if name != "oracle"]
each_estimator = pytest.mark.parametrize("name", ESTIMATORS)
each_learning = pytest.mark.parametrize("name", LEARNING)
BAD_NUMBERS = (float("nan"), float("inf"), -1)
LENGTHS = st.lists(st.integers(0, 10_000_000), max_size=60)


def request(i=0, category="summary", tenant="tenant-a", max_tokens=10_000, tier="standard", input_tokens=100):
    request = make_request(i, max_tokens=max_tokens, fixed_output_tokens=7, tier=tier, input_tokens=input_tokens)
    request.category, request.tenant, request.estimate = category, tenant, None
    return request


def short(i=0, *args, max_tokens=256, **fields):
    return request(i, *args, max_tokens=max_tokens, input_tokens=5, **fields)


def state_of(estimator):
    return None if estimator.state_ is None else json.dumps(asdict(estimator.state_))


@pytest.mark.parametrize(
    ("category", "tier", "input_tokens", "output", "total"),
    [
        ("short_qa", "standard", 0, 64, 64),  # 64 x 1 x 1 x 1
        ("summary", "premium", 100, 337, 437),  # 256 x 1.2 x 1.1 = 337.92
        ("technical", "batch", 250, 384, 634),  # 384 x 0.8 x 1.25 = 384
        ("report", "standard", 500, 768, 1268),  # 512 x 1.5, where the input factor ends
        ("report", "standard", 900, 768, 1668),  # 1 + 0.9 is capped at 1.5
    ],
)
def test_estimates_by_hand(category, tier, input_tokens, output, total):
    estimate = PaperEstimator().estimate(request(1, category, tier=tier, input_tokens=input_tokens))
    assert (estimate.output_tokens, estimate.total_tokens) == (output, total)


def test_bias_follows_the_measured_ratio_of_its_category_alone():
    estimator = PaperEstimator()
    feedback = estimator.observe(request(), 128)  # 128 / 256 = 0.5; 0.9 x 1 + 0.1 x 0.5 = 0.95
    assert (feedback.bias_before, feedback.measured, feedback.bias_after) == pytest.approx((1.0, 0.5, 0.95))
    estimator.observe(request(), 512)  # 0.9 x 0.95 + 0.1 x 2 = 1.055
    assert estimator.state_.bias["summary"] == pytest.approx(1.055)
    assert estimator.estimate(request()).output_tokens == 297  # 256 x 1.055 x 1.1 = 297.09
    assert {estimator.state_.bias[category] for category in ("short_qa", "technical", "report")} == {1.0}


@pytest.mark.parametrize(("actual", "measured"), [(0, 0.25), (63, 0.25), (128, 0.5), (768, 3.0), (5000, 3.0)])
def test_one_observation_is_clipped_and_without_calibration_the_bias_stays_one(actual, measured):
    assert PaperEstimator().observe(request(), actual).measured == measured
    static = PaperEstimator(calibrate=False)
    assert static.observe(request(), actual) == Feedback(1.0, measured, 1.0) and static.state_.bias["summary"] == 1.0


def test_every_constant_is_a_parameter():
    constants = {"alpha": 0.5, "clip": (0.0, 1.0), "max_input_factor": 3.0, "input_scale": 50.0}
    estimator = PaperEstimator({"summary": 10}, tiers={"gold": Tier(safety=2.0)}, **constants)
    assert estimator.estimate(request(tier="gold")).output_tokens == 60  # 10 x 2 x min(3, 1 + 100 / 50)
    assert estimator.observe(request(tier="gold"), 0).bias_after == 0.5


BAD_PARAMETERS = {"alpha": 0.0}, {"alpha": 1.5}, {"clip": (3.0, 0.25)}, {"input_scale": 0.0}, {"max_input_factor": -1.0}


@pytest.mark.parametrize("bad", BAD_PARAMETERS, ids=str)
def test_bad_parameters_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        PaperEstimator(**bad)


@pytest.mark.parametrize("name", ["classify", *[f"estimators.{kind.__module__.split('.')[-1]}" for kind in KINDS]])
def test_examples_of_docstrings(name):
    failed, tried = doctest.testmod(import_module(f"driftsched_lib.{name}"))
    assert tried and not failed


@each_estimator
@given(lengths=LENGTHS, delay=st.integers(0, 5), max_tokens=st.integers(1, 600))
def test_every_estimate_is_possible(name, lengths, delay, max_tokens):
    estimator = ESTIMATORS[name]()
    in_flight = []
    for i, length in enumerate(lengths):
        request = short(i, ("summary", "report")[i % 2], f"tenant-{i % 3}", max_tokens=max_tokens)
        estimate = request.estimate = estimator.estimate(request)
        assert isinstance(estimate.output_tokens, int) and estimate.output_tokens >= 1
        if name not in ("paper", "oracle"):  # the paper's goes beyond the limit, the oracle's is what it is told
            assert estimate.output_tokens <= max_tokens
            assert 0 <= estimate.low_tokens <= estimate.high_tokens <= max_tokens
        assert estimate.total_tokens == request.input_tokens + estimate.output_tokens
        assert estimate.quantiles is None or list(estimate.quantiles) == sorted(estimate.quantiles)
        in_flight.append((request, length))
        if len(in_flight) > delay:
            estimator.observe(*in_flight.pop(0))


@each_learning
def test_learns_what_it_is_shown(name):
    estimator = ESTIMATORS[name](**({"tiers": {"standard": Tier()}} if name == "paper" else {}))
    for i in range(200):
        estimator.observe(short(i, "report", max_tokens=512), 300)
        estimator.observe(short(i, "summary"), 100)
    report, summary = estimator.estimate(short(category="report", max_tokens=512)), estimator.estimate(short())
    assert (report.output_tokens, summary.output_tokens) == pytest.approx((300, 100), rel=0.05)
    assert summary.low_tokens <= 100 <= summary.high_tokens <= summary.low_tokens + 4
    assert len(summary.quantiles) == 10 and summary.quantiles[5] == pytest.approx(100, rel=0.05)


@each_estimator
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        *product(("arrival_s", "input_tokens", "max_tokens"), BAD_NUMBERS, ["must be finite"]),
        ("max_tokens", 0, "is 0, it must be finite"),
        ("category", "poem", "'poem' is unknown. Known: short_qa, summary"),
        *product([None], (*BAD_NUMBERS, 1.5, 10_000_001, None, "12"), ["must be a whole number"]),
    ],
)
def test_the_impossible_is_refused_and_nothing_is_learnt_from_it(name, field, value, message):
    """A field of the request, or (None) the observed length; and a base below one token."""
    estimator, bad = ESTIMATORS[name](), short(9)
    estimator.observe(short(), 50)
    before = state_of(estimator)
    if field is not None:
        setattr(bad, field, value)
        with pytest.raises(ValueError, match=f"request '9': {field}.*{message}"):
            estimator.estimate(bad)
    with pytest.raises(ValueError, match=f"request '9': .*{message}"):
        estimator.observe(bad, 5 if field else value)
    assert state_of(estimator) == before
    for bases in ({}, {"summary": 0}, {"summary": float("nan")}):
        with pytest.raises(ValueError, match="base_tokens"):
            ESTIMATORS[name](base_tokens=bases)


@each_learning
def test_an_output_beyond_the_limit_is_taken_for_the_limit_and_whole_numbers_may_be_of_any_type(name):
    absurd, limit = ESTIMATORS[name](), ESTIMATORS[name]()
    for length in (10_000_000, np.int64(513), 512.0, np.float64(10_000_000)):
        absurd.observe(short(max_tokens=512), length)
        limit.observe(short(max_tokens=512), 512)
    assert state_of(absurd) == state_of(limit)


@each_learning
@pytest.mark.parametrize("limit", [1, 5, 50])
@pytest.mark.parametrize("prober", ["tenant-a", "tenant-probe"])
def test_probes_move_nothing_and_natural_outputs_are_learnt_as_without_them(name, prober, limit):
    """Outputs of about 500 tokens, from the middle on 250; two probes after each and 200 at the end."""
    plain, probed = ESTIMATORS[name](), ESTIMATORS[name]()
    probe = request(tenant=prober, max_tokens=limit)
    for i, spread in enumerate(np.random.default_rng(0).lognormal(0, 0.3, 100)):
        for estimator in (plain, probed):
            estimator.observe(request(i), round((500 if i < 50 else 250) * spread))
        for _ in range(2 if i < 99 else 200):
            assert probed.observe(probe, limit) is None
        assert state_of(plain) == state_of(probed)


@each_learning
def test_a_tenant_with_a_low_limit_is_expected_at_its_limit_and_as_others_once_it_raises_it(name):
    estimator, brief = ESTIMATORS[name](), partial(request, tenant="tenant-brief")
    for i in range(200):
        estimator.observe(request(i), 190 + i % 20)
        estimator.observe(brief(i, max_tokens=50), 50)
    estimate, raised = estimator.estimate(brief(max_tokens=50)), estimator.estimate(brief()).output_tokens
    assert (estimate.output_tokens, estimate.low_tokens, estimate.high_tokens) == (50, 50, 50)
    assert set(estimate.quantiles) == {50}
    assert raised == pytest.approx(estimator.estimate(request()).output_tokens, rel=0.1)
    for i in range(200):
        estimator.observe(brief(i, max_tokens=400), 400)  # cut, and above all that was seen
    assert estimator.estimate(brief()).output_tokens == pytest.approx(400, rel=0.15)


@given(words=st.lists(st.integers(0, 256), max_size=60))
def test_where_the_limit_is_the_base_the_papers_rule_stays_to_the_digit(words):
    estimator, bias = PaperEstimator(), 1.0
    for length in words:
        estimator.observe(request(max_tokens=256), Censored(length))
        bias = 0.9 * bias + 0.1 * max(length / 256, 0.25)
        assert estimator.state_.bias["summary"] == bias


@each_learning
def test_only_what_is_known_at_admission_is_read_and_estimating_teaches_nothing(name):
    """Labels and fixed lengths, or requests that are only estimated, can be anything: the estimates are the same."""
    plain, misled = ESTIMATORS[name](), ESTIMATORS[name]()
    for request in lab_load("abrupt", seed=1, requests=120):
        length = request.fixed_output_tokens
        expected = plain.estimate(request)
        plain.observe(request, length)
        misled.estimate(short(1, "report", "tenant-new"))
        request.job_type, request.fixed_output_tokens, request.phase = "nonsense", 1, "none"
        assert misled.estimate(request) == expected
        misled.observe(request, length)
    assert state_of(plain) == state_of(misled)


@each_learning
def test_memory_is_bounded(name):
    """Twice as many requests, of tenants and prompts never seen before, leave nothing more behind."""
    estimator = ESTIMATORS[name](**({"max_tenants": 50} if name in ("pooled", "quantiles") else {}))
    sizes = []
    for i in range(1600):
        request = short(i, tenant=f"tenant-{i}")
        request.prompt = f"What is topic{i}?"
        estimator.observe(request, 1 + i % 100)
        sizes.append(state_of(estimator).count(",") if i in (799, 1599) else 0)
    assert sizes[1599] <= sizes[799] * 1.02
