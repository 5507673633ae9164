"""A linear model of the log length, learnt online."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import mul
from typing import Annotated

from pydantic import Field

from driftsched_lib.estimators.base import LogRatio, grown, log_ratio
from driftsched_lib.estimators.features import SLOTS, named, numeric
from driftsched_lib.estimators.interval import IntervalEstimator, State
from driftsched_lib.estimators.kalman import LocalLevel
from driftsched_lib.requests import BASE_TOKENS, Request
from driftsched_lib.validation import in_range

PRIOR_VARIANCE = 0.02  # of a weight: most features change a length by less than a quarter
SHARE_OF_DRIFT = 0.03  # of a level's process noise in a weight: a dozen share it, and a word's worth hardly changes


@dataclass
class RegressionState(State):
    """Level and interval per category; mean and variance per weight.  No weight is less known than at first."""

    levels: dict[str, LocalLevel]
    means: list[LogRatio] = field(default_factory=lambda: [0.0] * SLOTS)
    variances: list[Annotated[float, Field(gt=0, le=PRIOR_VARIANCE)]] = field(
        default_factory=lambda: [PRIOR_VARIANCE] * SLOTS
    )


class Regression(IntervalEstimator):
    """Estimate by log length = a level per category + one weight per feature that is known at admission.

    Features are input length, limit, time of day, tenant, tier, tenant in category, and the prompt's words, hashed.
    One Kalman filter with a diagonal covariance learns all: a new weight moves quickly, a well-known one hardly (the
    diagonal extended Kalman filter; as a classifier, Dredze, Crammer and Pereira, Confidence-Weighted Linear
    Classification, 2008).  The levels are those of `Kalman`.  O(features), at most 22; a tenth of the time of river's
    or scikit-learn's linear models.  An output that ended at a limit below what is expected of its request teaches
    nothing (see `IntervalEstimator`).

    Parameters:
        base_tokens: expected output length by category before anything is observed (tokens).
        min_gain: as in `Kalman`, for levels and weights alike, in (0, 1].
        day_s: length of a day, after which the hours return (s).

    >>> estimator = Regression()
    >>> brief, deep = (Request("1", 0.0, f"Explain DNS {how}.", "acme", "standard", 384, category="technical")
    ...                for how in ("briefly", "deeply"))
    >>> for request, length in [(brief, 50), (deep, 300)] * 50:
    ...     estimator.observe(request, length)
    >>> estimator.estimate(brief).output_tokens < 80 < 200 < estimator.estimate(deep).output_tokens
    True
    """

    state_: RegressionState

    def __init__(self, base_tokens: Mapping[str, int] = BASE_TOKENS, min_gain: float = 0.02, day_s: float = 86400.0):
        super().__init__(base_tokens)
        self.min_gain = in_range("min_gain", min_gain, 0, 1)
        self.day_s = in_range("day_s", day_s, 0, 1e9)
        self.state_ = RegressionState(self.state_.intervals, {category: LocalLevel() for category in base_tokens})

    def expect(self, request: Request, base: int) -> float:
        return grown(base, self._log_ratio(request, named(request), numeric(request, base, self.day_s)))

    def learn(self, request: Request, base: int, length: int) -> None:
        slots, numbers = named(request), numeric(request, base, self.day_s)
        level = self.state_.levels[request.category]
        means, variances = self.state_.means, self.state_.variances
        innovation = log_ratio(length, base) - self._log_ratio(request, slots, numbers)
        others = sum(map(variances.__getitem__, slots))
        others += sum(map(mul, map(mul, numbers, numbers), variances))
        expected = level.learn(innovation, others, self.min_gain)
        drift = SHARE_OF_DRIFT * self.min_gain**2 * level.noise
        weighed, precision = innovation / expected, 1 / expected
        for slot, x in [*[(slot, 1.0) for slot in slots], *enumerate(numbers)]:
            covariance = x * (variance := variances[slot])
            means[slot] += covariance * weighed
            variance += drift - covariance * covariance * precision
            variances[slot] = variance if variance < PRIOR_VARIANCE else PRIOR_VARIANCE

    def _log_ratio(self, request: Request, slots: tuple[int, ...], numbers: tuple[float, ...]) -> float:
        means, level = self.state_.means, self.state_.levels[request.category].level
        ratio: float = level + sum(map(means.__getitem__, slots)) + sum(map(mul, numbers, means))
        return ratio
