"""A linear model of the log length, learnt online."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import mul
from typing import Annotated

from pydantic import Field

from driftsched_lib.estimators.base import LogRatio, grown, log_ratio
from driftsched_lib.estimators.conformal import AdaptiveInterval, ConformalEstimator, new_intervals
from driftsched_lib.estimators.features import SLOTS, named, numeric
from driftsched_lib.estimators.kalman import LocalLevel
from driftsched_lib.requests import BASE_TOKENS, Request
from driftsched_lib.validation import in_range

PRIOR_VARIANCE = 0.02
"""Of a weight: most features change a length by less than a quarter."""
SHARE_OF_DRIFT = 0.03
"""The process noise of a weight over that of a level: a dozen features share in it, and what a word is worth hardly
changes."""


@dataclass
class Weights:
    """The weights of the features and their variances, a slot each; what never occurs is no less known than at first,
    so the prior is also the most that drift makes of a variance."""

    means: list[LogRatio] = field(default_factory=lambda: [0.0] * SLOTS)
    variances: list[Annotated[float, Field(gt=0, le=PRIOR_VARIANCE)]] = field(
        default_factory=lambda: [PRIOR_VARIANCE] * SLOTS
    )


@dataclass
class RegressionState:
    """The weights, and the level and the interval of each category."""

    weights: Weights
    levels: dict[str, LocalLevel]
    intervals: dict[str, AdaptiveInterval]


class Regression(ConformalEstimator):
    """Log length = an adaptive level a category + a weight for each feature known at admission.

    Features are input length, limit, time of day, tenant, tier, tenant in category, and the prompt's words, hashed.
    One Kalman filter learns it all, of whose covariance only the diagonal is kept: each weight moves by its own
    variance over that of the observation, so that what is new learns quickly and what is well known hardly moves
    (the diagonal extended Kalman filter; as a classifier, Dredze, Crammer and Pereira, Confidence-Weighted Linear
    Classification, 2008).  The levels are those of `Kalman`.  Written out because it then costs a tenth of a call to
    river's or scikit-learn's linear models.

    Parameters:
        base_tokens: tokens by category.
        least_gain: as in `Kalman`, for levels and weights alike.
        day_s: length of a day, after which the hours return (s).
    """

    state_: RegressionState

    def __init__(self, base_tokens: Mapping[str, int] = BASE_TOKENS, least_gain: float = 0.02, day_s: float = 86400.0):
        super().__init__(base_tokens)
        self.least_gain = in_range("least_gain", least_gain, 0, 1)
        self.day_s = in_range("day_s", day_s, 0, 1e9)
        levels = {category: LocalLevel() for category in self.base_tokens}
        self.state_ = RegressionState(Weights(), levels, new_intervals(self.base_tokens))

    def _expect(self, request: Request, base: int) -> float:
        self._slots, self._numbers = named(request), numeric(request, base, self.day_s)  # to learn from in `observe`
        means = self.state_.weights.means
        self._log_ratio: float = (
            self.state_.levels[request.category].level
            + sum(map(means.__getitem__, self._slots))
            + sum(map(mul, self._numbers, means))
        )
        return grown(base, self._log_ratio)

    def _learn(self, request: Request, base: int, length: int) -> None:
        self._innovation(request, base, length)

    def _innovation(self, request: Request, base: int, length: int) -> float:
        """Learn from a length of the request of the last `_expect`; returns the log of it over what was expected."""
        slots, numbers = self._slots, self._numbers
        level = self.state_.levels[request.category]
        means, variances = self.state_.weights.means, self.state_.weights.variances
        innovation = log_ratio(length, base) - self._log_ratio
        others = sum(map(variances.__getitem__, slots))
        others += sum(map(mul, map(mul, numbers, numbers), variances))
        expected = level.learn(innovation, others, self.least_gain)
        drift = SHARE_OF_DRIFT * self.least_gain**2 * level.noise
        weighed, precision = innovation / expected, 1 / expected
        for slot in slots:
            variance = variances[slot]
            means[slot] += variance * weighed
            variance += drift - variance * variance * precision
            variances[slot] = variance if variance < PRIOR_VARIANCE else PRIOR_VARIANCE
        for slot, x in enumerate(numbers):
            covariance = x * (variance := variances[slot])
            means[slot] += covariance * weighed
            variance += drift - covariance * covariance * precision
            variances[slot] = variance if variance < PRIOR_VARIANCE else PRIOR_VARIANCE
        return innovation
