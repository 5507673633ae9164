"""Dispatch policies.  A policy is a queue: what it pops next is its whole meaning.

The face follows vLLM's `RequestQueue` (add, pop, peek, remove, len, iter).  Where the order of two queued requests
never changes, a policy is one key function over the shared heap of `KeyedQueue`; only what needs state is more.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf

from driftsched_lib.requests import TIERS, Request

RANKS = {tier: rank for rank, tier in enumerate(TIERS, start=1)}
TURNS = {"premium": 5, "standard": 3, "batch": 2}


class Policy(ABC):
    """A queue of requests with unique ids; `now` is in seconds since the start of the run.

    `pop` and `peek` raise IndexError on an empty queue, `remove` raises KeyError for an id that is not queued, `add`
    raises ValueError for one that is.  Iteration gives the order in which `pop` would return what is queued now.
    """

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


class KeyedQueue(Policy):
    """Smallest `key(request)` first, ties in the order of arrival.  Cost: O(log n) for each operation, amortised.

    A removed request leaves a dead entry in the heap; when the dead outnumber the living, the heap is rebuilt.
    """

    def __init__(self):
        self._heap: list[tuple[float, int, Request]] = []
        self._alive: dict[str, tuple[float, int, Request]] = {}
        self._sequence = count()

    @abstractmethod
    def key(self, request: Request) -> float:
        """The request's place in the order, fixed for as long as it is queued."""

    def add(self, request: Request) -> None:
        if request.request_id in self._alive:
            raise ValueError(f"request {request.request_id!r} is queued already")
        entry = (self.key(request), next(self._sequence), request)
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
        request = self._alive.pop(request_id)[2]
        if len(self._heap) > 2 * len(self._alive):
            self._heap = list(self._alive.values())
            heapify(self._heap)
        return request

    def _is_alive(self, entry: tuple[float, int, Request]) -> bool:
        return self._alive.get(entry[2].request_id) is entry

    def __len__(self) -> int:
        return len(self._alive)

    def __iter__(self) -> Iterator[Request]:
        return (request for _, _, request in sorted(self._alive.values()))


class Fifo(KeyedQueue):
    """Global arrival order."""

    def key(self, request: Request) -> float:
        return 0.0


class Priority(KeyedQueue):
    """The better tier first, FIFO within: premium, standard, batch.  Nothing bounds the wait of the last tier.

    Parameters:
        ranks: rank by tier, the smallest goes first.
    """

    def __init__(self, ranks: Mapping[str, float] = RANKS):
        super().__init__()
        self.ranks = _for_each_tier("ranks", ranks)

    def key(self, request: Request) -> float:
        return self.ranks[request.tier]


class ShortestJobFirst(KeyedQueue):
    """Smallest estimated total of input and output tokens first; nothing bounds the wait of a long request."""

    def key(self, request: Request) -> float:
        return request.estimate.total_tokens


class AgingPriority(KeyedQueue):
    """Smallest `rank - rate * seconds waited` first.

    All queued requests age alike, so the order of two never changes while they are queued, and the key is
    `rank + rate * arrival`: a heap serves what the reference implementation scans for.  A request overtakes those of
    a tier better by one that arrive more than 1 / rate seconds after it.

    Parameters:
        rate: ranks gained a second of waiting.
        ranks: rank by tier at arrival.
    """

    def __init__(self, rate: float = 0.01, ranks: Mapping[str, float] = RANKS):
        if not 0 <= rate < inf:
            raise ValueError(f"rate is {rate}, it must be a number that is not negative")
        super().__init__()
        self.rate = rate
        self.ranks = _for_each_tier("ranks", ranks)

    def key(self, request: Request) -> float:
        return self.ranks[request.tier] + self.rate * request.arrival_s


