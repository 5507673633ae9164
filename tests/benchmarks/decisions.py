"""What a policy's decision costs, by the number of queued requests."""

import gc
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import count, cycle, islice

import pandas as pd

from driftsched_lib.classify import KeywordClassifier
from driftsched_lib.experiments.params import Params
from driftsched_lib.policies import POLICIES, Policy
from driftsched_lib.requests import Estimate, Output, Request
from driftsched_lib.scheduler import Scheduler
from driftsched_lib.tokens import WhitespaceCounter
from driftsched_lib.workloads.synthetic import paper_load

QUEUED = (100, 10_000, 100_000)
TENANTS = 300
RUNNING = 32


def decision_costs(params: Params, queued: Sequence[int] = QUEUED, blocks: int = 200, size: int = 50) -> pd.DataFrame:
    """Microseconds of submit, next and complete together, a row a policy, a column a queue length held constant.

    Classifier and whitespace counter are the experiment's, prompts and tiers the last phase's.  Sizes are wide, outputs
    being spread and as long as the paper's.  Each estimate is a distribution of ten quantiles and costs nothing here:
    estimators have costs of their own.  Where a policy preempts, it is asked for each request which of `RUNNING`
    running ones it would, and what it takes back is dispatched anew.

    The median over `blocks` of the mean over a block's `size` requests: a block takes about a millisecond, so that most
    see no other process.  The queue lengths take turns, block by block.  Requests and outputs are made before, and the
    garbage collector is off, as in `timeit`.
    """
    load = params.model_copy(update={"requests": 3000, "output_length": "spread", "length_scale": 1.0})
    prompts = paper_load(load, seed=1, capacity_tokens_per_s=1.0)[-1].requests
    rows = {}
    with _no_garbage_collection():
        for name, policy in POLICIES.items():
            queues = [_ConstantQueue(policy(), prompts, n) for n in queued]
            costs = [[queue.seconds(size) / size * 1e6 for queue in queues] for _ in range(blocks)]
            rows[name] = [statistics.median(column) for column in zip(*costs, strict=True)]
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(queued))


class _Wide:
    """Knows the length, and says that it may be from a tenth to twice as much."""

    @staticmethod
    @cache
    def _quantiles(tokens: int) -> tuple[float, ...]:
        return tuple(tokens * (i + 0.5) / 5 for i in range(10))

    def estimate(self, request: Request) -> Estimate:
        tokens = request.fixed_output_tokens
        return Estimate(tokens, request.input_tokens + tokens, 1.0, tokens, quantiles=self._quantiles(tokens))

    def observe(self, request: Request, output_tokens: int) -> None:
        return None


class _ConstantQueue:
    """A scheduler with `n` requests queued and `RUNNING` running: for each that comes, one is dispatched and the one
    that has run for longest completed."""

    def __init__(self, policy: Policy, prompts: Sequence[Request], n: int):
        self._scheduler = Scheduler(policy, _Wide(), WhitespaceCounter(), KeywordClassifier(), lambda record: None)
        self._upcoming = _endless(prompts)
        self._outputs: dict[str, Output] = {}
        self._running: dict[str, int] = {}
        for request in self._arrivals(n + RUNNING):
            self._scheduler.submit(request, request.arrival_s)
        for _ in range(RUNNING):
            self._dispatch(0.0)
        self.seconds(RUNNING)

    def seconds(self, n: int) -> float:
        """The wall-clock time of `n` requests more."""
        scheduler, outputs, running, arrivals = self._scheduler, self._outputs, self._running, self._arrivals(n)
        preemptive = scheduler.policy.preemptive
        started = time.perf_counter()
        for request in arrivals:
            now = request.arrival_s
            scheduler.submit(request, now)
            if preemptive and (victim := scheduler.preempt(running, now)) is not None:
                del running[victim.request_id]
                self._dispatch(now)
            ended = next(iter(running))
            del running[ended]
            scheduler.complete(outputs.pop(ended))
            self._dispatch(now)
        return time.perf_counter() - started

    def _dispatch(self, now: float) -> None:
        self._running[self._scheduler.next(now).request_id] = 0

    def _arrivals(self, n: int) -> list[Request]:
        """The next requests, whose outputs are ready."""
        requests = list(islice(self._upcoming, n))
        for request in requests:
            tokens, now = request.fixed_output_tokens, request.arrival_s
            self._outputs[request.request_id] = Output(request, 10, tokens, tokens, now, now)
        return requests


def _endless(prompts: Sequence[Request]) -> Iterator[Request]:
    for i, like in zip(count(), cycle(prompts)):
        tenant, pinned = f"{like.tier}-{i % (TENANTS // 3)}", like.fixed_output_tokens
        yield Request(str(i), i * 0.01, like.prompt, tenant, like.tier, like.max_tokens, fixed_output_tokens=pinned)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
