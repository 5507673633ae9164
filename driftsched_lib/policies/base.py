"""The face of a policy, and the heap that most of them are."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from copy import deepcopy
from heapq import heapify, heappop, heappush

from driftsched_lib.requests import Request


class Policy(ABC):
    """A queue of requests with unique ids; `now` is in seconds since the start of the run, and never goes back.

    `pop` and `peek` raise IndexError on an empty queue, `remove` raises KeyError for an id that is not queued, `add`
    raises ValueError for one that is.  Iteration gives the order in which `pop` would return what is queued now: where
    time moves that order, as it is at the latest time that an arrival, a pop or a peek told.  A policy that is
    `preemptive` takes slots back from running requests.
    """

    preemptive = False

    @abstractmethod
    def add(self, request: Request) -> None: ...

    @abstractmethod
    def pop(self, now: float) -> Request: ...

    @abstractmethod
    def peek(self, now: float) -> Request: ...

    @abstractmethod
    def remove(self, request_id: str) -> Request: ...

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __iter__(self) -> Iterator[Request]: ...

    def on_finish(self, request: Request, output_tokens: int) -> None:  # noqa: B027
        """A request that was popped has ended, completed or not, with so many output tokens.

        It is told once for each request that was ever popped.  One that was popped, added again (its slot was taken
        back) and popped again is one request, and what it has had is to be counted once.
        """

    def victim(self, running: Iterable[Request], now: float) -> Request | None:
        """Return the running request that should give its slot to the first queued one; None to preempt none."""
        return None


class KeyedQueue(Policy):
    """Smallest `key(request)` first, ties in the order of arrival.  Cost: O(log n) for each operation, amortised.

    A removed request leaves a dead entry in the heap; when the dead outnumber the living, the heap is rebuilt.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Request]] = []
        self._alive: dict[str, tuple[float, int, Request]] = {}
        self._added = 0

    @abstractmethod
    def key(self, request: Request) -> float:
        """The request's place in the order, fixed for as long as it is queued."""

    def add(self, request: Request) -> None:
        if request.request_id in self._alive:
            raise ValueError(f"request {request.request_id!r} is queued already")
        self._added += 1
        entry = (self.key(request), self._added, request)
        self._alive[request.request_id] = entry
        heappush(self._heap, entry)

    def pop(self, now: float) -> Request:
        request = self.peek(now)
        heappop(self._heap)
        del self._alive[request.request_id]
        return request

    def peek(self, now: float) -> Request:
        while not self._is_alive(self._heap[0]):
            heappop(self._heap)
        return self._heap[0][2]

    def remove(self, request_id: str) -> Request:
        entry = self._alive.pop(request_id)
        if self._heap[0] is entry:
            heappop(self._heap)
        elif len(self._heap) > 2 * len(self._alive):
            self._heap = list(self._alive.values())
            heapify(self._heap)
        return entry[2]

    def _is_alive(self, entry: tuple[float, int, Request]) -> bool:
        return self._alive.get(entry[2].request_id) is entry

    def __len__(self) -> int:
        return len(self._alive)

    def __iter__(self) -> Iterator[Request]:
        return (request for _, _, request in sorted(self._alive.values()))


def in_pop_order(policy: Policy, queued: Iterable[Request], now: float = 0.0) -> Iterator[Request]:
    """What a policy would pop if nothing more arrived, from a copy of it that shares the requests.

    Parameters:
        queued: the requests in the queue, in any order.
    """
    copy = deepcopy(policy, {id(request): request for request in queued})
    return (copy.pop(now) for _ in range(len(copy)))


def total_tokens(request: Request) -> int:
    """The estimated input and output together, at least one token."""
    return max(1, request.estimate.total_tokens)


def possible_tokens(request: Request) -> list[float]:
    """Rising totals of equal probability, each at least one token: one alone where the estimate is no distribution."""
    quantiles = request.estimate.quantiles
    if quantiles is None:
        return [total_tokens(request)]
    prompt = request.input_tokens
    totals = [prompt + output for output in quantiles]
    return totals if totals[0] >= 1 else [max(1.0, total) for total in totals]
