"""Benchmarks: what our code adds to vLLM, as ratios and costs measured side by side in one run, each with its goal."""

import gc
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import count, cycle, islice
from math import inf, log2
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from driftsched_lib import bench_explorer
from driftsched_lib.bench_estimators import MOST_TEXT_US, estimator_costs
from driftsched_lib.bench_estimators import MOST_US as MOST_ESTIMATE_US
from driftsched_lib.bench_simulator import simulator_speed
from driftsched_lib.classify import KeywordClassifier
from driftsched_lib.engine_setup import load_engine
from driftsched_lib.estimators import PaperEstimator
from driftsched_lib.params import Params
from driftsched_lib.policies import POLICIES, Fifo, Policy
from driftsched_lib.requests import Estimate, Output, Record, Request
from driftsched_lib.scheduler import Scheduler
from driftsched_lib.serving import ContinuousBatching, serve
from driftsched_lib.tokens import WhitespaceCounter
from driftsched_lib.validation import PROJECT
from driftsched_lib.workloads import paper_load

QUEUED = (100, 10_000, 100_000)
MOST_US = 20
LEAST_RATIO = 0.97
LEAST_PLUGIN_RATIO = 0.98
PLUGIN = "driftsched_lib.vllm_plugin.DriftSchedScheduler"
MOST_S = 10
TENANTS = 300
RUNNING = 32


def main(params_file: Path = PROJECT / "params" / "quick.yaml") -> None:
    """Measure everything and print it; other work on the machine shows in the load averages at the top and the end."""
    params = Params.load(params_file)
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} before")
    costs = decision_costs(params)
    print(f"\nsubmit + next (and preempt) + complete, microseconds a request, by number queued, of {TENANTS} tenants")
    growth = costs[QUEUED[-1]] / costs[QUEUED[0]]
    print(costs.assign(growth=growth).to_string(float_format="{:.2f}".format))

    estimators = estimator_costs()
    print("\nestimate + observe, or classify, microseconds of CPU time a request")
    print(estimators.to_string(float_format="{:.1f}".format))

    simulators = simulator_speed()
    print("\nsimulated on one core, seconds of CPU time, each in a process of its own")
    print(simulators.to_string(index=False, float_format="{:,.1f}".format))

    seconds = bench_explorer.seconds_a_change()
    print(f"\nthe explorer follows a change in {seconds:.2f} s, median (goal: {bench_explorer.MOST_S} s)")

    engine = load_engine(params)
    ratios = loop_throughput_ratios(params, engine)
    _print_ratios("our loop (FIFO, continuous) over vLLM given all requests at once", ratios, LEAST_RATIO)
    plugin = plugin_throughput_ratios(params, engine)
    _print_ratios("vLLM with the plug-in over vLLM's FCFS", plugin, LEAST_PLUGIN_RATIO)

    print(f"\n{goals(costs, estimators, ratios, plugin, simulators).to_string(float_format='{:.3f}'.format)}")
    print(f"\nload average {os.getloadavg()[0]:.1f} after")


def _print_ratios(what: str, ratios: Sequence[float], least: float) -> None:
    print(f"\n{what}, output tokens a second, each pair")
    print("  ".join(f"{ratio:.3f}" for ratio in ratios))
    low, high = median_interval(ratios)
    print(f"95% interval of the median {low:.3f} to {high:.3f}", end="")
    print(": too wide to decide the goal, the machine is not quiet" if low < least <= high else "")


