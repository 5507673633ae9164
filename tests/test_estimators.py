"""The paper's estimator against numbers worked out by hand from PAPER's constants."""

import pytest
from helpers import make_request

from driftsched_lib.estimators import PaperEstimator


def request(category="summary", tier="standard", input_tokens=100):
    request = make_request(1, tier=tier)
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
    assert estimator.bias_["summary"] == pytest.approx(1.055)
    assert estimator.estimate(request()).output_tokens == 297  # 256 x 1.055 x 1.1 = 297.09
    assert {estimator.bias_[category] for category in ("short_qa", "technical", "report")} == {1.0}


@pytest.mark.parametrize(("actual", "measured"), [(0, 0.25), (63, 0.25), (768, 3.0), (5000, 3.0)])
def test_one_observation_is_clipped(actual, measured):
    assert PaperEstimator().observe(request(), actual).measured == measured


def test_without_calibration_the_bias_stays_one():
    estimator = PaperEstimator(calibrate=False)
    feedback = estimator.observe(request(), 128)
    assert (feedback.measured, feedback.bias_after, estimator.bias_["summary"]) == (0.5, 1.0, 1.0)


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


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="-1 output tokens"):
        PaperEstimator().observe(request(), -1)
    with pytest.raises(KeyError):
        PaperEstimator().estimate(request(category="poem"))
    for bad in (
        {"alpha": 0.0},
        {"alpha": 1.5},
        {"clip": (3.0, 0.25)},
        {"base_tokens": {"summary": 0}},
        {"safety": {"premium": 1}},
        {"input_scale": 0.0},
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            PaperEstimator(**bad)
