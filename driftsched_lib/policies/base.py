"""Policy interface, the two queues that policies are built on, and the sizes that they share."""

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sized
from copy import deepcopy
from heapq import heapify, heappop, heappush
from typing import Any, Generic, TypeVar

from driftsched_lib.requests import TIERS, Estimate, Request

Lane = TypeVar("Lane", bound=Hashable)


class Policy(Sized, Iterable[Request]):
    """Queue requests with unique ids; `now` is in seconds since the start of the run and never goes back.

    Iteration yields the order in which `pop` would return what is queued.  If that depends on time, iteration uses the
    latest `now` that the queue has seen.  A `preemptive` policy preempts running requests.
    """

    preemptive = False

    @abstractmethod
    def add(self, request: Request) -> None:
        """Queue a request; raise ValueError if its id is queued already."""

    @abstractmethod
    def pop(self, now: float) -> Request:
        """Remove and return the next request; raise IndexError if none is queued."""

    @abstractmethod
    def peek(self, now: float) -> Request:
        """Return the next request; raise IndexError if none is queued."""

    @abstractmethod
    def remove(self, request_id: str) -> Request:
        """Remove and return a request; raise KeyError if it is not queued."""

    def on_finish(self, request: Request, output_tokens: int) -> None:  # noqa: B027
        """Note that a popped request has ended, completed or not: once per request, however often it was preempted."""

    def victim(self, running: Iterable[Request], now: float) -> Request | None:
        """Return the running request to preempt for the first queued one, or None."""
        return None


Entry = tuple[float, int, Request]  # key, place in the order of arrival, request


class KeyedQueue(Policy):
    """Serve the smallest `key(request)` first, ties in order of arrival.  Cost: O(log n) per operation, amortised."""

    def __init__(self) -> None:
        self._heap: list[Entry] = []  # a removed request leaves a dead entry
        self._alive: dict[str, Entry] = {}
        self._added = 0

    @abstractmethod
    def key(self, request: Request) -> float:
        """Return the request's place in the order, which stays the same while it is queued."""

    def add(self, request: Request) -> None:
        self._push(self._heap, request)

    def pop(self, now: float) -> Request:
        return self.remove(self.peek(now).request_id)

    def peek(self, now: float) -> Request:
        while self._is_dead(self._heap[0]):
            heappop(self._heap)
        return self._heap[0][2]

    def remove(self, request_id: str) -> Request:
        entry = self._alive.pop(request_id)
        self._drop_dead(self._alive)
        return entry[2]

    def _push(self, heap: list[Entry], request: Request) -> None:
        if request.request_id in self._alive:
            raise ValueError(f"request {request.request_id!r} is queued already")
        self._added += 1
        entry = self._alive[request.request_id] = (self.key(request), self._added, request)
        heappush(heap, entry)

    def _drop_dead(self, alive: Mapping[str, Entry]) -> None:
        """Rebuild the heap if its dead entries outnumber the living."""
        if len(self._heap) > 2 * len(alive):
            self._heap = list(alive.values())
            heapify(self._heap)

    def _is_dead(self, entry: Entry) -> bool:
        return self._alive.get(entry[2].request_id) is not entry

    def __len__(self) -> int:
        return len(self._alive)

    def __iter__(self) -> Iterator[Request]:
        return (request for _, _, request in sorted(self._alive.values()))

    def _popped_by_a_copy(self, now: float) -> Iterator[Request]:
        copy = deepcopy(self, {id(request): request for _, _, request in self._alive.values()})  # shares the requests
        return (copy.pop(now) for _ in range(len(copy)))


class Lanes(KeyedQueue, Generic[Lane]):
    """Serve the first request of the lane that `choose(now)` returns; within a lane the smallest key, by default FIFO.

    `lane(request)` stays the same while it is queued.  Cost: O(log n) per operation, amortised, and that of `choose`.
    """

    def __init__(self, lane: Callable[[Request], Lane]) -> None:
        super().__init__()
        self._lane: Callable[[Request], Lane] = lane
        self._lanes: OrderedDict[Lane, list[Entry]] = OrderedDict()  # heaps whose first entry is alive
        self._dead = 0
        self._latest_s = 0.0

    @abstractmethod
    def choose(self, now: float) -> Lane:
        """Return the lane to serve next; at least one request is queued."""

    def key(self, request: Request) -> float:
        return 0.0

    def add(self, request: Request) -> None:
        lane = self._lane(request)
        heap = self._lanes.get(lane, [])
        self._push(heap, request)
        self._lanes[lane] = heap
        self._latest_s = max(self._latest_s, request.arrival_s)

    def peek(self, now: float) -> Request:
        if not self._alive:
            raise IndexError("the queue is empty")
        self._latest_s = max(self._latest_s, now)
        return self._lanes[self.choose(now)][0][2]

    def remove(self, request_id: str) -> Request:
        request = self._alive.pop(request_id)[2]
        lane = self._lane(request)
        heap = self._lanes[lane]
        self._dead += 1
        while heap and self._is_dead(heap[0]):
            heappop(heap)
            self._dead -= 1
        if not heap:
            del self._lanes[lane]
        if self._dead > len(self._alive):
            for heap in self._lanes.values():
                heap[:] = sorted(entry for entry in heap if not self._is_dead(entry))
            self._dead = 0
        return request

    def __iter__(self) -> Iterator[Request]:
        return self._popped_by_a_copy(self._latest_s)


def total_tokens(request: Request) -> int:
    """Return the estimated input and output together, at least one token."""
    return max(1, request.estimate.total_tokens)


def possible_tokens(request: Request) -> list[float]:
    """Return rising totals of equal probability, each at least one token: a single one if no quantiles are known."""
    quantiles = request.estimate.quantiles
    if quantiles is None:
        return [total_tokens(request)]
    prompt = request.input_tokens
    totals = [prompt + output for output in quantiles]
    return totals if totals[0] >= 1 else [max(1.0, total) for total in totals]


def example_request(
    request_id: str, output_tokens: int = 100, tier: str = next(iter(TIERS)), arrival_s: float = 0.0, **more: Any
) -> Request:
    """Return a request without a prompt, with this estimated output; `more` may give tenant, category and quantiles."""
    quantiles = more.pop("quantiles", None)
    request = Request(request_id, arrival_s, "", more.pop("tenant", ""), tier, max_tokens=1, **more)
    request.estimate = Estimate(output_tokens, output_tokens, 1.0, output_tokens, quantiles=quantiles)
    return request


def example_order(policy: Policy, *requests: Request, now: float = 0.0) -> list[str]:
    """Return the ids of requests in the order in which a policy serves them at `now`."""
    for request in requests:
        policy.add(request)
    return [policy.pop(now).request_id for _ in requests]
