"""Fair shares of the engine's tokens for tenants, however many of them are in a tier and whatever each sends."""

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from driftsched_lib.policies.base import Policy, in_pop_order, total_tokens
from driftsched_lib.requests import TIERS, Request, Tiers
from driftsched_lib.validation import not_negative, positive

FEW_TENANTS = 64
"""So many idle tenants may be remembered beyond twice those that matter: looking for them is then O(1), amortised."""


def weights(tiers: Tiers) -> dict[str, float]:
    """Return the weight of each tier."""
    return {name: tier.weight for name, tier in tiers.items()}


class LeastServed(Policy):
    """The tenant that has had the least first, of equal ones the one whose oldest request came first; FIFO within.

    A tenant is charged for a request when it is dispatched, once even if the request comes back and is dispatched
    again.  One that had nothing queued is lifted to the `floor`, so that idleness earns no credit; it is forgotten once
    it has nothing here and has had no more than that.

    Cost: O(log tenants) for each operation, amortised.  A tenant that moves leaves a stale entry in the heap; when
    there are more stale entries than tenants queued, the heap is rebuilt.

    Attributes:
        had: what each tenant has had, by its name.
    """

    def __init__(self, tiers: Tiers) -> None:
        self.weights = weights(tiers)
        self.had: dict[str, float] = {}
        self._charged: dict[str, tuple[str, float]] = {}  # by id of a request that was popped: tenant and charge
        self._queues: dict[str, OrderedDict[str, tuple[int, Request]]] = {}  # by tenant: those who have one
        self._tenants: dict[str, str] = {}  # by request id
        self._places: dict[str, tuple[float, int, str]] = {}  # by tenant: its entry in the heap
        self._heap: list[tuple[float, int, str]] = []
        self._added = 0
        self._forget_at = FEW_TENANTS

    @abstractmethod
    def charge(self, request: Request, output_tokens: int) -> float:
        """What a request counts for its tenant."""

    @abstractmethod
    def floor(self) -> float:
        """What a tenant that joins counts as having had, if it has had less."""

    def add(self, request: Request) -> None:
        if request.request_id in self._tenants:
            raise ValueError(f"request {request.request_id!r} is queued already")
        tenant = request.tenant
        self._tenants[request.request_id] = tenant
        self._added += 1
        if tenant in self._queues:
            self._queues[tenant][request.request_id] = (self._added, request)
        else:
            self.had[tenant] = max(self.had.get(tenant, 0.0), self.floor())
            self._queues[tenant] = OrderedDict({request.request_id: (self._added, request)})
            self._move(tenant)
            if len(self.had) > self._forget_at:
                self._forget()

    def pop(self, now: float) -> Request:
        tenant = self._first()
        request_id, (_, request) = self._queues[tenant].popitem(last=False)
        del self._tenants[request_id]
        if request_id not in self._charged:
            charge = self.charge(request, request.estimate.output_tokens)
            self._charged[request_id] = tenant, charge
            self.had[tenant] += charge
        self._settle(tenant)
        return request

    def peek(self, now: float) -> Request:
        return next(iter(self._queues[self._first()].values()))[1]

    def remove(self, request_id: str) -> Request:
        tenant = self._tenants.pop(request_id)
        request = self._queues[tenant].pop(request_id)[1]
        self._settle(tenant)
        return request

    def on_finish(self, request: Request, output_tokens: int) -> None:
        del self._charged[request.request_id]

    def _move(self, tenant: str) -> None:
        """Put a queued tenant where what it has had and its oldest request belong."""
        place = (self.had[tenant], next(iter(self._queues[tenant].values()))[0], tenant)
        self._places[tenant] = place
        heappush(self._heap, place)
        if len(self._heap) > 2 * len(self._places):
            self._heap = list(self._places.values())
            heapify(self._heap)

    def _settle(self, tenant: str) -> None:
        if self._queues[tenant]:
            self._move(tenant)
        else:
            del self._queues[tenant], self._places[tenant]

    def _first(self) -> str:
        while self._places.get(self._heap[0][2]) is not self._heap[0]:
            heappop(self._heap)
        return self._heap[0][2]

    def _forget(self) -> None:
        """Keep those who have something here, and those whom `floor` would not lift."""
        floor = self.floor()
        here = self._queues.keys() | {tenant for tenant, _ in self._charged.values()}
        self.had = {tenant: had for tenant, had in self.had.items() if tenant in here or had > floor}
        self._forget_at = 2 * len(self.had) + FEW_TENANTS

    def __len__(self) -> int:
        return len(self._tenants)

    def __iter__(self) -> Iterator[Request]:
        return in_pop_order(self, [request for queue in self._queues.values() for _, request in queue.values()])