def goals(
    costs: pd.DataFrame,
    estimators: pd.Series,
    ratios: Sequence[float],
    plugin: Sequence[float],
    simulators: pd.DataFrame,
) -> pd.DataFrame:
    """A row a goal: what was measured, its range over the pairs or the policies, the goal, and whether it is met.

    Parameters:
        costs: of `decision_costs`, for `QUEUED`.
        estimators: of `estimator_costs`.
        ratios: of `loop_throughput_ratios`.
        plugin: of `plugin_throughput_ratios`.
        simulators: of `simulator_speed`.
    """
    few, many, most = QUEUED
    growth, log_growth = costs[most] / costs[few], log2(most) / log2(few)
    ratio, cost, grown = statistics.median(ratios), costs[many].max(), growth.max()
    estimates, text = estimators.drop(["key words", "text classifier"]), estimators["text classifier"]
    slowest, inside = estimates.max(), statistics.median(plugin)
    ours = simulators[simulators.simulator.str.startswith("DriftSched")]
    big = ours.iloc[-1]
    per_request = ours.cpu_s / ours.requests
    spread, log_spread = per_request.iloc[-1] / per_request.iloc[0], log2(big.requests) / log2(ours.requests.iloc[0])
    rows = {
        "throughput, loop over vLLM, median": (ratio, ratios, f">= {LEAST_RATIO}", ratio >= LEAST_RATIO),
        "throughput, plug-in over FCFS, median": (
            inside,
            plugin,
            f">= {LEAST_PLUGIN_RATIO}",
            inside >= LEAST_PLUGIN_RATIO,
        ),
        f"microseconds, {many:,} queued, worst": (cost, costs[many], f"< {MOST_US}", cost < MOST_US),
        "microseconds, an estimator, worst": (
            slowest,
            estimates,
            f"< {MOST_ESTIMATE_US}",
            slowest < MOST_ESTIMATE_US,
        ),
        "microseconds, the text classifier": (text, [text], f"< {MOST_TEXT_US}", text < MOST_TEXT_US),
        f"cost, {most:,} over {few:,}, worst": (grown, growth, f"<= {log_growth} (log n)", grown <= log_growth),
        "requests simulated, times Ciw": (big.times_ciw, ours.times_ciw, ">= 5", big.times_ciw >= 5),
        f"seconds, {big.requests:,} requests": (big.cpu_s, [big.cpu_s], f"< {MOST_S}", big.cpu_s < MOST_S),
        f"MiB, {big.requests:,} requests": (big.memory_mib, [big.memory_mib], "< 1,500", big.memory_mib < 1500),
        "a simulated request's cost, most over fewest": (
            spread,
            per_request / per_request.iloc[0],
            f"<= {log_spread:.2f} (log n)",
            spread <= log_spread,
        ),
    }
    return pd.DataFrame.from_dict(
        {
            what: (measured, min(values), max(values), goal, "yes" if met else "no")
            for what, (measured, values, goal, met) in rows.items()
        },
        orient="index",
        columns=["measured", "least", "most", "goal", "met"],
    )


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95% percentile bootstrap interval of the median."""
    interval = bootstrap((values,), np.median, method="percentile", rng=0).confidence_interval
    return float(interval.low), float(interval.high)


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
    for name, policy in POLICIES.items():
        queues = [_ConstantQueue(policy(), prompts, n) for n in queued]
        with _no_garbage_collection():
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
        tokens = request.pinned_tokens
        return Estimate(tokens, request.input_tokens + tokens, 1.0, tokens, quantiles=self._quantiles(tokens))

    def observe(self, request: Request, output_tokens: int) -> None:
        return None


class _ConstantQueue:
    """A scheduler with `n` requests queued and `RUNNING` running: for each that comes, one is dispatched and the one
    that has run for longest completed."""

    def __init__(self, policy: Policy, prompts: Sequence[Request], n: int):
        self._scheduler, _ = _scheduler(policy, _Wide())
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
            tokens, now = request.pinned_tokens, request.arrival_s
            self._outputs[request.request_id] = Output(request, 10, tokens, tokens, now, now)
        return requests


def _endless(prompts: Sequence[Request]) -> Iterator[Request]:
    for i, like in zip(count(), cycle(prompts)):
        tenant, pinned = f"{like.tier}-{i % (TENANTS // 3)}", like.pinned_tokens
        yield Request(str(i), i * 0.01, like.prompt, tenant, like.tier, like.max_tokens, pinned_tokens=pinned)


def loop_throughput_ratios(params: Params, engine, requests: int = 256, pairs: int = 15) -> list[float]:
    """Output tokens a second through `serve`, over those of the same engine given the same requests all at once.

    vLLM's own waiting queue holds on one side what our scheduler holds on the other.
    """
    everything = _all_at_once(params, requests)

    def loop() -> int:
        scheduler, records = _scheduler(Fifo(), PaperEstimator())
        serve(everything, scheduler, engine, ContinuousBatching())
        return sum(record.output_tokens for record in records)

    return _ratios((engine, loop), (engine, lambda: _given_all(engine, everything)), pairs)


def plugin_throughput_ratios(params: Params, engine, requests: int = 256, pairs: int = 15) -> list[float]:
    """Output tokens a second of vLLM scheduled by the plug-in (its defaults), over those of `engine`, plain vLLM.

    Outputs are equally long: else the policy's order, too, would decide how full the slots are when the run drains.
    """
    plugin = {"engine_args": params.engine_args | {"scheduler_cls": PLUGIN}}
    ours, everything = load_engine(params.model_copy(update=plugin)), _all_at_once(params, requests)
    mean_tokens = round(statistics.mean(request.max_tokens for request in everything))
    for request in everything:
        request.pinned_tokens = mean_tokens
    sides = [(side, lambda side=side: _given_all(side, everything)) for side in (ours, engine)]
    return _ratios(*sides, pairs)


def _all_at_once(params: Params, requests: int) -> list[Request]:
    load = paper_load(params.model_copy(update={"requests": requests, "output_length": "limit"}), 1, 1.0)
    everything = [request for phase in load for request in phase.requests]
    for request in everything:
        request.arrival_s, request.deadline_s = 0.0, None
    return everything


def _given_all(engine, everything: Sequence[Request]) -> int:
    """Output tokens of an engine that is given all requests and left alone."""
    for request in everything:
        engine.add(request)
    outputs: list[Output] = []
    while len(outputs) < len(everything):
        outputs += engine.step(inf)
    return sum(output.tokens for output in outputs)


def _ratios(ours: tuple, theirs: tuple, pairs: int) -> list[float]:
    """Tokens a second of one side over the other's, a ratio a pair; they take turns in going first, after a warm-up.

    Both have the same prompts, sampling parameters and pinned lengths.

    Parameters:
        ours, theirs: an engine, and what has it make tokens and counts them.
    """

    def tokens_per_s(side: tuple) -> float:
        engine, work = side
        gc.collect()
        engine.restart_clock()
        return work() / engine.now()

    for side in (ours, theirs):
        tokens_per_s(side)
    ratios = []
    for pair in range(pairs):
        rate = {side: tokens_per_s(side) for side in ((ours, theirs) if pair % 2 else (theirs, ours))}
        ratios.append(rate[ours] / rate[theirs])
    return ratios


def _scheduler(policy: Policy, estimator) -> tuple[Scheduler, list[Record]]:
    records: list[Record] = []
    return Scheduler(policy, estimator, WhitespaceCounter(), KeywordClassifier(), records.append), records


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
