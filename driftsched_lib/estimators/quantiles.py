"""Running quantiles of the length itself, by tenant and category."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from driftsched_lib.estimators.base import Censored
from driftsched_lib.estimators.interval import IntervalEstimator, SlidingWindow, State
from driftsched_lib.requests import BASE_TOKENS, Estimate, Request
from driftsched_lib.validation import in_range


@dataclass
class QuantilesState(State):
    """The last lengths per category, and per tenant (least recently observed first) and category."""

    categories: dict[str, SlidingWindow]
    tenants: dict[str, dict[str, SlidingWindow]] = field(default_factory=dict)


class RunningQuantiles(IntervalEstimator):
    """Estimate by the median and the quantiles of the last 100 lengths of a tenant in a category.

    A tenant with few observations gets the whole category's quantiles, a category without any its base.  No shape of
    distribution is assumed: outputs may mostly end at their limit, or have two humps.  O(1) per estimate; O(n) per
    observation in a window of n = 100.

    An output that ended at its limit teaches nothing if the limit is below the median.  Else it counts as the window's
    oldest length above that limit, or as itself if there is none: mass is redistributed to the right, as in Efron, The
    Two Sample Problem with Censored Data (1967).  So lower limits neither shorten the tail nor hold the median.

    Parameters:
        base_tokens: expected output length by category before anything is observed (tokens).
        min_observations: a tenant with as many in a category has quantiles of its own.
        max_tenants: how many tenants are kept; the least recently observed starts again from its category.

    >>> estimator = RunningQuantiles()
    >>> request = Request("1", 0.0, "Summarize DNS.", "acme", "standard", max_tokens=256, category="summary")
    >>> for length in range(100, 200, 10):
    ...     estimator.observe(request, length)
    >>> estimator.estimate(request).quantiles
    (100, 110, 120, 130, 140, 150, 160, 170, 180, 190)
    """

    state_: QuantilesState

    def __init__(
        self, base_tokens: Mapping[str, int] = BASE_TOKENS, min_observations: int = 30, max_tenants: int = 1000
    ):
        super().__init__(base_tokens)
        self.min_observations = int(in_range("min_observations", min_observations, 0, 100))
        self.max_tenants = int(in_range("max_tenants", max_tenants, 0, 1e6))
        self.state_ = QuantilesState(self.state_.intervals, {category: SlidingWindow() for category in base_tokens})

    def estimate(self, request: Request) -> Estimate:
        estimate = super().estimate(request)
        lengths = self._window(request).slices()
        if lengths is not None:
            estimate.quantiles = tuple([min(length, request.max_tokens) for length in lengths])
        return estimate

    def expect(self, request: Request, base: int) -> float:
        lengths = self._window(request).ordered
        return lengths[len(lengths) // 2] if lengths else float(base)

    def learn(self, request: Request, base: int, length: int) -> None:
        tenants = self.state_.tenants
        by_category = tenants[request.tenant] = tenants.pop(request.tenant, {})
        own = by_category.setdefault(request.category, SlidingWindow())
        for window in (self.state_.categories[request.category], own):
            longer = (value for value in window.values if value > request.max_tokens)
            window.add(next(longer, length) if isinstance(length, Censored) else length)
        if len(tenants) > self.max_tenants:
            del tenants[next(iter(tenants))]

    def _window(self, request: Request) -> SlidingWindow:
        own = self.state_.tenants.get(request.tenant, {}).get(request.category)
        if own is not None and len(own) >= self.min_observations:
            return own
        return self.state_.categories[request.category]
