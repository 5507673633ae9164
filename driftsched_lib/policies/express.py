"""Express: this project's own policy, one index for tier, uncertain size, waiting and what the tenant has had.

**Objective.**  Of a request that arrives, the scheduler knows the mean `m` of its size, given what was learnt, and its
tier's weight `w`.  Sizes stand for time on the engine: output tokens, and tokens of the prompt at `input_price` each.
A second of its waiting costs `v = max(w, m / c)`: the tier's weight, but no less than its expected size over a size
`c`, as a long answer that waits for nothing is worth more than a short one.  The prices are set at arrival; sizes are
random and requests are not preempted.  Exchanging two neighbours `i`, `j` in any order changes the expected cost by
`m_i * v_j - m_j * v_i`, whatever the distributions, so that of what is queued is least in the order of `m / v` (Smith,
1956; with random sizes, Rothkopf, 1966), which is

    index = min(m / w, c).

Below the cap this is the c-mu rule, or weighted SJF.  All above it are equal, and any order of them costs the same; of
these orders FIFO has the smallest longest wait.  So a share of the requests, the express lane, is served
shortest first and hardly waits while its load alone is below the engine's capacity; the rest is FIFO behind it.  `c`
is set by that share: it is that quantile of the `m / w` of recent requests, whatever their lengths and weights are.

**Tenants.**  The express lane is shared by weight.  A tenant's requests in it have a start tag, as in start-time fair
queueing: the end of the tenant's last one, or, if that is less, the virtual time, which is what generalized processor
sharing gives a weight of one.  A request whose tag is more than `lead_tokens` ahead of the virtual time is not express.
So from the first request of a tenant on, its express requests have at most `lead_tokens` and one request more, per
weight, than an equal share of the engine would have given it; what it sends beyond waits in the FIFO lane.

**Starvation.**  Express requests could fill the engine, and the rest starve.  So `fifo_share` of all tokens dispatched
belongs to the oldest request: it has a credit that grows by that share of each, and when it covers the oldest request,
that one is next.  While a request waits, at most `(A + 2 L) / fifo_share` tokens are dispatched, where `A` are those
queued before it at its arrival, which is its wait under FIFO, and `L` the largest request's.  (The credit grows by
`fifo_share` of what is dispatched; while the request waits only those before it spend it, at most `A`; and it is below
`L` before each pop that does not serve the oldest.)
"""

from bisect import bisect_left
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from math import inf

from driftsched_lib.policies.base import KeyedQueue
from driftsched_lib.policies.tenants import FEW_TENANTS, weights
from driftsched_lib.requests import TIERS, Request, Tiers
from driftsched_lib.validation import not_negative

RECENT = 512
"""Requests over which the quantile is taken."""


