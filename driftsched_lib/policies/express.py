"""Express: this project's own policy, one index for tier, uncertain size, waiting and what the tenant has had."""

from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Iterator
from math import inf

from driftsched_lib.policies.base import KeyedQueue, example_order, example_request  # noqa: F401
from driftsched_lib.policies.tenants import MAX_IDLE_TENANTS
from driftsched_lib.requests import TIERS, Request, Tiers
from driftsched_lib.validation import not_negative

RECENT = 512  # requests over which the quantile is taken


class Express(KeyedQueue):
    """Serve the smallest `min(E[size] / weight, cap)` first, ties in order of arrival.

    **Index.**  A size is the expected output plus `input_price` per token of the prompt.  A second of waiting costs the
    tier's weight, but at least `size / cap`; then no order without preemption has a lower expected cost (Smith, 1956;
    for random sizes Rothkopf, 1966).  Below the cap, in the express lane, it is weighted SJF; above it, FIFO.  The cap
    is the `express_share` quantile of recent requests' sizes per weight.

    **Tenants.**  A request is express only if its start tag is at most `lead_tokens` ahead of the virtual time.  The
    tag is the end of the tenant's last express request, or the virtual time if that is later.  So per weight a tenant's
    express requests get at most an equal share of the engine, plus `lead_tokens` and one request.

    **Starvation.**  A credit grows by `fifo_share` of the tokens dispatched; the oldest request goes next, and spends
    it, when it covers its size.  While a request waits, at most `(A + 2 L) / fifo_share` tokens are dispatched: `A`
    were queued before it, and `L` is the largest request.  Cost: O(log n), and the number of quantiles.

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
        self._alive = OrderedDict()  # the oldest is found in O(1)
        self._counted: dict[str, tuple[float, float]] = {}  # by id of a request that has not ended: rank and size
        self._dispatched: set[str] = set()
        self._credit = 0.0
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []
        self._virtual_time = 0.0  # tokens per weight of processor sharing
        self._present: dict[str, tuple[int, float]] = {}  # by tenant with requests queued: how many, and its weight
        self._weight_present = 0.0
        self._tags: dict[str, float] = {}  # by tenant: the end of its last express request
        self._forget_at = MAX_IDLE_TENANTS

    def key(self, request: Request) -> float:
        if request.request_id in self._counted:  # it was preempted
            return self._counted[request.request_id][0]
        size = self._size(request)
        rank = self._rank(request.tenant, size / self.weights[request.tier])
        self._counted[request.request_id] = rank, size
        return rank

    def add(self, request: Request) -> None:
        super().add(request)
        queued, weight = self._present.get(request.tenant, (0, self.weights[request.tier]))
        self._present[request.tenant] = queued + 1, weight
        self._weight_present += 0 if queued else weight

    def pop(self, now: float) -> Request:
        request = self.peek(now)
        request_id = request.request_id
        if request_id not in self._dispatched:
            self._dispatched.add(request_id)
            size = self._counted[request_id][1]
            self._credit += self.fifo_share * size
            if request_id == next(iter(self._alive)):
                self._credit = max(0.0, self._credit - size)
            self._virtual_time += size / self._weight_present
        return self.remove(request_id)

    def peek(self, now: float) -> Request:
        if self._alive:
            oldest = next(iter(self._alive))
            if self._credit >= self._counted[oldest][1]:
                return self._alive[oldest][2]
        return super().peek(now)

    def remove(self, request_id: str) -> Request:
        request = super().remove(request_id)
        queued, weight = self._present.pop(request.tenant)
        if queued > 1:
            self._present[request.tenant] = queued - 1, weight
        else:
            self._weight_present -= weight
        if request_id not in self._dispatched:
            rank, _ = self._counted.pop(request_id)
            self._correct(request.tenant, rank, -rank)
        return request

    def on_finish(self, request: Request, output_tokens: int) -> None:
        self._dispatched.remove(request.request_id)
        rank, size = self._counted.pop(request.request_id)
        wrong_by = self.input_price * request.input_tokens + output_tokens - size
        self._correct(request.tenant, rank, wrong_by / self.weights[request.tier])

    def _rank(self, tenant: str, per_weight: float) -> float:
        """Return the size per weight of an express request, and infinity for others."""
        start = max(self._tags.get(tenant, 0.0), self._virtual_time)
        if not self._is_small(per_weight) or start > self._virtual_time + self.lead_tokens:
            return inf
        self._tags[tenant] = start + per_weight
        if len(self._tags) > self._forget_at:
            self._tags = {tenant: tag for tenant, tag in self._tags.items() if tag > self._virtual_time}
            self._forget_at = 2 * len(self._tags) + MAX_IDLE_TENANTS
        return per_weight

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

    def __iter__(self) -> Iterator[Request]:
        return self._popped_by_a_copy(now=0.0)
