"""A running mean that starts anew when the Page-Hinkley test finds a change."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt
from typing import Annotated

from pydantic import Field

from driftsched_lib.estimators.base import MIN_VARIANCE, Count, LogRatio, Variance, checked_sum, grown, log_ratio
from driftsched_lib.estimators.interval import IntervalEstimator, State
from driftsched_lib.requests import BASE_TOKENS, Request
from driftsched_lib.validation import in_range

TOLERANCE = 0.5  # standard deviations; the test is quickest for changes of twice this
THRESHOLD = 6.0
"""Summed standard deviations: one false alarm per 1,300 normal residuals (Siegmund, Sequential Analysis, 1985).
A change of two standard deviations is found after four or five."""
WILD = 3.0  # standard deviations that one residual counts for at most, so that no single one is a change
VARIANCE_GAIN = 0.05


@dataclass
class RiseTest:
    """The Page-Hinkley test for a rise of standardised residuals: `excess <- max(0, excess + residual - TOLERANCE)`.

    The excess is the cumulative sum (standard deviations) less its minimum, where the change began; `count` and `total`
    are number and sum of the values since (Page, Continuous Inspection Schemes, 1954; Hinkley, 1971).
    """

    excess: Annotated[float, Field(ge=0, le=THRESHOLD)] = 0.0
    count: Count = 0
    total: float = 0.0

    def __post_init__(self) -> None:
        checked_sum(self.total, self.count)

    def learn(self, residual: float, value: float) -> None:
        excess = self.excess + residual - TOLERANCE
        if excess > 0:
            self.excess, self.count, self.total = excess, self.count + 1, self.total + value
        else:
            self.excess, self.count, self.total = 0.0, 0, 0.0


@dataclass
class ChangeDetector:
    """Two tests that watch residuals for a rise and for a fall.  Unlike river's, it knows since when a change lasts."""

    rise: RiseTest = field(default_factory=RiseTest)
    fall: RiseTest = field(default_factory=RiseTest)

    def learn(self, residual: float, value: float) -> tuple[float, int] | None:
        """Take in a standardised residual and its value; at a change, return mean and number of the values since."""
        residual = min(max(residual, -WILD), WILD)
        for test, rise in ((self.rise, residual), (self.fall, -residual)):
            test.learn(rise, value)
            if test.excess > THRESHOLD:
                self.rise, self.fall = RiseTest(), RiseTest()
                return test.total / test.count, test.count
        return None


@dataclass
class WatchedMean:
    """A running mean of log(length / base), the variance around it, and the detector that watches it."""

    mean: LogRatio = 0.0
    count: Count = 0
    variance: Variance = 0.25
    detector: ChangeDetector = field(default_factory=ChangeDetector)

    def learn(self, value: float, min_gain: float) -> None:
        residual = value - self.mean
        change = self.detector.learn(residual / sqrt(self.variance), value)
        if change is not None:
            self.mean, self.count = change
            return
        self.count += 1
        self.mean += max(min_gain, 1 / self.count) * residual
        squared = min(residual**2, WILD**2 * self.variance)
        self.variance = max(MIN_VARIANCE, self.variance + VARIANCE_GAIN * (squared - self.variance))


@dataclass
class PageHinkleyState(State):
    """The mean and the interval of each category."""

    means: dict[str, WatchedMean]


class PageHinkley(IntervalEstimator):
    """Estimate by the category's mean log length since its last change.

    The n-th observation after a change has the gain `max(1 / n, min_gain)`.  The change is found by the Page-Hinkley
    test (see `RiseTest`).  It learns one mean and one variance per category, in O(1).  An output that ended at a limit
    below the mean teaches nothing (see `IntervalEstimator`).

    Parameters:
        base_tokens: expected output length by category before anything is observed (tokens).
        min_gain: the gain that remains in calm, for drift too slow to be found, in (0, 1].

    >>> estimator = PageHinkley()
    >>> request = Request("1", 0.0, "Summarize DNS.", "acme", "standard", max_tokens=256, category="summary")
    >>> for length in [200] * 50 + [50] * 10:
    ...     estimator.observe(request, length)
    >>> estimator.estimate(request).output_tokens
    50
    """

    state_: PageHinkleyState

    def __init__(self, base_tokens: Mapping[str, int] = BASE_TOKENS, min_gain: float = 0.03):
        super().__init__(base_tokens)
        self.min_gain = in_range("min_gain", min_gain, 0, 1)
        self.state_ = PageHinkleyState(self.state_.intervals, {category: WatchedMean() for category in base_tokens})

    def expect(self, request: Request, base: int) -> float:
        return grown(base, self.state_.means[request.category].mean)

    def learn(self, request: Request, base: int, length: int) -> None:
        self.state_.means[request.category].learn(log_ratio(length, base), self.min_gain)
