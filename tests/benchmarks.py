"""Benchmarks: `PYTHONPATH=tests python -m benchmarks` prints what it measures in one run, and which goals are met.

The load averages at the top and the end show other work on the machine.
"""

import gc
import operator
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from itertools import count, cycle, islice
from math import inf, log2
from multiprocessing import get_context
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from time import process_time
from timeit import timeit
from types import SimpleNamespace

import numpy as np
import pandas as pd
from helpers import make_scheduler
from scipy.stats import bootstrap

from driftsched_lib.classify import KeywordClassifier, TextClassifier
from driftsched_lib.engines.load import load_engine
from driftsched_lib.engines.params import EngineParams
from driftsched_lib.engines.profile import Profile
from driftsched_lib.engines.simulated import SimulatedEngine
from driftsched_lib.estimators import ESTIMATORS
from driftsched_lib.experiments.params import Params
from driftsched_lib.explorer import Explorer
from driftsched_lib.policies import POLICIES, Policy, ShortestJobFirst
from driftsched_lib.requests import BASE_TOKENS, TIERS, Estimate, Output, Request
from driftsched_lib.serving import ContinuousBatching, serve
from driftsched_lib.studies.drift_lab import lab_load
from driftsched_lib.validation import PROJECT
from driftsched_lib.workloads.params import WorkloadParams
from driftsched_lib.workloads.prompts import build_prompt
from driftsched_lib.workloads.synthetic import make_load

QUEUED = (100, 10_000, 100_000)
TENANTS = 300
RUNNING = 32
CLASSIFIERS = {"key words": KeywordClassifier, "text classifier": TextClassifier}
PROMPT_WORDS = (12, 1_000, 10_000)
SIZES = (10_000, 100_000, 1_000_000)
BLIS_REQUESTS_PER_S = 1_380
"""Of BLIS, the fastest open simulator of LLM serving that ran on the same machine (2,000 requests; 362 with 10,000)."""
PROFILE = PROJECT / "data" / "profiles" / "l4-qwen1.5-1.8b.json"
LOAD, TOKENS_PER_S = 0.9, 1_150
"""Load, relative to the output tokens per second that this profile makes with all slots taken."""
REQUESTS, PAIRS = 256, 15
PLUGIN = {"scheduler_cls": "driftsched_lib.vllm_plugin.DriftSchedScheduler"}
MEETS = {">=": operator.ge, "<=": operator.le, "<": operator.lt}


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
    scheduler.estimator = SimpleNamespace(estimate=_wide, observe=lambda *_: None)
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


def _wide(request: Request) -> Estimate:
    """Return the known length as an estimate that says it may be from a tenth to twice as much."""
    tokens = request.fixed_output_tokens
    return Estimate(tokens, request.input_tokens + tokens, 1.0, tokens, quantiles=_quantiles(tokens))


