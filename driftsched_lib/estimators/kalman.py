"""An adaptive gain by a Kalman filter that learns how much its level drifts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import exp, sqrt
from typing import Annotated

from pydantic import Field

from driftsched_lib.estimators.base import MIN_VARIANCE, LogRatio, Variance, grown, log_ratio
from driftsched_lib.estimators.interval import IntervalEstimator, State
from driftsched_lib.estimators.page_hinkley import WILD, ChangeDetector
from driftsched_lib.requests import BASE_TOKENS, Request
from driftsched_lib.validation import in_range

NOISE_GAIN = 0.05
GAIN_STEP = 0.02
MAX_GAIN = 0.5


@dataclass
class LocalLevel:
    """A level that drifts, seen through noise: the local-level model, filtered.

    `level(t) = level(t - 1) + N(0, drift)`, `value(t) = level(t) + N(0, noise)`; both variances are learnt.  If the
    filter lags, successive innovations have one sign.  So the long-run gain, which fixes the drift, grows with their
    product and shrinks if it is negative (Mehra, On the Identification of Variances and Adaptive Kalman Filtering,
    1970; as a gradient step on the log of the gain, Sutton, 1992).  A change detector handles jumps.

    Attributes:
        level, variance: mean and variance of the belief about the level, which is a log(length / base).
        noise, gain, last: variance of an observation, the gain in the long run, the last standardised innovation.
    """

    level: LogRatio = 0.0
    variance: Variance = 1.0
    noise: Variance = 0.1
    gain: Annotated[float, Field(gt=0, le=MAX_GAIN)] = 0.05
    last: Annotated[float, Field(ge=-WILD, le=WILD)] = 0.0
    detector: ChangeDetector = field(default_factory=ChangeDetector)

    def learn(self, innovation: float, others: float, min_gain: float) -> float:
        """Move the level; return the variance that was expected of the innovation, the value less its expectation.

        Parameters:
            others: variance of the other parts of the expectation.
            min_gain: lower bound of the gain in the long run.
        """
        expected = self.variance + others + self.noise
        standardised = innovation / sqrt(expected)
        change = self.detector.learn(standardised, self.level + innovation)
        if change is not None:
            self.level, count = change
            self.variance, self.last = (self.noise + others) / count, 0.0
            return expected
        clipped = min(max(standardised, -WILD), WILD)
        self.gain = min(max(self.gain * exp(GAIN_STEP * clipped * self.last), min_gain), MAX_GAIN)
        self.last = clipped
        self.level += self.variance / expected * innovation
        self.variance += self.gain**2 * self.noise - self.variance**2 / expected
        unexplained = clipped**2 * expected - self.variance - others
        self.noise = max(MIN_VARIANCE, self.noise + NOISE_GAIN * (unexplained - self.noise))
        return expected


@dataclass
class KalmanState(State):
    """The level and the interval of each category."""

    levels: dict[str, LocalLevel]


class Kalman(IntervalEstimator):
    """Estimate by a Kalman filter of the category's log length: calm without change, quick after one.

    It learns a level, its drift and its noise per category (see `LocalLevel`), in O(1).  An output that ended at a
    limit below the level teaches nothing (see `IntervalEstimator`).

    Parameters:
        base_tokens: expected output length by category before anything is observed (tokens).
        min_gain: the gain that remains without drift, in (0, 1].

    >>> estimator = Kalman()
    >>> request = Request("1", 0.0, "Summarize DNS.", "acme", "standard", max_tokens=256, category="summary")
    >>> for length in [100, 110, 90] * 5:
    ...     estimator.observe(request, length)
    >>> 95 < estimator.estimate(request).output_tokens < 105
    True
    """

    state_: KalmanState

    def __init__(self, base_tokens: Mapping[str, int] = BASE_TOKENS, min_gain: float = 0.02):
        super().__init__(base_tokens)
        self.min_gain = in_range("min_gain", min_gain, 0, 1)
        self.state_ = KalmanState(self.state_.intervals, {category: LocalLevel() for category in base_tokens})

    def expect(self, request: Request, base: int) -> float:
        return grown(base, self.state_.levels[request.category].level)

    def learn(self, request: Request, base: int, length: int) -> None:
        level = self.state_.levels[request.category]
        level.learn(log_ratio(length, base) - level.level, 0.0, self.min_gain)
