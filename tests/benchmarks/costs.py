"""Cost per request of policies by the number of queued requests, of estimators, and of classifiers."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import count, cycle, islice
from time import process_time
from timeit import timeit
from types import SimpleNamespace

import pandas as pd
from helpers import make_scheduler

from driftsched_lib.classify import KeywordClassifier, TextClassifier
from driftsched_lib.estimators import ESTIMATORS
from driftsched_lib.policies import POLICIES, Policy
from driftsched_lib.requests import Estimate, Output, Request
from driftsched_lib.studies.drift_lab import lab_load
from driftsched_lib.workloads.params import WorkloadParams
from driftsched_lib.workloads.synthetic import make_load

QUEUED = (100, 10_000, 100_000)
TENANTS = 300
RUNNING = 32
CLASSIFIERS = {"key words": KeywordClassifier, "text classifier": TextClassifier}
PROMPT_WORDS = (12, 1_000, 10_000)


def policy_costs(queued: Sequence[int] = QUEUED, blocks: int = 200, size: int = 50) -> pd.DataFrame:
    """Return microseconds per request for submit, next and complete: one row per policy, one column per queue length.

    The load is the paper's stress phase with spread output lengths; estimates have ten quantiles and cost nothing.  A
    preemptive policy is asked once per request for a victim, whose slot goes to the next in the queue.
    A cost is the median over `blocks`, of a millisecond each, of the mean of `size` requests; queue lengths take turns.
    """
    prompts, rows = make_load(WorkloadParams(output_length="spread"), 3000, 1, 1.0)[-1].requests, {}
    for name, policy in POLICIES.items():
        turns = zip(*(_block_seconds(policy(), prompts, n, size) for n in queued), strict=True)
        rows[name] = pd.DataFrame(islice(turns, 1, 1 + blocks), columns=list(queued)).median() / size * 1e6
    return pd.DataFrame(rows).T


def _block_seconds(policy: Policy, prompts: Sequence[Request], queued: int, size: int) -> Iterator[float]:
    """Yield seconds per block while so many are queued; per arrival the oldest running ends, and one is dispatched."""
    scheduler, _ = make_scheduler(policy)
    scheduler.on_record = lambda record: None
    scheduler.estimator = SimpleNamespace(
        estimate=lambda request: _wide(request.input_tokens, request.fixed_output_tokens), observe=lambda *_: None
    )
    upcoming, running, outputs = _endless(prompts), {}, {}

    def arrivals(n: int) -> list[Request]:
        requests = list(islice(upcoming, n))
        for request in requests:
            tokens, now = request.fixed_output_tokens, request.arrival_s
            outputs[request.request_id] = Output(request, 10, tokens, tokens, now, now)
        return requests

    def dispatch(now: float) -> None:
        running[scheduler.next(now).request_id] = 0

    def serve(requests: list[Request]) -> None:
        for request in requests:
            now = request.arrival_s
            scheduler.submit(request, now)
            if policy.preemptive and (victim := scheduler.preempt(running, now)) is not None:
                del running[victim.request_id]
                dispatch(now)
            running.pop(oldest := next(iter(running)))
            scheduler.complete(outputs.pop(oldest))
            dispatch(now)

    for request in arrivals(queued + RUNNING):
        scheduler.submit(request, request.arrival_s)
    for _ in range(RUNNING):
        dispatch(0.0)
    while True:
        yield timeit(partial(serve, arrivals(size)), number=1)


def _endless(prompts: Sequence[Request]) -> Iterator[Request]:
    for i, like in zip(count(), cycle(prompts)):
        tenant, tokens = f"{like.tier}-{i % (TENANTS // 3)}", like.fixed_output_tokens
        yield Request(str(i), i * 0.01, like.prompt, tenant, like.tier, like.max_tokens, fixed_output_tokens=tokens)


@cache
def _wide(input_tokens: int, tokens: int) -> Estimate:
    """Return the known length as an estimate that says it may be from a tenth to twice as much."""
    quantiles = tuple(tokens * (i + 0.5) / 5 for i in range(10))
    return Estimate(tokens, input_tokens + tokens, 1.0, tokens, quantiles=quantiles)


def estimator_costs(requests: int = 6000, size: int = 50, words: Sequence[int] = PROMPT_WORDS) -> pd.Series:
    """Return CPU microseconds per request, by estimator and classifier, at the most expensive of these prompt lengths.

    All prompts differ.  A cost is the median over blocks of the mean of `size` requests; a third of them warms up.
    """
    costs = []
    for n in words:
        load = lab_load("recurring", 1, requests)
        for i, request in enumerate(load):
            known = request.prompt.split()
            request.prompt = " ".join([*(f"w{i}x{j % 50}" for j in range(n - len(known))), *known])
        work = {name: partial(_learn, kind()) for name, kind in ESTIMATORS.items()}
        work |= {name: partial(_classify, kind()) for name, kind in CLASSIFIERS.items()}
        costs.append(pd.Series({name: _median_us(each, load, size) for name, each in work.items()}))
    return pd.concat(costs, axis=1).max(axis=1)


def _learn(estimator, request: Request) -> None:
    request.estimate = estimator.estimate(request)
    estimator.observe(request, request.fixed_output_tokens)


def _classify(classifier, request: Request) -> None:
    classifier.classify(request.prompt)


def _median_us(work: Callable[[Request], None], load: Sequence[Request], size: int) -> float:
    blocks = [load[first : first + size] for first in range(0, len(load), size)]
    taken = [timeit(lambda block=block: [*map(work, block)], timer=process_time, number=1) for block in blocks]
    costs = [seconds / len(block) * 1e6 for seconds, block in zip(taken, blocks, strict=True)]
    return statistics.median(costs[len(costs) // 3 :])
