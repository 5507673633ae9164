"""Fair shares of the engine's tokens for tenants, however many share a tier and whatever each sends."""

from abc import abstractmethod
from heapq import heappop, heappush
from itertools import count
from operator import attrgetter

from driftsched_lib.policies.base import Entry, Lanes, example_order, example_request, total_tokens  # noqa: F401
from driftsched_lib.requests import TIERS, Request, Tiers
from driftsched_lib.validation import not_negative, positive

MAX_IDLE_TENANTS = 64  # remembered beyond twice those that matter, so that forgetting is O(1), amortised


class LeastServed(Lanes[str]):
    """Serve the tenant that has had the least first, ties by the oldest request.

    A request is charged to its tenant at its first dispatch.  A tenant that joins is lifted to `floor`, so idleness
    earns no credit.  `had` is what each tenant has had; those who are gone and would be lifted are forgotten.
    """

    def __init__(self, tiers: Tiers) -> None:
        super().__init__(attrgetter("tenant"))
        self.weights = {name: tier.weight for name, tier in tiers.items()}
        self.had: dict[str, float] = {}
        self._charged: dict[str, tuple[str, float]] = {}  # by id of a popped request: tenant and charge
        self._heads: dict[str, Entry] = {}  # by tenant with requests queued: what it has had, and its first request
        self._forget_at = MAX_IDLE_TENANTS

    @abstractmethod
    def charge(self, request: Request, output_tokens: int) -> float:
        """Return what a request counts for its tenant."""

    @abstractmethod
    def floor(self) -> float:
        """Return the least that a tenant counts as having had when it joins."""

    def add(self, request: Request) -> None:
        super().add(request)
        tenant = request.tenant
        if tenant not in self._heads:
            self.had[tenant] = max(self.had.get(tenant, 0.0), self.floor())
            self._move(tenant)
            if len(self.had) > self._forget_at:
                self._forget()

    def choose(self, now: float) -> str:
        while self._heads.get(self._heap[0][2].tenant) is not self._heap[0]:
            heappop(self._heap)
        return self._heap[0][2].tenant

    def pop(self, now: float) -> Request:
        request = self.peek(now)
        if request.request_id not in self._charged:
            charge = self.charge(request, request.estimate.output_tokens)
            self._charged[request.request_id] = request.tenant, charge
            self.had[request.tenant] += charge
        return self.remove(request.request_id)

    def remove(self, request_id: str) -> Request:
        request = super().remove(request_id)
        self._move(request.tenant)
        return request

    def on_finish(self, request: Request, output_tokens: int) -> None:
        del self._charged[request.request_id]

    def _move(self, tenant: str) -> None:
        """Note that what a tenant has had, or its first request, has changed."""
        if tenant in self._lanes:
            _, age, request = self._lanes[tenant][0]
            head = self._heads[tenant] = (self.had[tenant], age, request)
            heappush(self._heap, head)
            self._drop_dead(self._heads)
        else:
            self._heads.pop(tenant, None)

    def _forget(self) -> None:
        """Keep those who have something here, and those whom `floor` would not lift."""
        floor = self.floor()
        here = self._lanes.keys() | {tenant for tenant, _ in self._charged.values()}
        self.had = {tenant: had for tenant, had in self.had.items() if tenant in here or had > floor}
        self._forget_at = 2 * len(self.had) + MAX_IDLE_TENANTS


class VirtualTokenCounter(LeastServed):
    """Serve the tenant with the smallest virtual token counter first, FIFO within (VTC).

    A counter grows by a request's price, `input_price` and `output_price` per token, over its tier's weight.  Dispatch
    charges the estimated output; the end corrects it.  A tenant that joins is lifted to the smallest counter of those
    queued, or else to the last one's.  While two tenants both have requests queued, their counters differ by at most
    the largest request and the errors of running estimates.  Source: Sheng et al., OSDI 2024.  Cost: O(log n).

    >>> example_order(VirtualTokenCounter(), *[example_request(i, tenant=i[0]) for i in ("a1", "a2", "b1")])
    ['a1', 'b1', 'a2']
    """

    def __init__(self, input_price: float = 1.0, output_price: float = 2.0, tiers: Tiers = TIERS):
        super().__init__(tiers)
        self.input_price = not_negative("input_price", input_price)
        self.output_price = positive("output_price", output_price)
        self._last = ""  # the tenant that had a request queued when no other had

    def charge(self, request: Request, output_tokens: int) -> float:
        cost = self.input_price * request.input_tokens + self.output_price * output_tokens
        return cost / self.weights[request.tier]

    def floor(self) -> float:
        return self.had[self.choose(0.0)] if self._heads else self.had.get(self._last, 0.0)

    def remove(self, request_id: str) -> Request:
        request = super().remove(request_id)
        if not self._lanes:
            self._last = request.tenant
        return request

    def on_finish(self, request: Request, output_tokens: int) -> None:
        tenant, charged = self._charged.pop(request.request_id)
        self.had[tenant] += self.charge(request, output_tokens) - charged
        self._move(tenant)