@cache
def _quantiles(tokens: int) -> tuple[float, ...]:
    return tuple(tokens * (i + 0.5) / 5 for i in range(10))


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
    blocks = [load[first : first + size] for first in range(0, len(load) - size + 1, size)]
    seconds = [timeit(lambda block=block: [*map(work, block)], timer=process_time, number=1) for block in blocks]
    return statistics.median(seconds[len(seconds) // 3 :]) / size * 1e6


def simulator_speed(sizes: tuple[int, ...] = SIZES) -> pd.DataFrame:
    """Return one row per size, each from a new process: CPU seconds, peak MiB, requests per second and over BLIS's."""
    rows = [(size, *_in_a_process(size)) for size in sizes]
    table = pd.DataFrame(rows, columns=["requests", "cpu_s", "memory_mib"])
    table["requests_per_s"] = table.requests / table.cpu_s
    return table.assign(times_blis=table.requests_per_s / BLIS_REQUESTS_PER_S)


def _in_a_process(size: int) -> tuple[float, float]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measured, size).result()


def _measured(size: int) -> tuple[float, float]:
    _simulate(10)  # so that all is loaded
    gc.collect()
    gc.freeze()
    cpu_s = timeit(lambda: _simulate(size), gc.enable, process_time, number=1)
    status = Path("/proc/self/status").read_text()
    return cpu_s, int(status.partition("VmHWM:")[2].split()[0]) / 1024  # `ru_maxrss` counts the parent's, too


def _simulate(requests: int) -> None:
    """Serve by SJF on calibrated estimates, in continuous batches, and keep every record."""
    scheduler, records = make_scheduler(ShortestJobFirst())
    serve(_stress(requests), scheduler, SimulatedEngine(Profile.load(PROFILE)), ContinuousBatching())
    assert len(records) == requests


def _stress(n: int) -> Iterator[Request]:
    """Yield the paper's stress mix with Poisson arrivals, made as they are needed."""
    mix, tiers, rng, now = WorkloadParams().phases[-1].mix, cycle(TIERS), Random(1), 0.0
    prompts = {category: build_prompt(category, "DNS", 0) for category in mix}
    arrivals_per_s = LOAD * TOKENS_PER_S / sum(share * BASE_TOKENS[category] for category, share in mix.items())
    for i, category in enumerate(rng.choices(list(mix), list(mix.values()), k=n)):
        now += rng.expovariate(arrivals_per_s)
        limit = BASE_TOKENS[category]
        yield Request(str(i), now, prompts[category], "tenant", next(tiers), limit, fixed_output_tokens=limit)


def loop_throughput_ratios(workload: WorkloadParams, engine, requests=REQUESTS, pairs=PAIRS) -> list[float]:
    """Return output tokens per second of `serve`, over those of the same engine given all requests at once."""
    everything = _all_at_once(workload, requests)

    def loop() -> int:
        scheduler, records = make_scheduler()
        serve(everything, scheduler, engine, ContinuousBatching())
        return sum(record.output_tokens for record in records)

    return _ratios((engine, loop), (engine, lambda: _given_all(engine, everything)), pairs)


def plugin_throughput_ratios(params: EngineParams, workload: WorkloadParams, engine) -> list[float]:
    """Return output tokens per second of vLLM scheduled by the plug-in's defaults, over those of `engine`, plain vLLM.

    Outputs are equally long: else the policy's order, too, would decide how full the slots are when the run drains.
    """
    everything = _all_at_once(workload, REQUESTS)
    mean_tokens = round(statistics.mean(request.max_tokens for request in everything))
    for request in everything:
        request.fixed_output_tokens = mean_tokens
    ours = load_engine(params.model_copy(update={"args": params.args | PLUGIN}))
    return _ratios(*((side, lambda side=side: _given_all(side, everything)) for side in (ours, engine)), PAIRS)


def _all_at_once(workload: WorkloadParams, requests: int) -> list[Request]:
    load = make_load(workload.model_copy(update={"output_length": "limit"}), requests, 1, 1.0)
    everything = [request for phase in load for request in phase.requests]
    for request in everything:
        request.arrival_s, request.deadline_s = 0.0, None
    return everything


def _given_all(engine, everything: list[Request]) -> int:
    for request in everything:
        engine.add(request)
    outputs = []
    while len(outputs) < len(everything):
        outputs += engine.step(inf)
    return sum(output.tokens for output in outputs)


def _ratios(ours: tuple, theirs: tuple, pairs: int) -> list[float]:
    """Return tokens per second of one side over the other's, per pair; after a warm-up they take turns in going first.

    A side is an engine, and what has it make tokens and counts them.
    """

    def tokens_per_s(engine, work: Callable[[], int]) -> float:
        gc.collect()
        engine.restart_clock()
        return work() / engine.now()

    rounds = [(ours, theirs), *((ours, theirs) if pair % 2 else (theirs, ours) for pair in range(pairs))]
    rates = [{side: tokens_per_s(*side) for side in sides} for sides in rounds]
    return [rate[ours] / rate[theirs] for rate in rates[1:]]


def explorer_seconds(params: Params, changes: int = 9) -> float:
    """Return the median seconds until the explorer's pictures and differences show another seed."""
    seed = Explorer(params, "data/profiles/driftsched-tiny-cpu.json", mkdtemp()).load_controls["seed"]
    changed = (partial(setattr, seed, "value", value) for value in range(2, 2 + changes))
    return statistics.median(timeit(change, gc.enable, number=1) for change in changed)


def goals(policies, estimators, simulator, loop, plugin, explorer_s) -> pd.DataFrame:
    """Return one row per goal: what was measured, its range, the goal, and whether it is met.

    The arguments are what the benchmarks return, in the order in which they run; `policies` is for `QUEUED`.
    """
    few, many, most = QUEUED
    growth = policies[most] / policies[few]
    estimates, text = estimators.drop(list(CLASSIFIERS)), estimators["text classifier"]
    first, last = simulator.iloc[0], simulator.iloc[-1]
    bound = log2(last.requests) / log2(first.requests)
    cost, n = first.requests_per_s / simulator.requests_per_s, f"{last.requests:,.0f}"
    rows = [
        ("throughput, loop over vLLM, median", statistics.median(loop), loop, ">=", 0.97),
        ("throughput, plug-in over FCFS, median", statistics.median(plugin), plugin, ">=", 0.98),
        (f"microseconds, {many:,} queued, worst", max(policies[many]), policies[many], "<", 20),
        (f"cost, {most:,} over {few:,} queued, worst", max(growth), growth, "<=", log2(most) / log2(few)),
        ("microseconds, an estimator, worst", max(estimates), estimates, "<", 50),
        ("microseconds, the text classifier", text, [text], "<", 500),
        (f"{n} requests simulated, times BLIS", last.times_blis, simulator.times_blis, ">=", 10),
        (f"{n} requests simulated, MiB", last.memory_mib, simulator.memory_mib, "<", 1500),
        (f"{n} requests simulated, cost of each", cost.iloc[-1], cost, "<=", bound),
        ("seconds until the explorer follows", explorer_s, [explorer_s], "<", 0.5),
    ]
    table = {
        what: (measured, min(values), max(values), f"{sign} {goal:.4g}", "yes" if MEETS[sign](measured, goal) else "no")
        for what, measured, values, sign, goal in rows
    }
    return pd.DataFrame.from_dict(table, orient="index", columns=["measured", "lowest", "highest", "goal", "met"])


def main() -> None:
    quick = Params.load(PROJECT / "params" / "quick.yaml", {"engine.profile": None})
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} before")
    costs, us = (policy_costs(), estimator_costs(), simulator_speed()), "microseconds per request"
    titles = [f"submit + next (and preempt) + complete, {us}, by number queued, {TENANTS} tenants"]
    titles += [f"estimate + observe, or classify, CPU {us}", "simulated on one core"]
    for title, table in zip(titles, costs, strict=True):
        print(f"\n{title}\n{table.to_string(float_format='{:,.2f}'.format)}")
    explorer_s = explorer_seconds(quick.changed(requests=300, workload__length_scale=0.5))
    engine = load_engine(quick.engine)
    loop = loop_throughput_ratios(quick.workload, engine)
    plugin = plugin_throughput_ratios(quick.engine, quick.workload, engine)
    print("\noutput tokens per second and 95% interval of the median: loop (FIFO) over vLLM, plug-in over vLLM's FCFS")
    for ratios in (loop, plugin):
        low, high = bootstrap((ratios,), np.median, method="percentile", rng=0).confidence_interval
        print(*map("{:.3f}".format, ratios), f"[{low:.3f}, {high:.3f}]")
    print(f"\n{goals(*costs, loop, plugin, explorer_s).to_string(float_format='{:.3f}'.format)}")
    print(f"\nload average {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
