"""Several simulated engines behind a router: one engine to `serving.serve`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

from driftsched_lib.engines.base import check_progress
from driftsched_lib.engines.simulated import SimulatedEngine
from driftsched_lib.requests import Output, Request


@dataclass
class Replica:
    """One engine behind the router."""

    index: int
    engine: SimulatedEngine
    busy: bool = False  # in an iteration
    outstanding: dict[str, int] = field(default_factory=dict)  # estimated total tokens of its requests, by id
    outputs: list[Output] = field(default_factory=list)  # of the iteration that it is in


Router = Callable[[Replica, int], Any]
"""Ranks a replica, given the index of the replica that was chosen last; the lowest rank gets the request."""
ROUTERS: dict[str, Router] = {
    "round_robin": lambda replica, last: (replica.index <= last, replica.index),
    "least_requests": lambda replica, last: len(replica.outstanding),
    "least_estimated_tokens": lambda replica, last: sum(replica.outstanding.values()),
}
"""By name; tokens are input and output together."""


class ReplicatedEngine:
    """Serve by several engines whose iterations are passed in the order of their ends.

    A busy replica always completes the iteration that it is in, and its outputs are kept until the common clock
    reaches that end.  A request that it is given meanwhile waits for the end, as in reality.

    Parameters:
        engines: equal engines.
        router: ranks the replicas with room, or all if none has room: a static batch may be larger than they are.
        max_outstanding: requests that a replica is given at most; those beyond its `max_num_seqs` wait in its own
            queue, first come first served.  None for `max_num_seqs`: then all waiting is left to the policy.
    """

    def __init__(self, engines: Sequence[SimulatedEngine], router: Router, max_outstanding: int | None = None):
        self._engines, self._router = engines, router
        self._max_outstanding = max_outstanding or engines[0].max_num_seqs
        self.max_num_seqs = sum(engine.max_num_seqs for engine in engines)
        self.limits = engines[0].limits
        self.count_tokens = engines[0].count_tokens
        self.restart_clock()

    def close(self) -> None:
        """Do nothing: there is nothing to give back."""

    def restart_clock(self) -> None:
        """Start a new run at time zero with empty step logs."""
        for engine in self._engines:
            engine.restart_clock()
        self._replicas = [Replica(index, engine) for index, engine in enumerate(self._engines)]
        self._now = 0.0
        self._last = -1  # replica that was given a request
        self._due: list[tuple[float, int]] = []  # heap: when which busy replica ends its iteration
        self._ready: list[Replica] = []  # busy replicas whose last iteration has ended

    @property
    def steps(self) -> list[tuple]:
        """The step logs of all replicas in order of time."""
        return sorted(row for replica in self._replicas for row in replica.engine.steps)

    def now(self) -> float:
        return self._now

    def has_room(self) -> bool:
        return any(map(self._has_room, self._replicas))

    def add(self, request: Request) -> None:
        choice = [replica for replica in self._replicas if self._has_room(replica)] or self._replicas
        replica = min(choice, key=lambda one: self._router(one, self._last))
        self._last = replica.index
        if not replica.busy:
            replica.engine.step(self._now)
        replica.engine.add(request)
        replica.outstanding[request.request_id] = request.estimate.total_tokens
        if not replica.busy:
            replica.busy = True
            self._ready.append(replica)

    def abort(self, request_id: str) -> None:
        for replica in self._replicas:
            if replica.outstanding.pop(request_id, None) is not None:
                replica.engine.abort(request_id)
                replica.outputs = [output for output in replica.outputs if output.request.request_id != request_id]

    def step(self, until: float) -> list[Output]:
        """Pass time to the next end of an iteration, or to `until` if that comes first.

        Raises RuntimeError if no request is here and `until` is infinite.
        """
        horizon = until if len(self._ready) + len(self._due) == 1 else self._now  # a replica alone may jump
        for replica in self._ready:
            replica.busy = bool(replica.outstanding)
            if replica.busy:
                replica.outputs = replica.engine.step(horizon)
                heappush(self._due, (replica.engine.now(), replica.index))
        self._ready = []
        if not self._due:
            check_progress(until)
        if not self._due or self._due[0][0] > until:
            self._now = max(self._now, until)
            return []
        self._now, index = heappop(self._due)
        replica = self._replicas[index]
        for output in replica.outputs:
            del replica.outstanding[output.request.request_id]
        self._ready.append(replica)
        return replica.outputs

    def _has_room(self, replica: Replica) -> bool:
        return len(replica.outstanding) < self._max_outstanding
