"""The control that tells what SJF owes to batches of equal length from what it owes to its order."""

from collections.abc import Iterator
from math import inf
from typing import Literal

from driftsched_lib.policies.base import KeyedQueue, Policy
from driftsched_lib.policies.paper import Fifo, ShortestJobFirst
from driftsched_lib.requests import Request


class Grouped(Policy):
    """At each moment the oldest request first, and with it others of its category, oldest first; then the oldest again.

    A static batch is popped at one moment, so it is filled with like requests, and none is preferred for being short
    or long: the control that tells what SJF owes to batches of equal length from what it owes to its order.  Requests
    popped at moments of their own are popped in the order of arrival.  Cost: O(log n), and the number of categories.
    Iteration is for a moment at which nothing was popped yet.

    Parameters:
        lead: who goes first, among categories and within one: the oldest, or the shortest by its estimated total,
            which is SJF with batches that are alike.
    """

    def __init__(self, lead: Literal["oldest", "shortest"] = "oldest"):
        if lead not in ("oldest", "shortest"):
            raise ValueError(f"lead is {lead!r}, it may be oldest or shortest")
        self.lead = lead
        self._queues: dict[str, KeyedQueue] = {}
        self._place: dict[str, tuple[int, str]] = {}  # by request id: place in the order of arrival, and category
        self._added = 0
        self._category, self._since = "", -inf

    def add(self, request: Request) -> None:
        if request.request_id in self._place:
            raise ValueError(f"request {request.request_id!r} is queued already")
        if request.category not in self._queues:
            self._queues[request.category] = Fifo() if self.lead == "oldest" else ShortestJobFirst()
        self._queues[request.category].add(request)
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
        return min(heads, key=self._rank)

    def remove(self, request_id: str) -> Request:
        return self._queues[self._place.pop(request_id)[1]].remove(request_id)

    def __len__(self) -> int:
        return len(self._place)

    def __iter__(self) -> Iterator[Request]:
        queues = [list(queue) for queue in self._queues.values() if queue]
        for queue in sorted(queues, key=lambda queue: self._rank(queue[0])):
            yield from queue

    def _rank(self, request: Request) -> tuple[int, int]:
        return (0 if self.lead == "oldest" else request.estimate.total_tokens, self._place[request.request_id][0])