class WeightedFairQueueing(LeastServed):
    """Serve the tenant with the smallest start tag first, FIFO within (start-time fair queueing).

    A tag grows by the estimated total over the tier's weight per request dispatched.  A tenant joins at no less than
    the virtual time: the tag served last or, once nothing is queued, the end of all.  While two tenants both have
    requests queued, their tokens per weight differ by at most the largest request of each, over its weight.  Tags are
    never corrected, so a tenant gains by underestimated requests.  Source: Goyal, Vin and Cheng, 1996.  Cost: O(log n).

    >>> example_order(WeightedFairQueueing(), *[example_request(i, tenant=i[0]) for i in ("a1", "a2", "b1")])
    ['a1', 'b1', 'a2']
    """

    def __init__(self, tiers: Tiers = TIERS):
        super().__init__(tiers)
        self._virtual_time = 0.0
        self._latest_end = 0.0

    def charge(self, request: Request, output_tokens: int) -> float:
        return total_tokens(request) / self.weights[request.tier]

    def floor(self) -> float:
        return self._virtual_time

    def pop(self, now: float) -> Request:
        self._virtual_time = self.had[self.choose(now)]
        request = super().pop(now)
        self._latest_end = max(self._latest_end, self.had[request.tenant])
        if not self._lanes:
            self._virtual_time = self._latest_end
        return request


class DeficitRoundRobin(Lanes[str]):
    """Give tenants turns; a turn adds `quantum_tokens` times the tier's weight to what the tenant may spend (DRR).

    A request costs its estimated total, once even if preempted.  A tenant keeps its turn until its oldest request costs
    more than it has left, and keeps the rest while it has requests queued.  While two tenants both have requests
    queued, their tokens per weight differ by at most one quantum and the largest request of each, over its weight.
    Source: Shreedhar and Varghese, 1995.  Cost: O(log n), or O(tenants) if none can pay in its turn.

    >>> example_order(DeficitRoundRobin(20), *[example_request(i, tenant=i[0]) for i in ("a1", "a2", "b1")])
    ['a1', 'b1', 'a2']
    """

    def __init__(self, quantum_tokens: int = 128, tiers: Tiers = TIERS):
        super().__init__(attrgetter("tenant"))
        self.quantum_tokens = positive("quantum_tokens", quantum_tokens)
        self.weights = {name: tier.weight for name, tier in tiers.items()}
        self._left: dict[str, float] = {}  # by tenant with requests queued: tokens that it may still spend
        self._paid: set[str] = set()  # ids of popped requests
        self._turn: str | None = None  # the tenant whose turn has begun

    def choose(self, now: float) -> str:
        for turn in count(1):
            tenant = next(iter(self._lanes))
            request = self._lanes[tenant][0][2]
            if tenant != self._turn:
                self._left[tenant] = self._left.get(tenant, 0.0) + self._quantum(request)
                self._turn = tenant
            if self._price(request) <= self._left[tenant]:
                break
            self._lanes.move_to_end(tenant)
            self._turn = None
            if turn == len(self._lanes):
                self._skip_rounds()
        return tenant

    def _skip_rounds(self) -> None:
        """Add up the rounds in which no tenant can pay; the last two are walked, since round-off may move the end."""
        heads = [lane[0][2] for lane in self._lanes.values()]
        rounds = min((self._price(head) - self._left[head.tenant]) / self._quantum(head) for head in heads) // 1 - 1
        for head in heads if rounds > 0 else ():
            self._left[head.tenant] += rounds * self._quantum(head)

    def pop(self, now: float) -> Request:
        request = self.peek(now)
        self._left[request.tenant] -= self._price(request)
        self._paid.add(request.request_id)
        return self.remove(request.request_id)

    def remove(self, request_id: str) -> Request:
        request = super().remove(request_id)
        if request.tenant not in self._lanes:
            self._left.pop(request.tenant, None)
            if self._turn == request.tenant:
                self._turn = None
        return request

    def on_finish(self, request: Request, output_tokens: int) -> None:
        self._paid.remove(request.request_id)

    def _quantum(self, request: Request) -> float:
        return self.quantum_tokens * self.weights[request.tier]

    def _price(self, request: Request) -> int:
        return 0 if request.request_id in self._paid else total_tokens(request)