class Express(KeyedQueue):
    """Smallest `min(E[size] / weight, cap)` first, the cap for tenants too far ahead; ties in the order of arrival.

    See this module.  Each term is taken away by a value: equal weights know no tiers, an `express_share` of 1 has no
    cap (and then, with all other terms away and an `input_price` of 1, it is SJF; with 0 it is FIFO), infinite
    `lead_tokens` know no tenants, `uncertainty=0` takes the estimate's point for its mean, `fifo_share=0` lets the rest
    starve.

    Cost: O(log n), and the number of quantiles.

    Parameters:
        express_share: share of the requests below the cap.
        fifo_share: share of the tokens that belongs to the oldest request.
        lead_tokens: per weight, what a tenant may have in the express lane beyond its share of the engine.
        uncertainty: how far from the estimate's point (0) to the mean of its distribution (1) the size is taken.
        input_price: what a token of the prompt counts in a size, an output token being one, as its time on the engine
            is less: a prompt is computed in a few iterations, an output in one a token.  At 1 sizes are SJF's.
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
        for name, share in (("express_share", express_share), ("fifo_share", fifo_share)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is {share}, it must be from 0 to 1")
        if not lead_tokens >= 0:
            raise ValueError(f"lead_tokens is {lead_tokens}, it must be a number that is not negative")
        super().__init__()
        self.weights = weights(tiers)
        self.express_share = express_share
        self.fifo_share = fifo_share
        self.lead_tokens = lead_tokens
        self.uncertainty = not_negative("uncertainty", uncertainty)
        self.input_price = not_negative("input_price", input_price)
        self._waiting: OrderedDict[str, float] = OrderedDict()  # by request id, the oldest first: its size
        self._dispatched: dict[str, tuple[float, float]] = {}  # by id of a request that was popped: rank and size
        self._credit = 0.0
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []
        self._virtual_time = 0.0  # tokens per weight of processor sharing
        self._weight_queued = 0.0
        self._queued: dict[str, int] = defaultdict(int)  # by tenant that has any: requests
        self._tenant_weights: dict[str, float] = {}
        self._tags: dict[str, float] = {}  # by tenant: the end of its last express request
        self._forget_at = FEW_TENANTS

    def key(self, request: Request) -> float:
        self._join(request.tenant, self.weights[request.tier])
        if request.request_id in self._dispatched:  # it comes back, and has been counted
            rank, self._waiting[request.request_id] = self._dispatched[request.request_id]
            return rank
        size = self._waiting[request.request_id] = self._size(request)
        per_weight = size / self.weights[request.tier]
        start = max(self._tags.get(request.tenant, 0.0), self._virtual_time)
        if not self._is_small(per_weight) or start > self._virtual_time + self.lead_tokens:
            return inf
        self._tags[request.tenant] = start + per_weight
        if len(self._tags) > self._forget_at:
            self._tags = {tenant: tag for tenant, tag in self._tags.items() if tag > self._virtual_time}
            self._forget_at = 2 * len(self._tags) + FEW_TENANTS
        return per_weight

    def pop(self, now: float) -> Request:
        request = self.peek(now)
        request_id = request.request_id
        if request_id not in self._dispatched:
            size = self._waiting[request_id]
            self._dispatched[request_id] = self._alive[request_id][0], size
            self._credit = self._credited(self._credit, size, request_id == next(iter(self._waiting)))
            self._virtual_time += size / self._weight_queued
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
        """Set right what an express request counted for its tenant."""
        if rank < inf and tenant in self._tags:
            self._tags[tenant] += by

    def _credited(self, credit: float, size: float, is_oldest: bool) -> float:
        """The credit of the oldest once a request of this size is dispatched."""
        credit += self.fifo_share * size
        return max(0.0, credit - size) if is_oldest else credit

    def _leave(self, request_id: str) -> Request:
        request = super().remove(request_id)
        del self._waiting[request_id]
        tenant = request.tenant
        self._queued[tenant] -= 1
        if not self._queued[tenant]:
            del self._queued[tenant]
            self._weight_queued -= self._tenant_weights.pop(tenant)
        return request

    def _size(self, request: Request) -> float:
        size, outputs = float(request.estimate.output_tokens), request.estimate.quantiles
        if outputs is not None:
            size += self.uncertainty * (sum(outputs) / len(outputs) - size)
        return max(1.0, size + self.input_price * request.input_tokens)

    def _join(self, tenant: str, weight: float) -> None:
        if not self._queued[tenant]:
            self._tenant_weights[tenant] = weight
            self._weight_queued += weight
        self._queued[tenant] += 1

    def _is_small(self, per_weight: float) -> bool:
        """Whether a size per weight is below the cap, as it stands with this request counted in."""
        place = bisect_left(self._sorted, per_weight)
        self._sorted.insert(place, per_weight)
        self._recent.append(per_weight)
        if len(self._recent) > RECENT:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        return place < self.express_share * len(self._sorted)

    def __iter__(self) -> Iterator[Request]:
        by_rank = (request.request_id for _, _, request in sorted(self._alive.values()))
        by_age, credit, popped = iter(self._waiting), self._credit, set[str]()
        oldest = next(by_age, "")
        while len(popped) < len(self):
            while oldest in popped:
                oldest = next(by_age)
            is_due = credit >= self._waiting[oldest]
            first = oldest if is_due else next(request_id for request_id in by_rank if request_id not in popped)
            popped.add(first)
            if first not in self._dispatched:
                credit = self._credited(credit, self._waiting[first], first == oldest)
            yield self._alive[first][2]
