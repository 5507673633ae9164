"""Running quantiles of the length itself, by tenant and category."""

from collections.abc import Mapping
from dataclasses import dataclass

from driftsched_lib.estimators.conformal import AdaptiveInterval, ConformalEstimator, new_intervals
from driftsched_lib.estimators.sliding import Lengths, SlidingWindow
from driftsched_lib.requests import BASE_TOKENS, Estimate, Request
from driftsched_lib.validation import in_range


@dataclass
class QuantilesState:
    """The last lengths of each category, of each tenant in each category, and the intervals.

    Tenants are in the order of their last observation, the oldest first.
    """

    categories: dict[str, Lengths]
    tenants: dict[str, dict[str, Lengths]]
    intervals: dict[str, AdaptiveInterval]


class RunningQuantiles(ConformalEstimator):
    """The median and the quantiles of the last 100 lengths of a tenant in a category, as they were observed.

    A tenant with fewer than `least_observations` in a category is estimated by the whole category, a category without
    any by its base.  It knows no shape of distribution, so it is right for any: for outputs that mostly end at their
    limit, or in two humps.

    Parameters:
        base_tokens: tokens by category.
        least_observations: from where on a tenant is taken by itself.
        most_tenants: how many tenants are kept; one more, and the one not observed for longest starts again from its
            category.
    """

    state_: QuantilesState

    def __init__(
        self,
        base_tokens: Mapping[str, int] = BASE_TOKENS,
        least_observations: int = 30,
        most_tenants: int = 1000,
    ):
        super().__init__(base_tokens)
        self.least_observations = int(in_range("least_observations", least_observations, 0, 100))
        self.most_tenants = int(in_range("most_tenants", most_tenants, 0, 1e6))
        categories = {category: SlidingWindow() for category in self.base_tokens}
        self.state_ = QuantilesState(categories, {}, new_intervals(self.base_tokens))

    def estimate(self, request: Request) -> Estimate:
        estimate = super().estimate(request)
        lengths = self._window(request).slices()
        if lengths is not None:
            limit = request.max_tokens
            estimate.quantiles = tuple([length if length < limit else limit for length in lengths])
        return estimate

    def _expect(self, request: Request, base: int) -> float:
        window = self._window(request)
        return window.quantile(0.5) if len(window) else float(base)

    def _learn(self, request: Request, base: int, length: int) -> None:
        tenants = self.state_.tenants
        self.state_.categories[request.category].add(length)
        by_category = tenants[request.tenant] = tenants.pop(request.tenant, {})
        by_category.setdefault(request.category, SlidingWindow()).add(length)
        if len(tenants) > self.most_tenants:
            del tenants[next(iter(tenants))]

    def _window(self, request: Request) -> SlidingWindow:
        own = self.state_.tenants.get(request.tenant, {}).get(request.category)
        if own is not None and len(own) >= self.least_observations:
            return own
        return self.state_.categories[request.category]
