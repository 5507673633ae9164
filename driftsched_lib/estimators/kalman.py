"""Adaptive gain by a Kalman filter that learns how much its level drifts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import exp, sqrt
from typing import Annotated

from pydantic import Field

from driftsched_lib.estimators.base import MIN_VARIANCE, LogRatio, Variance, grown, log_ratio
from driftsched_lib.estimators.change import WILD, ChangeDetector
from driftsched_lib.estimators.conformal import AdaptiveInterval, ConformalEstimator, new_intervals
from driftsched_lib.requests import BASE_TOKENS, Request
from driftsched_lib.validation import in_range

NOISE_GAIN = 0.05
GAIN_STEP = 0.02
MAX_GAIN = 0.5


@dataclass
class LocalLevel:
    """A level that drifts, seen through noise: the local-level model, filtered.

    `level(t) = level(t - 1) + N(0, drift)`, `value(t) = level(t) + N(0, noise)`.  Both variances are learnt.  The
    innovations of a right filter are white, those of one that lags all point one way for a while; so the steady gain,
    which fixes the drift, grows with the product of successive innovations and shrinks where it is negative (Mehra,
    On the Identification of Variances and Adaptive Kalman Filtering, 1970; as a gradient step on the log of the gain,
    Sutton, 1992).  Where the level jumps, which is no such drift, a change detector opens it again.

    Attributes:
        level, variance: what is believed of the level, of log(length / base).
        noise: variance of an observation around it.
        gain: the gain in the long run.
        last: the last standardised innovation.
    """

    level: LogRatio = 0.0
    variance: Variance = 1.0
    noise: Variance = 0.1
    gain: Annotated[float, Field(gt=0, le=MAX_GAIN)] = 0.05
    last: Annotated[float, Field(ge=-WILD, le=WILD)] = 0.0
    detector: ChangeDetector = field(default_factory=ChangeDetector)

    def learn(self, innovation: float, others: float, least_gain: float) -> float:
        """Move the level; returns the variance that was expected of the innovation.

        Parameters:
            innovation: the value less what was expected of it.
            others: variance of what was expected beside the level.
            least_gain: the gain in the long run is at least this.
        """
        expected = self.variance + others + self.noise
        standardised = innovation / sqrt(expected)
        change = self.detector.learn(standardised, self.level + innovation)
        if change is not None:
            self.level, count = change
            self.variance, self.last = (self.noise + others) / count, 0.0
            return expected
        clipped = min(max(standardised, -WILD), WILD)
        self.gain = min(max(self.gain * exp(GAIN_STEP * clipped * self.last), least_gain), MAX_GAIN)
        self.last = clipped
        self.level += self.variance / expected * innovation
        self.variance += self.gain**2 * self.noise - self.variance**2 / expected
        unexplained = clipped**2 * expected - self.variance - others
        self.noise = max(MIN_VARIANCE, self.noise + NOISE_GAIN * (unexplained - self.noise))
        return expected


@dataclass
class KalmanState:
    """The level and the interval of each category."""

    levels: dict[str, LocalLevel]
    intervals: dict[str, AdaptiveInterval]


class Kalman(ConformalEstimator):
    """A Kalman filter a category for the level of the log length, calm when nothing changes and quick when it does.

    Parameters:
        base_tokens: tokens by category.
        least_gain: the gain that remains where nothing drifts.
    """

    state_: KalmanState

    def __init__(self, base_tokens: Mapping[str, int] = BASE_TOKENS, least_gain: float = 0.02):
        super().__init__(base_tokens)
        self.least_gain = in_range("least_gain", least_gain, 0, 1)
        levels = {category: LocalLevel() for category in self.base_tokens}
        self.state_ = KalmanState(levels, new_intervals(self.base_tokens))

    def _expect(self, request: Request, base: int) -> float:
        return grown(base, self.state_.levels[request.category].level)

    def _learn(self, request: Request, base: int, length: int) -> None:
        level = self.state_.levels[request.category]
        level.learn(log_ratio(length, base) - level.level, 0.0, self.least_gain)