class Weighted(Policy):
    """A cycle of turns, FIFO within a tier; the turn of a tier with nothing queued passes on.

    Source: the paper's weighted scheduler, ten turns, 5 premium, 3 standard, 2 batch in a row.  Cost: O(log n).

    Parameters:
        turns: number of consecutive turns by tier, in the order of the cycle.
    """

    def __init__(self, turns: Mapping[str, int] = TURNS):
        turns = _for_each_tier("turns", turns)
        if any(n < 1 for n in turns.values()):
            raise ValueError(f"turns is {turns}, each tier needs at least one")
        self.cycle = tuple(tier for tier, n in turns.items() for _ in range(n))
        self._turn = 0
        self._queues = {tier: Fifo() for tier in turns}
        self._tier_of: dict[str, str] = {}

    def add(self, request: Request) -> None:
        if request.request_id in self._tier_of:
            raise ValueError(f"request {request.request_id!r} is queued already")
        self._queues[request.tier].add(request)
        self._tier_of[request.request_id] = request.tier

    def pop(self, now: float) -> Request:
        turn = self._next_turn(self._turn, self._queues)
        request = self._queues[self.cycle[turn]].pop(now)
        self._turn = turn + 1
        del self._tier_of[request.request_id]
        return request

    def peek(self, now: float) -> Request:
        return self._queues[self.cycle[self._next_turn(self._turn, self._queues)]].peek(now)

    def remove(self, request_id: str) -> Request:
        return self._queues[self._tier_of.pop(request_id)].remove(request_id)

    def _next_turn(self, turn: int, queued: Mapping[str, object]) -> int:
        """The first turn from `turn` on whose tier has something queued; IndexError where none has."""
        for offset in range(len(self.cycle)):
            index = (turn + offset) % len(self.cycle)
            if queued[self.cycle[index]]:
                return index
        raise IndexError("pop from an empty queue")

    def __len__(self) -> int:
        return len(self._tier_of)

    def __iter__(self) -> Iterator[Request]:
        queues = {tier: iter(queue) for tier, queue in self._queues.items()}
        lengths, turn = {tier: len(queue) for tier, queue in self._queues.items()}, self._turn
        for _ in range(len(self)):
            turn = self._next_turn(turn, lengths)
            lengths[self.cycle[turn]] -= 1
            yield next(queues[self.cycle[turn]])
            turn += 1


class Grouped(Policy):
    """At each moment the oldest request first, and with it others of its category, oldest first; then the oldest again.

    A static batch is popped at one moment, so it is filled with like requests, and none is preferred for being short
    or long: the control that tells what SJF owes to batches of equal length from what it owes to its order.  Requests
    popped at moments of their own are popped in the order of arrival.  Cost: O(log n), and the number of categories.
    Iteration is for a moment at which nothing was popped yet.
    """

    def __init__(self):
        self._queues: dict[str, Fifo] = {}
        self._place: dict[str, tuple[int, str]] = {}  # by request id: place in the order of arrival, and category
        self._added = 0
        self._category, self._since = "", -inf

    def add(self, request: Request) -> None:
        if request.request_id in self._place:
            raise ValueError(f"request {request.request_id!r} is queued already")
        self._queues.setdefault(request.category, Fifo()).add(request)
        self._added += 1
        self._place[request.request_id] = (self._added, request.category)

    def pop(self, now: float) -> Request:
        request = self.peek(now)
        self._queues[request.category].pop(now)
        self._category, self._since = request.category, now
        del self._place[request.request_id]
        return request

    def peek(self, now: float) -> Request:
        if now == self._since and self._queues[self._category]:
            return self._queues[self._category].peek(now)
        if not self._place:
            raise IndexError("peek into an empty queue")
        heads = [queue.peek(now) for queue in self._queues.values() if queue]
        return min(heads, key=lambda request: self._place[request.request_id])

    def remove(self, request_id: str) -> Request:
        return self._queues[self._place.pop(request_id)[1]].remove(request_id)

    def __len__(self) -> int:
        return len(self._place)

    def __iter__(self) -> Iterator[Request]:
        queues = [list(queue) for queue in self._queues.values() if queue]
        for queue in sorted(queues, key=lambda queue: self._place[queue[0].request_id]):
            yield from queue


def _for_each_tier(name: str, values: Mapping[str, float]) -> dict:
    if set(values) != set(TIERS):
        raise ValueError(f"{name} is {dict(values)}, it must name {', '.join(TIERS)}, each once")
    return dict(values)


POLICIES = {
    "fifo": Fifo,
    "priority": Priority,
    "weighted": Weighted,
    "sjf": ShortestJobFirst,
    "aging": AgingPriority,
    "grouped": Grouped,
}
