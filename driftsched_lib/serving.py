"""The serving loop: requests arrive, the scheduler chooses, the engine works, the scheduler learns."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from heapq import heappop, heappush
from math import inf, isnan
from typing import Protocol

from driftsched_lib.requests import Output, Request
from driftsched_lib.scheduler import Scheduler


class Engine(Protocol):
    """Engine interface, in real or in virtual time (seconds since the start of the run)."""

    def now(self) -> float: ...

    def has_room(self) -> bool:
        """Return whether one more request would be worked on at once."""

    def add(self, request: Request) -> None:
        """Take a request; ValueError says why this engine can never serve it."""

    def abort(self, request_id: str) -> None:
        """Drop a request; an unknown one is no error."""

    def num_output_tokens(self) -> dict[str, int]:
        """Return the output tokens so far by request id; only asked where a policy preempts."""

    def preempt(self, request_id: str) -> None:
        """Drop a request that will come back, and note its progress in it; only where a policy preempts."""

    def step(self, until: float) -> list[Output]:
        """Work for one iteration, or let time pass if there is nothing to do, until `until` at most."""

    def close(self) -> None:
        """Release what was loaded."""


class ContinuousBatching:
    """Dispatch once the engine has room or the policy preempts; finish each request when it ends, as vLLM does."""

    closes_s = inf

    def dispatch(self, scheduler: Scheduler, engine: Engine, now: float) -> None:
        while engine.has_room() and (request := scheduler.next(now)) is not None:
            _start(request, scheduler, engine, now)
        while scheduler.policy.preemptive and (victim := scheduler.preempt(engine.num_output_tokens(), now)):
            engine.preempt(victim.request_id)
            if (request := scheduler.next(now)) is not None:
                _start(request, scheduler, engine, now)

    def collect(self, outputs: list[Output]) -> list[Output]:
        return outputs

    def abort(self, engine: Engine, request_id: str, now: float) -> list[Output]:
        engine.abort(request_id)
        return []


class StaticBatching:
    """Serve micro-batches with a barrier, as the paper's worker does (section Worker).

    Requests are taken as the policy gives them until `size` are there or `wait_s` seconds have passed since the first.
    The engine gets them together.  Once the last has ended, or was aborted, all finish and the next batch starts.
    """

    def __init__(self, size: int, wait_s: float):
        self.size = size
        self.wait_s = wait_s
        self._opened_s = 0.0
        self._open: list[Request] = []
        self._running: set[str] = set()
        self._finished: list[Output] = []
        self._batches = 0

    @property
    def closes_s(self) -> float:
        """When the open batch is dispatched, or one of its requests expires; infinite if it is empty."""
        deadlines = [request.deadline_s for request in self._open if request.deadline_s is not None]
        return min(self._opened_s + self.wait_s, *deadlines, inf) if self._open else inf

    def dispatch(self, scheduler: Scheduler, engine: Engine, now: float) -> None:
        while not self._running:
            for late in [request for request in self._open if (request.deadline_s or inf) <= now]:
                self._open.remove(late)
                scheduler.give_back(late.request_id)  # it expires in the queue
            while len(self._open) < self.size and (request := scheduler.next(now)) is not None:
                if not self._open:
                    self._opened_s = now
                self._open.append(request)
            if not self._open or (len(self._open) < self.size and now < self._opened_s + self.wait_s):
                return
            for request in self._open:
                request.batch_id, request.batch_size = self._batches, len(self._open)
                if _start(request, scheduler, engine, now):
                    self._running.add(request.request_id)
            self._open, self._batches = [], self._batches + 1

    def collect(self, outputs: list[Output], aborted_s: float = -inf) -> list[Output]:
        self._finished += outputs
        self._running.difference_update(output.request.request_id for output in outputs)
        if self._running:
            return []
        released_s = max([aborted_s, *(output.finish_s for output in self._finished)])
        released, self._finished = [replace(output, finish_s=released_s) for output in self._finished], []
        return released

    def abort(self, engine: Engine, request_id: str, now: float) -> list[Output]:
        engine.abort(request_id)
        self._open = [request for request in self._open if request.request_id != request_id]
        self._finished = [output for output in self._finished if output.request.request_id != request_id]
        self._running.discard(request_id)
        return self.collect([], now)


class QueueDepth:
    """Sample the number of queued requests by tier into `rows`, at most every `interval_s` seconds."""

    def __init__(self, interval_s: float):
        self.interval_s = interval_s
        self.rows: list[tuple[float, ...]] = []

    def __call__(self, now: float, scheduler: Scheduler) -> None:
        if not self.rows or now >= self.rows[-1][0] + self.interval_s:
            self.rows.append((now, *scheduler.depth.values()))


def serve(
    requests: Iterable[Request],
    scheduler: Scheduler,
    engine: Engine,
    batching: ContinuousBatching | StaticBatching,
    start_s: float = 0.0,
    monitor: Callable[[float, Scheduler], None] = lambda now, scheduler: None,
) -> None:
    """Serve requests in the order of their arrival until each has ended.

    Requests are read lazily; their times are shifted by `start_s` as they arrive, so that phases share one clock.
    `monitor` is called once per iteration.  Raises RuntimeError if queued requests have no room and nothing could make
    room, or a time is not a number; and what the engine raises, once all that is here is recorded as failed.
    """
    arrivals = (_shifted(request, start_s) for request in requests) if start_s else iter(requests)
    upcoming = next(arrivals, None)
    cancellations: list[tuple[float, str]] = [(inf, "")]
    try:
        while True:
            now = engine.now()
            while upcoming is not None and upcoming.arrival_s <= now:
                scheduler.submit(upcoming, now)
                if upcoming.cancel_s is not None:
                    heappush(cancellations, (upcoming.cancel_s, upcoming.request_id))
                upcoming = next(arrivals, None)
            while cancellations[0][0] <= now:
                request_id = heappop(cancellations)[1]
                if scheduler.cancel(request_id, now) is not None:
                    for output in batching.abort(engine, request_id, now):
                        scheduler.complete(output)
            scheduler.expire(now)
            batching.dispatch(scheduler, engine, now)
            monitor(now, scheduler)
            if upcoming is None and scheduler.is_idle:
                return
            arrival_s = inf if upcoming is None else upcoming.arrival_s
            until = min(arrival_s, scheduler.next_deadline(), cancellations[0][0], batching.closes_s)
            if isnan(until):
                raise RuntimeError("no progress: a request's arrival, or another time to wait for, is not a number")
            for output in batching.collect(engine.step(until)):
                scheduler.complete(output)
    except BaseException as error:
        for request_id in scheduler.fail_all(f"{type(error).__name__}: {error}", engine.now()):
            with suppress(Exception):  # the engine itself may have failed; a healthy one must not go on with them
                engine.abort(request_id)
        raise


def _shifted(request: Request, start_s: float) -> Request:
    for name in ("arrival_s", "deadline_s", "cancel_s"):
        if (time_s := getattr(request, name)) is not None:
            setattr(request, name, time_s + start_s)
    return request


def _start(request: Request, scheduler: Scheduler, engine: Engine, now: float) -> bool:
    if request.dispatch_s is None:
        request.dispatch_s = now
    try:
        engine.add(request)
    except ValueError as error:
        scheduler.complete(Output(request, 0, 0, None, None, now, error=str(error)))
        return False
    return True
