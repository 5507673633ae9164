"""The paper's five policies (arXiv 2606.02982), and a control that explains what SJF gains."""

from collections import deque
from collections.abc import Callable
from math import inf
from operator import attrgetter

from driftsched_lib.policies.base import KeyedQueue, Lanes, example_order, example_request, total_tokens  # noqa: F401
from driftsched_lib.requests import TIERS, Request, Tiers
from driftsched_lib.validation import not_negative


class Fifo(KeyedQueue):
    """Serve requests in order of arrival.  Source: the paper, and vLLM's default.  Cost: O(log n).

    >>> example_order(Fifo(), example_request("long", 400), example_request("short", 20))
    ['long', 'short']
    """

    def key(self, request: Request) -> float:
        return 0.0


class Priority(KeyedQueue):
    """Serve the best tier first, FIFO within; nothing bounds the wait of the last.  Source: the paper.  Cost: O(log n).

    >>> example_order(Priority(), example_request("b", tier="batch"), example_request("p", tier="premium"))
    ['p', 'b']
    """

    def __init__(self, tiers: Tiers = TIERS):
        super().__init__()
        self.ranks = {name: rank for rank, name in enumerate(tiers, start=1)}

    def key(self, request: Request) -> float:
        return self.ranks[request.tier]


class ShortestJobFirst(KeyedQueue):
    """Serve the request with the smallest `size(request)` first: by default the paper's estimated total of tokens.

    Nothing bounds the wait of a long request.  Source: the paper.  On one server without preemption, no order of known
    sizes has a lower mean wait (Smith, 1956).  Cost: O(log n).

    >>> queue = ShortestJobFirst()
    >>> queue.add(example_request("long", output_tokens=400))
    >>> queue.add(example_request("short", output_tokens=20))
    >>> queue.pop(now=0.0).request_id
    'short'
    """

    def __init__(self, size: Callable[[Request], float] = total_tokens):
        super().__init__()
        self.size = size

    def key(self, request: Request) -> float:
        return self.size(request)


class AgingPriority(KeyedQueue):
    """Serve the smallest `rank - rate * seconds waited` first; `rate` is in ranks per second.

    A request overtakes those of the next better tier that arrive more than `1 / rate` seconds after it.  All queued
    requests age alike, so a heap ordered by `rank + rate * arrival` suffices.  Source: the paper.  Cost: O(log n).

    >>> example_order(AgingPriority(), example_request("new", arrival_s=101.0), example_request("old", tier="standard"))
    ['old', 'new']
    """

    def __init__(self, rate: float = 0.01, tiers: Tiers = TIERS):
        super().__init__()
        self.rate = not_negative("rate", rate)
        self.ranks = {name: rank for rank, name in enumerate(tiers, start=1)}

    def key(self, request: Request) -> float:
        return self.ranks[request.tier] + self.rate * request.arrival_s


class Weighted(Lanes[str]):
    """Give each tier as many consecutive turns per cycle as its weight, FIFO within; an empty tier passes its turns on.

    Source: the paper (5 turns for premium, 3 for standard, 2 for batch).  Weights must be whole numbers; else the
    constructor raises ValueError.  Cost: O(log n), and the cycle's length.

    >>> requests = [example_request(f"{tier[0]}{i}", tier=tier) for i in range(6) for tier in ("batch", "premium")]
    >>> example_order(Weighted(), *requests)
    ['p0', 'p1', 'p2', 'p3', 'p4', 'b0', 'b1', 'p5', 'b2', 'b3', 'b4', 'b5']
    """

    def __init__(self, tiers: Tiers = TIERS):
        super().__init__(attrgetter("tier"))
        for name, tier in tiers.items():
            if tier.weight != int(tier.weight):
                raise ValueError(f"weight of {name} is {tier.weight}, as a number of turns it must be whole")
        self._turns = deque(name for name, tier in tiers.items() for _ in range(int(tier.weight)))

    def choose(self, now: float) -> str:
        return next(tier for tier in self._turns if tier in self._lanes)

    def pop(self, now: float) -> Request:
        request = super().pop(now)
        self._turns.rotate(-1 - self._turns.index(request.tier))
        return request


class Grouped(Lanes[str]):
    """Serve the oldest request, and at the same moment others of its category; then the oldest again.

    A static batch is popped at one moment, so it holds like requests, none preferred for its length.  This separates
    what SJF owes to batches of equal length from what it owes to its order.  Requests popped at different moments are
    FIFO.  Cost: O(log n), and the number of categories.

    >>> example_order(Grouped(), *[example_request(i, category=i[0]) for i in ("a1", "b1", "a2")])
    ['a1', 'a2', 'b1']
    """

    def __init__(self) -> None:
        super().__init__(attrgetter("category"))
        self._category, self._since = "", -inf

    def choose(self, now: float) -> str:
        if now == self._since and self._category in self._lanes:
            return self._category
        return min(self._lanes, key=lambda category: self._lanes[category][0][1])

    def pop(self, now: float) -> Request:
        request = super().pop(now)
        self._category, self._since = request.category, now
        return request
