"""Policies that preempt running requests."""

from collections.abc import Iterable
from heapq import heapify
from math import inf

from driftsched_lib.policies.base import KeyedQueue, example_order, example_request  # noqa: F401
from driftsched_lib.requests import Request
from driftsched_lib.validation import not_negative, positive


class ShortestRemaining(KeyedQueue):
    """Serve the request with the fewest estimated output tokens to come first (SRPT).

    The first queued request preempts the running one that has the most tokens to come, if these are more than its own.
    Each of its tokens in the KV cache counts against that as `recompute` output tokens.  A request that has outlived
    its estimate is left alone, so nothing is preempted for ever.  Nothing bounds the wait of a long request.  Source:
    Schrage, 1968, who proved that with known sizes and free preemption no policy has a lower mean response time on one
    server.  Cost: O(log n), and O(running requests) to find a victim.

    >>> queue, long = ShortestRemaining(), example_request("long", 400)
    >>> queue.add(example_request("short", 20))
    >>> queue.victim([long], now=0.0) is long
    True
    """

    preemptive = True

    def __init__(self, recompute: float = 0.1):
        super().__init__()
        self.recompute = not_negative("recompute", recompute)

    def key(self, request: Request) -> float:
        return max(1, request.estimate.output_tokens - request.num_output_tokens)

    def victim(self, running: Iterable[Request], now: float) -> Request | None:
        if not len(self):
            return None
        most, longest = self.key(self.peek(now)), None
        for request in running:
            made = request.num_output_tokens
            to_come = request.estimate.output_tokens - made
            if to_come > most and (gives := to_come - self.recompute * (request.input_tokens + made)) > most:
                most, longest = gives, request
        return longest


class MultilevelFeedback(KeyedQueue):
    """Serve the highest level first, FIFO within; requests sink as they run (MLFQ).  It needs no estimate.

    A request is at the top of so many `levels` for its first `quantum_tokens` of output, at the next for twice as many,
    and so on.  The first queued request preempts a running one of a lower level.  Every `boost_s` seconds all queued
    requests return to the top in order of queueing, with a new quantum, so each waits only for those before it.
    Source: Corbato et al., 1962.  Cost: O(log n), O(running requests) to find a victim, and O(n) per boost.

    >>> queue, long = MultilevelFeedback(quantum_tokens=64), example_request("long", num_output_tokens=64)
    >>> queue.add(example_request("new"))
    >>> queue.victim([long], now=0.0) is long
    True
    """

    preemptive = True

    def __init__(self, quantum_tokens: int = 64, levels: int = 5, boost_s: float = 60.0):
        super().__init__()
        self.quantum_tokens = int(positive("quantum_tokens", quantum_tokens))
        self.levels = int(positive("levels", levels))
        self.boost_s = positive("boost_s", boost_s)
        self._boost_at_s = -inf
        self._made_before: dict[str, int] = {}  # by id: output tokens at its last boost, if there were any

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
