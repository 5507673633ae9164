"""Fair shares of the engine's tokens for tenants, however many of them are in a tier and whatever each sends."""

from abc import abstractmethod
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heappush

from driftsched_lib.policies.base import (
    KeyedQueue,
    Policy,
    in_pop_order,
    not_negative,
    positive,
    positive_for_each_tier,
    total_tokens,
)
from driftsched_lib.policies.paper import TURNS
from driftsched_lib.requests import Request


class LeastServed(Policy):
    """The tenant of the lowest `level` first, of equal levels the one whose oldest request came first; FIFO within.

    Cost: O(log tenants) for each operation, amortised.  A tenant that moves leaves a stale entry in the heap; when
    there are more stale entries than tenants queued, the heap is rebuilt.
    """

    def __init__(self) -> None:
        self._queues: dict[str, OrderedDict[str, tuple[int, Request]]] = {}  # by tenant: those who have one
        self._tenants: dict[str, str] = {}  # by request id
        self._places: dict[str, tuple[float, int, str]] = {}  # by tenant: its entry in the heap
        self._heap: list[tuple[float, int, str]] = []
        self._added = 0

    @abstractmethod
    def level(self, tenant: str) -> float:
        """What a tenant that has requests queued has had so far."""

    def joins(self, request: Request) -> None:  # noqa: B027
        """The first request of a tenant that had none queued is about to be."""

    def leaves(self, tenant: str) -> None:  # noqa: B027
        """A tenant has no request queued any more."""

    def dispatched(self, request: Request) -> None:  # noqa: B027
        """A request has been popped."""

    def add(self, request: Request) -> None:
        if request.request_id in self._tenants:
            raise ValueError(f"request {request.request_id!r} is queued already")
        tenant = request.tenant
        self._tenants[request.request_id] = tenant
        self._added += 1
        if tenant in self._queues:
            self._queues[tenant][request.request_id] = (self._added, request)
        else:
            self.joins(request)
            self._queues[tenant] = OrderedDict({request.request_id: (self._added, request)})
            self.move(tenant)

    def pop(self, now: float) -> Request:
        tenant = self._first()
        request_id, (_, request) = self._queues[tenant].popitem(last=False)
        del self._tenants[request_id]
        self.dispatched(request)
        self._settle(tenant)
        return request

    def peek(self, now: float) -> Request:
        return next(iter(self._queues[self._first()].values()))[1]

    def remove(self, request_id: str) -> Request:
        tenant = self._tenants.pop(request_id)
        request = self._queues[tenant].pop(request_id)[1]
        self._settle(tenant)
        return request

    def move(self, tenant: str) -> None:
        """Put a queued tenant where its level and its oldest request belong."""
        place = (self.level(tenant), next(iter(self._queues[tenant].values()))[0], tenant)
        self._places[tenant] = place
        heappush(self._heap, place)
        if len(self._heap) > 2 * len(self._places):
            self._heap = list(self._places.values())
            heapify(self._heap)

    def _settle(self, tenant: str) -> None:
        if self._queues[tenant]:
            self.move(tenant)
        else:
            del self._queues[tenant], self._places[tenant]
            self.leaves(tenant)

    def _first(self) -> str:
        while self._places.get(self._heap[0][2]) is not self._heap[0]:
            heappop(self._heap)
        return self._heap[0][2]

    def __len__(self) -> int:
        return len(self._tenants)

    def __iter__(self) -> Iterator[Request]:
        return in_pop_order(self, [request for queue in self._queues.values() for _, request in queue.values()])


class VirtualTokenCounter(LeastServed):
    """The tenant with the smallest virtual token counter first; FIFO within (VTC, Sheng et al., OSDI 2024).

    A tenant's counter grows by `(input_price * input + output_price * output) / weight of its tier`.  The estimated
    output is charged when the request is dispatched, and on completion the counter is set right by what was observed.
    A tenant that had nothing queued is lifted to the smallest counter of those that have, or to that of the last
    tenant that had, so that idleness earns no credit.

    While two tenants both have requests queued, their counters differ by at most what the largest request costs and
    what the estimates of running requests are wrong by; so do their shares of service per weight.

    Cost: O(log tenants).

    Parameters:
        weights: share by tier; a tenant of twice the weight may have twice the tokens.
        input_price, output_price: of a token; output tokens cost the engine more.
    """

    def __init__(self, weights: Mapping[str, float] = TURNS, input_price: float = 1.0, output_price: float = 2.0):
        super().__init__()
        self.weights = positive_for_each_tier("weights", weights)
        self.input_price = not_negative("input_price", input_price)
        self.output_price = positive("output_price", output_price)
        self.counters: dict[str, float] = defaultdict(float)
        self._last_left = 0.0

    def level(self, tenant: str) -> float:
        return self.counters[tenant]

    def joins(self, request: Request) -> None:
        lowest = self.counters[self._first()] if self._places else self._last_left
        self.counters[request.tenant] = max(self.counters[request.tenant], lowest)

    def leaves(self, tenant: str) -> None:
        self._last_left = self.counters[tenant]

    def dispatched(self, request: Request) -> None:
        cost = self.input_price * request.input_tokens + self.output_price * request.estimate.output_tokens
        self.counters[request.tenant] += cost / self.weights[request.tier]

    def completed(self, request: Request, output_tokens: int) -> None:
        wrong_by = output_tokens - request.estimate.output_tokens
        self.counters[request.tenant] += self.output_price * wrong_by / self.weights[request.tier]
        if request.tenant in self._places:
            self.move(request.tenant)


