"""Benchmarks: ratios and costs measured side by side in one run, each beside its goal."""

import gc
import statistics
import time
from collections.abc import Sequence
from itertools import count
from math import inf, log2
from pathlib import Path

import pandas as pd

from driftsched_lib.classify import KeywordClassifier
from driftsched_lib.estimators import PaperEstimator
from driftsched_lib.experiment import PROJECT, load_engine
from driftsched_lib.params import Params
from driftsched_lib.policies import POLICIES, Fifo
from driftsched_lib.requests import Output, Request
from driftsched_lib.scheduler import Scheduler
from driftsched_lib.serving import ContinuousBatching, serve
from driftsched_lib.tokens import WhitespaceCounter
from driftsched_lib.workloads import paper_load

QUEUED = (100, 10_000, 100_000)


def main(params_file: Path = PROJECT / "params" / "quick.yaml") -> None:
    """Print every benchmark."""
    costs = decision_costs()
    print("\nsubmit + next + complete, microseconds a request (median), by requests queued")
    print(costs.to_string(float_format="{:.1f}".format))
    worst = costs[QUEUED[1]].max()
    print(f"goal: under 20 at {QUEUED[1]:,} queued: {_met(worst < 20)} (worst {worst:.1f})")
    growth, bound = (costs[QUEUED[-1]] / costs[QUEUED[0]]).max(), log2(QUEUED[-1]) / log2(QUEUED[0])
    print(f"goal: no faster than log n, {bound:.2f} times from {QUEUED[0]} to {QUEUED[-1]:,}: ", end="")
    print(f"{_met(growth <= bound)} (worst {growth:.2f})")

    ratios = loop_throughput_ratios(Params.load(params_file))
    median = statistics.median(ratios)
    print("\nthroughput of the serving loop (FIFO, continuous) over vLLM given all requests at once")
    print(f"median {median:.3f} of {len(ratios)} pairs, {min(ratios):.3f} to {max(ratios):.3f}")
    print(f"goal: at least 0.97: {_met(median >= 0.97)}")


def decision_costs(queued: Sequence[int] = QUEUED, cycles: int = 2000, repeats: int = 5) -> pd.DataFrame:
    """Microseconds of submit, next and complete together, a row a policy, a column a queue length held constant.

    Classifier, estimator with calibration, whitespace counter and record are the paper's; prompts are its stress mix.
    The median of `repeats` blocks of `cycles` requests, the garbage collector off within a block.
    """
    params = Params.parse({"requests": 3000}, "bench")
    prompts = paper_load(params, 1, 1.0)[1].requests
    table = {name: [_decision_cost(name, prompts, n, cycles, repeats) for n in queued] for name in POLICIES}
    return pd.DataFrame.from_dict(table, orient="index", columns=list(queued))


def _decision_cost(name: str, prompts: Sequence[Request], queued: int, cycles: int, repeats: int) -> float:
    scheduler = Scheduler(
        POLICIES[name](), PaperEstimator(), WhitespaceCounter(), KeywordClassifier(), on_record=lambda record: None
    )
    ids = count()

    def make(n: int) -> list[Request]:
        made = []
        for _ in range(n):
            i = next(ids)
            like = prompts[i % len(prompts)]
            made.append(Request(str(i), i * 0.01, like.prompt, like.tenant, like.tier, like.max_tokens))
        return made

    for request in make(queued):
        scheduler.submit(request, request.arrival_s)
    blocks = []
    for _ in range(repeats):
        arriving = make(cycles)
        gc.collect()
        gc.disable()
        started = time.perf_counter()
        for request in arriving:
            now = request.arrival_s
            scheduler.submit(request, now)
            running = scheduler.next(now)
            assert running is not None
            scheduler.complete(Output(running, 10, running.max_tokens, running.max_tokens, now, now))
        blocks.append((time.perf_counter() - started) / cycles * 1e6)
        gc.enable()
    return statistics.median(blocks)


def loop_throughput_ratios(params: Params, requests: int = 384, pairs: int = 7) -> list[float]:
    """Output tokens a second through `serve`, over those of the same engine given the same requests all at once.

    A ratio a pair; the two sides alternate, so that what the machine does besides meets both.
    """
    engine = load_engine(params)
    load = paper_load(params.model_copy(update={"requests": requests, "output_length": "limit"}), 1, inf)
    everything = [request for phase in load for request in phase.requests]
    for request in everything:
        request.arrival_s = 0.0

    def through_the_loop() -> None:
        scheduler = Scheduler(
            Fifo(), PaperEstimator(), WhitespaceCounter(), KeywordClassifier(), on_record=lambda record: None
        )
        serve(everything, scheduler, engine, ContinuousBatching())

    def all_at_once() -> None:
        for request in everything:
            engine.add(request)
        left = len(everything)
        while left:
            left -= len(engine.step(inf))

    def seconds(side) -> float:
        engine.restart_clock()
        side()
        return engine.now()

    seconds(all_at_once)
    return [seconds(all_at_once) / seconds(through_the_loop) for _ in range(pairs)]


def _met(goal: bool) -> str:
    return "met" if goal else "NOT met"
