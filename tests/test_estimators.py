"""The paper's estimator against numbers worked out by hand, and what holds of every estimator."""

import json
from dataclasses import asdict
from itertools import product

import numpy as np
import pytest
from driftsched_lib.estimators.sliding import CAPACITY, SlidingWindow
from helpers import make_request
from hypothesis import given
from hypothesis import strategies as st

from driftsched_lib.estimators import ESTIMATORS, PaperEstimator
from driftsched_lib.studies.drift_lab import lab_load

LEARNING = [name for name in ESTIMATORS if name != "oracle"]
LENGTHS = st.lists(st.integers(0, 10_000_000), max_size=60)


def request(category="summary", tier="standard", input_tokens=100):
    request = make_request(1, tier=tier, max_tokens=10_000)
    request.category, request.input_tokens = category, input_tokens
    return request


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
    estimate = PaperEstimator().estimate(request(category, tier, input_tokens))
    assert (estimate.output_tokens, estimate.total_tokens) == (output, total)


def test_bias_follows_the_measured_ratio_of_its_category_alone():
    estimator = PaperEstimator()
    feedback = estimator.observe(request(), 128)  # 128 / 256 = 0.5; 0.9 x 1 + 0.1 x 0.5 = 0.95
    assert (feedback.bias_before, feedback.measured, feedback.bias_after) == pytest.approx((1.0, 0.5, 0.95))
    estimator.observe(request(), 512)  # 0.9 x 0.95 + 0.1 x 2 = 1.055
    assert estimator.state_.bias["summary"] == pytest.approx(1.055)
    assert estimator.estimate(request()).output_tokens == 297  # 256 x 1.055 x 1.1 = 297.09
    assert {estimator.state_.bias[category] for category in ("short_qa", "technical", "report")} == {1.0}


@pytest.mark.parametrize(("actual", "measured"), [(0, 0.25), (63, 0.25), (768, 3.0), (5000, 3.0)])
def test_one_observation_is_clipped(actual, measured):
    assert PaperEstimator().observe(request(), actual).measured == measured


def test_without_calibration_the_bias_stays_one():
    estimator = PaperEstimator(calibrate=False)
    feedback = estimator.observe(request(), 128)
    assert (feedback.measured, feedback.bias_after, estimator.state_.bias["summary"]) == (0.5, 1.0, 1.0)


def test_every_constant_is_a_parameter():
    estimator = PaperEstimator(
        base_tokens={"summary": 10},
        safety={"premium": 3.0, "standard": 2.0, "batch": 1.0},
        alpha=0.5,
        clip=(0.0, 1.0),
        max_input_factor=3.0,
        input_scale=50.0,
    )
    assert estimator.estimate(request()).output_tokens == 60  # 10 x 2 x min(3, 1 + 100 / 50)
    assert estimator.observe(request(), 0).bias_after == 0.5