class MultilevelFeedback(LeastServed):
    """Tenants sink through levels as they are served, the highest level first, FIFO within; it needs no estimate.

    A multilevel feedback queue (Corbato et al., 1962) learns a job's size by running it for a while and taking it off
    again.  A queue of requests that have not run, and are never taken off once they do, learns nothing of them by
    waiting: each is in the top level, which is FIFO.  What can be learnt is how much a *tenant* has had, so here
    the tenant is what sinks: after `quantum_tokens` observed input and output tokens to level 1, after twice as many
    more to level 2, and so on.  After `reset_tokens` observed in all everyone is at the top again, so none starves
    for longer than it takes to make as many.  A tenant is charged only when a request of it ends.

    Cost: O(log tenants), and at a reset O(tenants).

    Parameters:
        quantum_tokens: what a tenant may have at the top.
        levels: how many there are.
        reset_tokens: observed tokens of all tenants from one reset to the next.
    """

    def __init__(self, quantum_tokens: int = 2048, levels: int = 5, reset_tokens: int = 131072):
        if quantum_tokens < 1 or levels < 1 or reset_tokens < 1:
            raise ValueError(
                f"quantum_tokens is {quantum_tokens}, levels is {levels} and reset_tokens is {reset_tokens}: "
                "each must be at least one"
            )
        super().__init__()
        self.quantum_tokens = quantum_tokens
        self.levels = levels
        self.reset_tokens = reset_tokens
        self._observed: dict[str, int] = defaultdict(int)
        self._observed_in_all = 0

    def level(self, tenant: str) -> float:
        quanta = self._observed[tenant] // self.quantum_tokens
        return min((quanta + 1).bit_length(), self.levels) - 1

    def completed(self, request: Request, output_tokens: int) -> None:
        tokens = request.input_tokens + output_tokens
        self._observed[request.tenant] += tokens
        self._observed_in_all += tokens
        moved = [request.tenant]
        if self._observed_in_all >= self.reset_tokens:
            self._observed.clear()
            self._observed_in_all = 0
            moved = list(self._places)
        for tenant in moved:
            if tenant in self._places:
                self.move(tenant)


class WeightedFairQueueing(KeyedQueue):
    """Smallest start tag first: when a tenant's share of the engine, had it an engine of its own, would begin it.

    Start-time fair queueing (Goyal, Vin and Cheng, 1996), which stays fair on a server whose speed varies.  A request's
    start tag is the larger of the virtual time, the start tag of the request dispatched last, and its tenant's finish
    tag, which then grows by the estimated total over the weight of the tier.  Tags are never corrected, so a
    tenant gains by requests that turn out longer than estimated, and pays for those that it takes back.

    Cost: O(log n).

    Parameters:
        weights: share by tier.
    """

    def __init__(self, weights: Mapping[str, float] = TURNS):
        super().__init__()
        self.weights = positive_for_each_tier("weights", weights)
        self._virtual_time = 0.0
        self._finish_tags: dict[str, float] = {}

    def key(self, request: Request) -> float:
        start = max(self._virtual_time, self._finish_tags.get(request.tenant, 0.0))
        self._finish_tags[request.tenant] = start + total_tokens(request) / self.weights[request.tier]
        return start

    def pop(self, now: float) -> Request:
        self.peek(now)
        self._virtual_time = self._heap[0][0]
        return super().pop(now)


class DeficitRoundRobin(Policy):
    """Tenants take turns; a turn adds a quantum to what the tenant may spend on estimated totals, oldest request first.

    What is left over is kept for the next turn, unless the tenant has nothing queued any more (Shreedhar and Varghese,
    1995).  While two tenants both have requests queued, their tokens per weight differ by at most one quantum and the
    largest request over the smaller weight.  The tenant whose turn it is stays first until a pop or a peek finds its
    oldest request too large for what it has left.

    Cost: O(1), amortised, as long as a quantum is not much smaller than a request.

    Parameters:
        quantum_tokens: estimated tokens a turn for a weight of one.
        weights: share by tier.
    """

    def __init__(self, quantum_tokens: int = 128, weights: Mapping[str, float] = TURNS):
        if quantum_tokens < 1:
            raise ValueError(f"quantum_tokens is {quantum_tokens}, it must be at least one")
        self.quantum_tokens = quantum_tokens
        self.weights = positive_for_each_tier("weights", weights)
        self._queues: OrderedDict[str, OrderedDict[str, Request]] = OrderedDict()  # by tenant, in the order of turns
        self._tenants: dict[str, str] = {}  # by request id
        self._left: dict[str, float] = {}  # by tenant: tokens that it may still spend
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
        self._left[request.tenant] -= total_tokens(request)
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
            if total_tokens(request) <= self._left[tenant]:
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

    def __len__(self) -> int:
        return len(self._tenants)

    def __iter__(self) -> Iterator[Request]:
        return in_pop_order(self, [request for queue in self._queues.values() for request in queue.values()])
