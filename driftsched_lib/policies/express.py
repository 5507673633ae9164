"""Express: this project's own policy, one index for tier, uncertain size, waiting and what the tenant has had.

**Objective.**  A request that waits `T` seconds costs `max(w, S / c) * T`: its tier's weight `w` a second, but no less
than its size `S` over a size `c`, as a long answer that waits for nothing is worth more than a short one.  Requests are
not preempted and only the expectation of `S` is known.  Exchanging two neighbours in any order changes the cost by
`E[S_i] * v_j - E[S_j] * v_i`, where `v = max(w, E[S] / c)`, so the expected cost of what is queued is least in the
order of `E[S] / v` (Smith, 1956; with random sizes, Rothkopf, 1966), which is

    index = min(E[S] / w, c).

Below the cap this is the c-mu rule, or weighted SJF.  All above it are equal, and any order of them costs the same; of
these orders FIFO has the smallest longest wait.  So a share of the requests, the express lane, is served
shortest first and hardly waits while its load alone is below the engine's capacity; the rest is FIFO behind it.  `c`
is set by that share: it is that quantile of the `E[S] / w` of recent requests, whatever their lengths and weights are.

**Tenants.**  A tenant that has had more than its share in the busy period pays for the lead with size: `E[S] / w` is
raised by `fairness` times the lead, the tokens per weight that it has had beyond generalized processor sharing.  It so
loses the express lane, not its turn in the other one.

**Starvation.**  Express requests could fill the engine, and the rest starve.  So `fifo_share` of all tokens dispatched
belongs to the oldest request: it has a credit that grows by that share of each, and when it covers the oldest request,
that one is next.  While a request waits, at most `(A + 2 L) / fifo_share` tokens are dispatched, where `A` are those
queued before it at its arrival, which is its wait under FIFO, and `L` the largest request's.  (The credit grows by
`fifo_share` of what is dispatched; while the request waits only those before it spend it, at most `A`; and it is below
`L` before each pop that does not serve the oldest.)
"""

from bisect import bisect_left
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator, Mapping
from math import fsum, inf

from driftsched_lib.policies.base import (
    KeyedQueue,
    in_pop_order,
    not_negative,
    positive_for_each_tier,
    possible_tokens,
    total_tokens,
)
from driftsched_lib.policies.paper import TURNS
from driftsched_lib.requests import Request

RECENT = 512
"""Requests over which the quantile is taken."""


class Express(KeyedQueue):
    """Smallest `min(E[size] / weight + fairness * lead, cap)` first, ties in the order of arrival; see this module.

    Each term is taken away by a value: equal weights know no tiers, an `express_share` of 1 has no cap (and then, with
    all other terms away, it is SJF; with 0 it is FIFO), `fairness=0` knows no tenants, `uncertainty=0` takes the
    estimate's point for its mean, `fifo_share=0` lets the rest starve.

    Cost: O(log n), and the number of quantiles.

    Parameters:
        weights: cost of a second of waiting by tier, and the tenants' shares.
        express_share: share of the requests below the cap.
        fifo_share: share of the tokens that belongs to the oldest request.
        fairness: tokens per weight that a token per weight of lead counts for.
        uncertainty: how far from the estimate's point (0) to the mean of its distribution (1) the size is taken.
    """

    def __init__(
        self,
        weights: Mapping[str, float] = TURNS,
        express_share: float = 0.65,
        fifo_share: float = 0.05,
        fairness: float = 0.01,
        uncertainty: float = 1.0,
    ):
        for name, share in (("express_share", express_share), ("fifo_share", fifo_share)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is {share}, it must be from 0 to 1")
        super().__init__()
        self.weights = positive_for_each_tier("weights", weights)
        self.express_share = express_share
        self.fifo_share = fifo_share
        self.fairness = not_negative("fairness", fairness)
        self.uncertainty = not_negative("uncertainty", uncertainty)
        self._waiting: OrderedDict[str, float] = OrderedDict()  # by request id, the oldest first: its size
        self._credit = 0.0
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []
        self._virtual_time = 0.0  # tokens per weight of processor sharing
        self._weight_queued = 0.0
        self._queued: dict[str, int] = defaultdict(int)  # by tenant: requests
        self._served: dict[str, float] = defaultdict(float)  # by tenant: tokens per weight
        self._tenant_weights: dict[str, float] = {}

    def key(self, request: Request) -> float:
        size, tenant = self._size(request), request.tenant
        self._waiting[request.request_id] = size
        self._join(tenant, self.weights[request.tier])
        lead = max(0.0, self._served[tenant] - self._virtual_time)
        rank = size / self.weights[request.tier] + self.fairness * lead
        return rank if self._is_express(rank) else inf

    def pop(self, now: float) -> Request:
        request = self.peek(now)
        size = self._waiting[request.request_id]
        self._credit += self.fifo_share * size
        if request.request_id == next(iter(self._waiting)):
            self._credit = max(0.0, self._credit - size)
        self._virtual_time += size / self._weight_queued
        self._served[request.tenant] += size / self.weights[request.tier]
        return self.remove(request.request_id)

    def peek(self, now: float) -> Request:
        if self._waiting:
            oldest, size = next(iter(self._waiting.items()))
            if self._credit >= size:
                return self._alive[oldest][2]
        return super().peek(now)

    def remove(self, request_id: str) -> Request:
        request = super().remove(request_id)
        del self._waiting[request_id]
        self._queued[request.tenant] -= 1
        if not self._queued[request.tenant]:
            self._weight_queued -= self._tenant_weights[request.tenant]
        return request

    def completed(self, request: Request, output_tokens: int) -> None:
        wrong_by = output_tokens - request.estimate.output_tokens
        self._served[request.tenant] += wrong_by / self.weights[request.tier]

    def _size(self, request: Request) -> float:
        point = total_tokens(request)
        if request.estimate.quantiles is None or not self.uncertainty:
            return point
        totals = possible_tokens(request)
        return max(1.0, point + self.uncertainty * (fsum(totals) / len(totals) - point))

    def _join(self, tenant: str, weight: float) -> None:
        if not self._queued[tenant]:
            self._served[tenant] = max(self._served[tenant], self._virtual_time)
            self._tenant_weights[tenant] = weight
            self._weight_queued += weight
        self._queued[tenant] += 1

    def _is_express(self, rank: float) -> bool:
        """Whether a rank is below the cap, as it stands with this request counted in."""
        place = bisect_left(self._sorted, rank)
        self._sorted.insert(place, rank)
        self._recent.append(rank)
        if len(self._recent) > RECENT:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        return place < self.express_share * len(self._sorted)

    def __iter__(self) -> Iterator[Request]:
        return in_pop_order(self, [request for _, _, request in self._alive.values()])
