"""Tenants that borrow from their category until they have shown habits of their own: partial pooling."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from driftsched_lib.estimators.base import MIN_VARIANCE, checked_sum, grown, log_ratio
from driftsched_lib.estimators.interval import IntervalEstimator, State
from driftsched_lib.estimators.kalman import LocalLevel
from driftsched_lib.requests import BASE_TOKENS, Request
from driftsched_lib.validation import in_range

BETWEEN_GAIN = 0.02
MIN_GAIN = 0.02


@dataclass
class AgedMean:
    """A mean in which each observation weighs `1 - gain` as much as the next; `count` is the sum of the weights."""

    count: Annotated[float, Field(ge=0, le=1e12)] = 0.0
    total: float = 0.0

    def __post_init__(self) -> None:
        checked_sum(self.total, self.count)

    def learn(self, value: float, gain: float) -> None:
        self.count, self.total = (1 - gain) * self.count + 1.0, (1 - gain) * self.total + value


@dataclass
class Group:
    """A category's level of log(length / base), and the variance of its tenants' deviations from it."""

    level: LocalLevel = field(default_factory=LocalLevel)
    between: Annotated[float, Field(ge=-1e6, le=1e6)] = 0.05

    def deviation(self, own: AgedMean | None) -> tuple[float, float]:
        """Return the posterior mean and variance of a tenant's deviation, given the mean of those observed."""
        between = max(self.between, MIN_VARIANCE)
        if own is None:
            return 0.0, between
        ratio = self.level.noise / between
        return own.total / (own.count + ratio), self.level.noise / (own.count + ratio)


@dataclass
class PooledState(State):
    """Categories, tenants (least recently observed first) with their mean deviation by category, and intervals."""

    categories: dict[str, Group]
    tenants: dict[str, dict[str, AgedMean]] = field(default_factory=dict)


class Pooled(IntervalEstimator):
    """Estimate by tenant and category; a tenant starts from its category, a category from its base.

    A category's level is that of `Kalman`.  The mean of a tenant's n deviations from it counts for
    `n / (n + within / between)`, the posterior mean of a normal deviation (empirical Bayes: Efron and Morris, 1973;
    Gelman and Hill, Data Analysis Using Regression and Multilevel Models, 2007, section 12.2).  Both variances are
    learnt; `between` is the average product of a tenant's new deviation and its mean before.  O(1).  An output that
    ended at a limit below what is expected of its tenant teaches nothing (see `IntervalEstimator`).

    Parameters:
        base_tokens: expected output length by category before anything is observed (tokens).
        gain: how much less an observation of a tenant weighs than the next, in (0, 1].
        max_tenants: how many tenants are kept; the least recently observed starts again from its category.

    >>> estimator = Pooled()
    >>> chat, docs = (Request("1", 0.0, "?", tenant, "standard", 512, category="report") for tenant in ("chat", "docs"))
    >>> for request, length in [(chat, 50), (docs, 400)] * 50:
    ...     estimator.observe(request, length)
    >>> estimator.estimate(chat).output_tokens < 70 < 300 < estimator.estimate(docs).output_tokens
    True
    """

    state_: PooledState

    def __init__(self, base_tokens: Mapping[str, int] = BASE_TOKENS, gain: float = 0.03, max_tenants: int = 1000):
        super().__init__(base_tokens)
        self.gain = in_range("gain", gain, 0, 1)
        self.max_tenants = int(in_range("max_tenants", max_tenants, 0, 1e6))
        self.state_ = PooledState(self.state_.intervals, {category: Group() for category in base_tokens})

    def expect(self, request: Request, base: int) -> float:
        category = self.state_.categories[request.category]
        deviation, _ = category.deviation(self.state_.tenants.get(request.tenant, {}).get(request.category))
        return grown(base, category.level.level + deviation)

    def learn(self, request: Request, base: int, length: int) -> None:
        tenants, category = self.state_.tenants, self.state_.categories[request.category]
        by_category = tenants[request.tenant] = tenants.pop(request.tenant, {})
        own = by_category.setdefault(request.category, AgedMean())
        expected, variance = category.deviation(own)
        deviation = log_ratio(length, base) - category.level.level
        if own.count > 0:
            category.between += BETWEEN_GAIN * (deviation * own.total / own.count - category.between)
        category.level.learn(deviation - expected, variance, MIN_GAIN)
        own.learn(deviation, self.gain)
        if len(tenants) > self.max_tenants:
            del tenants[next(iter(tenants))]