def test_bad_parameters_are_refused():
    for bad in (
        {"alpha": 0.0},
        {"alpha": 1.5},
        {"clip": (3.0, 0.25)},
        {"base_tokens": {"summary": 0}},
        {"safety": {"premium": 1}},
        {"input_scale": 0.0},
        {"max_input_factor": -1.0},
        {"safety": {"premium": -1.0, "standard": 1.0, "batch": 1.0}},
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            PaperEstimator(**bad)


def any_request(i=0, category="summary", tenant="tenant-a", max_tokens=256, **fields):
    request = make_request(i, max_tokens=max_tokens, fixed_output_tokens=7, **fields)
    request.category, request.tenant, request.input_tokens, request.estimate = category, tenant, 5, None
    return request


@pytest.mark.parametrize("name", ESTIMATORS)
@given(lengths=LENGTHS, delay=st.integers(0, 5), max_tokens=st.integers(1, 600))
def test_every_estimate_is_possible(name, lengths, delay, max_tokens):
    estimator = ESTIMATORS[name]()
    in_flight = []
    for i, length in enumerate(lengths):
        request = any_request(i, ("summary", "report")[i % 2], f"tenant-{i % 3}", max_tokens)
        estimate = request.estimate = estimator.estimate(request)
        assert isinstance(estimate.output_tokens, int) and estimate.output_tokens >= 1
        if name not in ("paper", "oracle"):  # the paper's goes beyond the limit, the oracle's is what it is told
            assert estimate.output_tokens <= max_tokens
            assert 0 <= estimate.low_tokens <= estimate.high_tokens <= max_tokens
        assert estimate.total_tokens == request.input_tokens + estimate.output_tokens
        if estimate.quantiles is not None:
            assert list(estimate.quantiles) == sorted(estimate.quantiles)
        in_flight.append((request, length))
        if len(in_flight) > delay:
            estimator.observe(*in_flight.pop(0))


@pytest.mark.parametrize("name", LEARNING)
def test_learns_what_it_is_shown(name):
    estimator = ESTIMATORS[name](
        **({"safety": dict.fromkeys(("premium", "standard", "batch"), 1.0)} if name == "paper" else {})
    )
    for i in range(200):
        estimator.observe(any_request(i, "report", max_tokens=512), 300)
        estimator.observe(any_request(i, "summary"), 100)
    report, summary = (
        estimator.estimate(any_request(category="report", max_tokens=512)),
        estimator.estimate(any_request()),
    )
    inflation = 1.1 if name == "tail_inflated" else 1.0
    assert report.output_tokens == pytest.approx(300 * inflation, rel=0.05)
    assert summary.output_tokens == pytest.approx(100 * inflation, rel=0.05)
    assert summary.low_tokens <= 100 <= summary.high_tokens
    assert len(summary.quantiles) == 10 and summary.quantiles[5] == pytest.approx(100, rel=0.05)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("length", [float("nan"), float("inf"), -1, 1.5, 10_000_001, None, "12"])
def test_an_impossible_length_is_refused_and_nothing_is_learnt_from_it(name, length):
    estimator = ESTIMATORS[name]()
    estimator.observe(any_request(), 50)
    before = state_of(estimator)
    with pytest.raises(ValueError, match="request '9': .* output tokens observed, it must be a whole number"):
        estimator.observe(any_request(9), length)
    assert state_of(estimator) == before


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize(
    ("field", "value"),
    [*product(("arrival_s", "input_tokens", "max_tokens"), (float("nan"), float("inf"), -1)), ("max_tokens", 0)],
)
def test_a_request_that_cannot_be_is_refused_and_nothing_is_learnt_from_it(name, field, value):
    estimator = ESTIMATORS[name]()
    estimator.observe(any_request(), 50)
    before, bad = state_of(estimator), any_request(9)
    setattr(bad, field, value)
    for call in (estimator.estimate, lambda request: estimator.observe(request, 5)):
        with pytest.raises(ValueError, match=f"request '9': {field} is {value}, it must be finite"):
            call(bad)
    assert state_of(estimator) == before


@pytest.mark.parametrize("name", LEARNING)
def test_an_output_beyond_the_limit_is_taken_for_the_limit(name):
    absurd, limit = ESTIMATORS[name](), ESTIMATORS[name]()
    for i in range(12):
        absurd.observe(any_request(i, max_tokens=512), 10_000_000)
        limit.observe(any_request(i, max_tokens=512), 512)
    assert state_of(absurd) == state_of(limit)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_unknown_category_is_refused(name):
    estimator = ESTIMATORS[name]()
    for call in (estimator.estimate, lambda request: estimator.observe(request, 5)):
        with pytest.raises(ValueError, match="request '9': category is 'poem', it may be one of short_qa, summary"):
            call(any_request(9, "poem"))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_whole_numbers_of_any_type_are_taken(name):
    for length in (np.int64(12), 12.0, np.float64(12)):
        ESTIMATORS[name]().observe(any_request(), length)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_base_below_one_token_is_refused(name):
    for bases in ({}, {"summary": 0}, {"summary": float("nan")}):
        with pytest.raises(ValueError, match="base_tokens"):
            ESTIMATORS[name](base_tokens=bases)


@pytest.mark.parametrize("name", LEARNING)
def test_only_what_is_known_at_admission_is_read(name):
    """Labels and pinned lengths can be anything: the estimates are the same."""
    plain, misled = ESTIMATORS[name](), ESTIMATORS[name]()
    for request in lab_load("abrupt", seed=1, requests=120):
        length = request.fixed_output_tokens
        expected = plain.estimate(request)
        plain.observe(request, length)
        request.job_type, request.fixed_output_tokens, request.phase = "nonsense", 1, "none"
        assert misled.estimate(request) == expected
        misled.observe(request, length)


@pytest.mark.parametrize("name", LEARNING)
def test_estimating_teaches_nothing(name):
    estimator = ESTIMATORS[name]()
    estimator.observe(any_request(), 50)
    before = state_of(estimator)
    estimator.estimate(any_request(1, "report", "tenant-new"))
    assert state_of(estimator) == before


@pytest.mark.parametrize("name", LEARNING)
def test_memory_is_bounded(name):
    """Twice as many requests, of tenants and prompts never seen before, leave nothing more behind."""
    few_tenants = {"most_tenants": 50} if name in ("pooled", "quantiles") else {}
    estimator = ESTIMATORS[name](**few_tenants)
    sizes = []
    for i in range(1600):
        request = any_request(i, tenant=f"tenant-{i}")
        request.prompt = f"What is topic{i}?"
        estimator.observe(request, 1 + i % 100)
        if i in (799, 1599):
            sizes.append(count_of(asdict(estimator.state_)))
    assert sizes[1] <= sizes[0] * 1.02


@given(values=st.lists(st.floats(-1e6, 1e6), max_size=3 * CAPACITY), level=st.floats(0, 1))
def test_a_sliding_window_against_sorting_its_last_values(values, level):
    window = SlidingWindow()
    for value in values:
        window.add(value)
    last = values[-CAPACITY:]
    assert window.values == last and window.ordered == sorted(last)
    if last:
        assert window.quantile(level) == sorted(last)[min(int(level * len(last)), len(last) - 1)]
    assert (window.slices() is None) == (len(last) < 10)
    if len(last) >= 10:
        assert window.slices() == [sorted(last)[int((i + 0.5) / 10 * len(last))] for i in range(10)]


def state_of(estimator):
    return None if estimator.state_ is None else json.dumps(asdict(estimator.state_))


def count_of(value):
    """Numbers and names in a tree of lists and mappings."""
    if isinstance(value, dict):
        return sum(1 + count_of(part) for part in value.values())
    if isinstance(value, list):
        return sum(count_of(part) for part in value)
    return 1