class VirtualTokenCounter(LeastServed):
    """The tenant with the smallest virtual token counter first; FIFO within (VTC, Sheng et al., OSDI 2024).

    A tenant's counter grows by `(input_price * input + output_price * output) / weight of its tier`.  The estimated
    output is charged when the request is dispatched, and when it ends the counter is set right by what was made.
    A tenant that had nothing queued is lifted to the smallest counter of those that have, or, where none has, to that
    of the tenant that was the last to have.

    While two tenants both have requests queued, their counters differ by at most what the largest request costs and
    what the estimates of running requests are wrong by; so do their shares of service per weight.

    Cost: O(log tenants).

    Parameters:
        tiers: by their weights; a tenant of twice the weight may have twice the tokens.
        input_price, output_price: of a token; output tokens cost the engine more.
    """

    def __init__(self, input_price: float = 1.0, output_price: float = 2.0, tiers: Tiers = TIERS):
        super().__init__(tiers)
        self.input_price = not_negative("input_price", input_price)
        self.output_price = positive("output_price", output_price)
        self._last = ""  # the tenant that had a request queued when none other had

    def charge(self, request: Request, output_tokens: int) -> float:
        cost = self.input_price * request.input_tokens + self.output_price * output_tokens
        return cost / self.weights[request.tier]

    def floor(self) -> float:
        return self.had[self._first()] if self._places else self.had.get(self._last, 0.0)

    def on_finish(self, request: Request, output_tokens: int) -> None:
        tenant, charged = self._charged.pop(request.request_id)
        self.had[tenant] += self.charge(request, output_tokens) - charged
        if tenant in self._places:
            self._move(tenant)

    def _settle(self, tenant: str) -> None:
        super()._settle(tenant)
        if not self._places:
            self._last = tenant


class WeightedFairQueueing(LeastServed):
    """The tenant with the smallest start tag first: when its share of the engine, were that an engine of its own,
    would begin its oldest request; FIFO within.

    Start-time fair queueing (Goyal, Vin and Cheng, 1996), which stays fair on a server whose speed varies.  A tenant's
    tag grows by the estimated total over the weight of the tier when a request of it is dispatched, and is at least
    the virtual time when it joins: the tag of the tenant served last or, once nothing is queued, the end of all.
    (There a request is tagged when it arrives; as a tenant's tags follow one another while it has requests queued, this
    is the same order, and a request that is cancelled in the queue leaves no trace.)  While two tenants both have
    requests queued, their tokens per weight differ by at most the largest request of the one and of the other, each
    over its weight.  Tags are never corrected, so a tenant gains by requests that turn out longer than estimated.

    Cost: O(log tenants).

    Parameters:
        tiers: by their weights.
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
        self._virtual_time = self.had[self._first()]
        request = super().pop(now)
        self._latest_end = max(self._latest_end, self.had[request.tenant])
        if not self._places:
            self._virtual_time = self._latest_end
        return request


class DeficitRoundRobin(Policy):
    """Tenants take turns; a turn adds a quantum to what the tenant may spend on estimated totals, oldest request first.

    What is left over is kept for the next turn, unless the tenant has nothing queued any more (Shreedhar and Varghese,
    1995).  While two tenants both have requests queued, their tokens per weight differ by at most one quantum and the
    largest request over the weight of the one and over that of the other.  The tenant whose turn it is stays first
    until a pop or a peek finds its oldest request too large for what it has left.  A request that comes back has been
    paid for.

    Cost: O(1), amortised, as long as a quantum is not much smaller than a request.

    Parameters:
        quantum_tokens: estimated tokens a turn for a weight of one.
        tiers: by their weights.
    """

    def __init__(self, quantum_tokens: int = 128, tiers: Tiers = TIERS):
        if quantum_tokens < 1:
            raise ValueError(f"quantum_tokens is {quantum_tokens}, it must be at least one")
        self.quantum_tokens = quantum_tokens
        self.weights = weights(tiers)
        self._queues: OrderedDict[str, OrderedDict[str, Request]] = OrderedDict()  # by tenant, in the order of turns
        self._tenants: dict[str, str] = {}  # by request id
        self._left: dict[str, float] = {}  # by tenant: tokens that it may still spend
        self._paid: set[str] = set()  # ids of requests that were popped
        self._turn_begun = False

    def add(self, request: Request) -> None:
        if request.request_id in self._tenants:
            raise ValueError(f"request {request.request_id!r} is queued already")
        self._tenants[request.request_id] = request.tenant
        if request.tenant not in self._queues:
            self._queues[request.tenant] = OrderedDict()
            self._left[request.tenant] = 0.0
        self._queues[request.tenant][request.request_id] = request

    def pop(self, now: float) -> Request:
        request = self.peek(now)
        self._left[request.tenant] -= self._price(request)
        self._paid.add(request.request_id)
        return self.remove(request.request_id)

    def peek(self, now: float) -> Request:
        if not self._queues:
            raise IndexError("peek into an empty queue")
        while True:
            tenant, queue = next(iter(self._queues.items()))
            request = next(iter(queue.values()))
            if not self._turn_begun:
                self._left[tenant] += self.quantum_tokens * self.weights[request.tier]
                self._turn_begun = True
            if self._price(request) <= self._left[tenant]:
                return request
            self._queues.move_to_end(tenant)
            self._turn_begun = False

    def remove(self, request_id: str) -> Request:
        tenant = self._tenants.pop(request_id)
        request = self._queues[tenant].pop(request_id)
        if not self._queues[tenant]:
            if tenant == next(iter(self._queues)):
                self._turn_begun = False
            del self._queues[tenant], self._left[tenant]
        return request

    def on_finish(self, request: Request, output_tokens: int) -> None:
        self._paid.remove(request.request_id)

    def _price(self, request: Request) -> int:
        return 0 if request.request_id in self._paid else total_tokens(request)

    def __len__(self) -> int:
        return len(self._tenants)

    def __iter__(self) -> Iterator[Request]:
        return in_pop_order(self, [request for queue in self._queues.values() for request in queue.values()])
