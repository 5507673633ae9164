"""Policies that take a slot back from a running request."""

from collections.abc import Iterable
from heapq import heapify
from math import inf

from driftsched_lib.policies.base import KeyedQueue
from driftsched_lib.requests import Request
from driftsched_lib.validation import not_negative, positive


class ShortestRemaining(KeyedQueue):
    """Shortest remaining processing time first (SRPT), on estimates: the fewest output tokens yet to come.

    A running request gives its place to the first queued one if that has fewer tokens to come, the recomputation of
    what the running one has in the KV cache counted on top; of several, the one that wins most by it.  One that has
    outlived its estimate counts as about to end and is left alone, so estimates that are too short cost no
    preemption, and nothing is preempted for ever; but nothing bounds the wait of a long request.

    Source: Schrage, "A Proof of the Optimality of the Shortest Remaining Processing Time Discipline", 1968: no policy
    has a lower mean response time on one server whose sizes are known and whose preemptions are free.

    Cost: O(log n), and O(running requests) where one might give its place.

    Parameters:
        recompute: output tokens whose time a token takes that is computed again.
    """

    preemptive = True

    def __init__(self, recompute: float = 0.1):
        super().__init__()
        self.recompute = not_negative("recompute", recompute)

    def key(self, request: Request) -> float:
        return tokens_to_come(request)

    def victim(self, running: Iterable[Request], now: float) -> Request | None:
        if not len(self):
            return None
        most: float = tokens_to_come(self.peek(now))
        longest = None
        for request in running:
            made = request.num_output_tokens
            to_come = request.estimate.output_tokens - made
            if to_come > most and (gives := to_come - self.recompute * (request.input_tokens + made)) > most:
                most, longest = gives, request
        return longest


def tokens_to_come(request: Request) -> int:
    """The estimated output less what has been made of it, at least one token."""
    return max(1, request.estimate.output_tokens - request.num_output_tokens)


class MultilevelFeedback(KeyedQueue):
    """Requests sink through levels as they run, the highest level first, FIFO within; it needs no estimate (MLFQ).

    A request is at the top until it has made `quantum_tokens`, at the next level for twice as many more, and so on; one
    that runs gives its slot to the first queued one if that is of a higher level, and is computed again when it comes
    back.  So a request learns its size by running, as in the multilevel feedback queue of Corbato et al. (1962), and
    short ones pass long ones whose lengths nobody knew.  Every `boost_s` seconds all that are queued go back to the
    top in the order in which they were queued, with a new quantum: none waits longer than that, and then for those
    queued before it, as under FIFO.

    Cost: O(log n), O(running requests) where one might give its place, and O(n) at a boost.

    Parameters:
        quantum_tokens: output tokens at the top.
        levels: how many there are.
        boost_s: seconds from one boost to the next.
    """

    preemptive = True

    def __init__(self, quantum_tokens: int = 64, levels: int = 5, boost_s: float = 60.0):
        if quantum_tokens < 1 or levels < 1:
            raise ValueError(f"quantum_tokens is {quantum_tokens} and levels is {levels}: each must be at least one")
        super().__init__()
        self.quantum_tokens = quantum_tokens
        self.levels = levels
        self.boost_s = positive("boost_s", boost_s)
        self._boost_at_s = -inf
        self._made_before: dict[str, int] = {}  # by id: output tokens at its last boost, where there were any

    def key(self, request: Request) -> float:
        quanta = (request.num_output_tokens - self._made_before.get(request.request_id, 0)) // self.quantum_tokens
        return min((quanta + 1).bit_length(), self.levels) - 1

    def peek(self, now: float) -> Request:
        if now >= self._boost_at_s:
            self._boost()
            self._boost_at_s = now + self.boost_s
        return super().peek(now)

    def victim(self, running: Iterable[Request], now: float) -> Request | None:
        if not len(self):
            return None
        level, lowest = self.key(self.peek(now)), None
        for request in running:
            if request.num_output_tokens >= self.quantum_tokens and (mine := self.key(request)) > level:
                level, lowest = mine, request
        return lowest

    def on_finish(self, request: Request, output_tokens: int) -> None:
        self._made_before.pop(request.request_id, None)

    def _boost(self) -> None:
        for request_id, (level, place, request) in self._alive.items():
            if level:
                self._made_before[request_id] = request.num_output_tokens
                self._alive[request_id] = (0.0, place, request)
        self._heap = list(self._alive.values())
        heapify(self._heap)
