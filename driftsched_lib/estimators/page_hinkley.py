"""Adaptive gain by a change detector: a long memory, dropped when the Page-Hinkley test finds a change."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt

from driftsched_lib.estimators.base import MIN_VARIANCE, Count, LogRatio, Variance, grown, log_ratio
from driftsched_lib.estimators.change import WILD, ChangeDetector
from driftsched_lib.estimators.conformal import AdaptiveInterval, ConformalEstimator, new_intervals
from driftsched_lib.requests import BASE_TOKENS, Request
from driftsched_lib.validation import in_range

VARIANCE_GAIN = 0.05


@dataclass
class WatchedMean:
    """A running mean of log(length / base), the variance around it, and the detector that watches it."""

    mean: LogRatio = 0.0
    count: Count = 0
    variance: Variance = 0.25
    detector: ChangeDetector = field(default_factory=ChangeDetector)

    def learn(self, value: float, least_gain: float) -> None:
        residual = value - self.mean
        change = self.detector.learn(residual / sqrt(self.variance), value)
        if change is not None:
            self.mean, self.count = change
            return
        self.count += 1
        self.mean += max(least_gain, 1 / self.count) * residual
        squared = min(residual**2, WILD**2 * self.variance)
        self.variance = max(MIN_VARIANCE, self.variance + VARIANCE_GAIN * (squared - self.variance))


@dataclass
class PageHinkleyState:
    """The mean and the interval of each category."""

    means: dict[str, WatchedMean]
    intervals: dict[str, AdaptiveInterval]


class PageHinkley(ConformalEstimator):
    """A running mean of the log length a category, begun anew where the Page-Hinkley test finds that it changed.

    The gain of the n-th observation since the last change is `1 / n`, at least `least_gain`.

    Parameters:
        base_tokens: tokens by category.
        least_gain: the gain that remains in calm, for drift too slow to be found.
    """

    state_: PageHinkleyState

    def __init__(self, base_tokens: Mapping[str, int] = BASE_TOKENS, least_gain: float = 0.03):
        super().__init__(base_tokens)
        self.least_gain = in_range("least_gain", least_gain, 0, 1)
        means = {category: WatchedMean() for category in self.base_tokens}
        self.state_ = PageHinkleyState(means, new_intervals(self.base_tokens))

    def _expect(self, request: Request, base: int) -> float:
        return grown(base, self.state_.means[request.category].mean)

    def _learn(self, request: Request, base: int, length: int) -> None:
        self.state_.means[request.category].learn(log_ratio(length, base), self.least_gain)
