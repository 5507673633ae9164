"""Express: this project's own policy, one index for tier, uncertain size, waiting and what the tenant has had."""

from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Iterator
from math import inf

from driftsched_lib.policies.base import KeyedQueue, example_order, example_request, in_pop_order  # noqa: F401
from driftsched_lib.policies.tenants import MAX_IDLE_TENANTS
from driftsched_lib.requests import TIERS, Request, Tiers
from driftsched_lib.validation import not_negative

RECENT = 512
"""Requests over which the quantile is taken."""


class Express(KeyedQueue):
    """Serve the smallest `min(E[size] / weight, cap)` first, ties in order of arrival.

    **Index.**  A size is the expected output plus `input_price` per token of the prompt.  A second of waiting costs the
    tier's weight, but at least `size / cap`; then no order without preemption has a lower expected cost (Smith, 1956;
    for random sizes Rothkopf, 1966).  Below the cap, in the express lane, it is weighted SJF; above it, FIFO.  The cap
    is the `express_share` quantile of recent requests' sizes per weight.

    **Tenants.**  A request is express only if its start tag is at most `lead_tokens` ahead of the virtual time.  The
    tag is the end of the tenant's last express request, or the virtual time if that is later.  So per weight a tenant's
    express requests get at most an equal share of the engine, plus `lead_tokens` and one request.

    **Starvation.**  The oldest request goes next when `fifo_share` of the tokens dispatched since it was last served
    covers it.  While a request waits, at most `(A + 2 L) / fifo_share` tokens are dispatched: `A` were queued before
    it, and `L` is the largest request.  Cost: O(log n), and the number of quantiles.

    Parameters:
        express_share: share of requests below the cap, from 0 (FIFO) to 1 (no cap).
        fifo_share: share of tokens for the oldest request, from 0 (long requests starve) to 1.
        lead_tokens: tokens per weight in the express lane that a tenant may have beyond its share.
        uncertainty: position of a size between the estimate's point (0) and its distribution's mean (1).
        input_price: size of a prompt's token, in output tokens; below 1, for prompts take few iterations.

    >>> long, short = example_request("long", 400, "batch"), example_request("short", 20, "batch")
    >>> example_order(Express(), long, short, example_request("premium", 45, "premium"))
    ['premium', 'short', 'long']
    """

    def __init__(
        self,
        express_share: float = 0.65,
        fifo_share: float = 0.05,
        lead_tokens: float = 2048.0,
        uncertainty: float = 1.0,
        input_price: float = 0.1,
        tiers: Tiers = TIERS,
    ):
        super().__init__()
        self.express_share = not_negative("express_share", express_share, 1)
        self.fifo_share = not_negative("fifo_share", fifo_share, 1)
        self.lead_tokens = not_negative("lead_tokens", lead_tokens)
        self.uncertainty = not_negative("uncertainty", uncertainty)
        self.input_price = not_negative("input_price", input_price)
        self.weights = {name: tier.weight for name, tier in tiers.items()}
        self._waiting: OrderedDict[str, float] = OrderedDict()  # size by request id, the oldest first
        self._dispatched: dict[str, tuple[float, float]] = {}  # by id of a popped request: rank and size
        self._credit = 0.0
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []
        self._virtual_time = 0.0  # tokens per weight of processor sharing
        self._present: dict[str, tuple[int, float]] = {}  # by tenant with requests queued: how many, and its weight
        self._weight_present = 0.0
        self._tags: dict[str, float] = {}  # by tenant: the end of its last express request
        self._forget_at = MAX_IDLE_TENANTS

    def key(self, request: Request) -> float:
        weight = self.weights[request.tier]
        self._join(request.tenant, weight)
        if request.request_id in self._dispatched:  # preempted, and counted before
            rank, self._waiting[request.request_id] = self._dispatched[request.request_id]
            return rank
        size = self._waiting[request.request_id] = self._size(request)
        per_weight = size / weight
        start = max(self._tags.get(request.tenant, 0.0), self._virtual_time)
        if not self._is_small(per_weight) or start > self._virtual_time + self.lead_tokens:
            return inf
        self._tags[request.tenant] = start + per_weight
        if len(self._tags) > self._forget_at:
            self._tags = {tenant: tag for tenant, tag in self._tags.items() if tag > self._virtual_time}
            self._forget_at = 2 * len(self._tags) + MAX_IDLE_TENANTS
        return per_weight

    def pop(self, now: float) -> Request:
        request = self.peek(now)
        request_id = request.request_id
        if request_id not in self._dispatched:
            size = self._waiting[request_id]
            self._dispatched[request_id] = self._alive[request_id][0], size
            self._credit += self.fifo_share * size
            if request_id == next(iter(self._waiting)):
                self._credit = max(0.0, self._credit - size)
            self._virtual_time += size / self._weight_present
        return self._leave(request_id)

    def peek(self, now: float) -> Request:
        if self._waiting:
            oldest, size = next(iter(self._waiting.items()))
            if self._credit >= size:
                return self._alive[oldest][2]
        return super().peek(now)

    def remove(self, request_id: str) -> Request:
        rank = self._alive[request_id][0]
        request = self._leave(request_id)
        if request_id not in self._dispatched:
            self._correct(request.tenant, rank, -rank)
        return request

    def on_finish(self, request: Request, output_tokens: int) -> None:
        rank, size = self._dispatched.pop(request.request_id)
        wrong_by = self.input_price * request.input_tokens + output_tokens - size
        self._correct(request.tenant, rank, wrong_by / self.weights[request.tier])

    def _correct(self, tenant: str, rank: float, by: float) -> None:
        """Correct what an express request counted for its tenant."""
        if rank < inf and tenant in self._tags:
            self._tags[tenant] += by

    def _size(self, request: Request) -> float:
        size, outputs = float(request.estimate.output_tokens), request.estimate.quantiles
        if outputs is not None:
            size += self.uncertainty * (sum(outputs) / len(outputs) - size)
        return max(1.0, size + self.input_price * request.input_tokens)

    def _is_small(self, per_weight: float) -> bool:
        """Return whether a size per weight is below the cap, this request counted in."""
        place = bisect_left(self._sorted, per_weight)
        self._sorted.insert(place, per_weight)
        self._recent.append(per_weight)
        if len(self._recent) > RECENT:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        return place < self.express_share * len(self._sorted)

    def _join(self, tenant: str, weight: float) -> None:
        queued, weight_before = self._present.get(tenant, (0, weight))
        self._present[tenant] = queued + 1, weight_before
        self._weight_present += 0 if queued else weight

    def _leave(self, request_id: str) -> Request:
        request = super().remove(request_id)
        del self._waiting[request_id]
        queued, weight = self._present.pop(request.tenant)
        if queued > 1:
            self._present[request.tenant] = queued - 1, weight
        else:
            self._weight_present -= weight
        return request

    def __iter__(self) -> Iterator[Request]:
        return in_pop_order(self, [request for _, _, request in self._alive.values()])
