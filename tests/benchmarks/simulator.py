"""Requests simulated a second, beside the customers of two general queueing simulators, and the memory they take."""

import gc
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
from driftsched_lib.compiled import serve_compiled

from driftsched_lib.classify import KeywordClassifier
from driftsched_lib.engines.profile import Profile
from driftsched_lib.engines.simulated import SimulatedEngine
from driftsched_lib.estimators import PaperEstimator
from driftsched_lib.experiments.params import PAPER_PHASES
from driftsched_lib.policies import ShortestJobFirst
from driftsched_lib.requests import BASE_TOKENS, TIERS, Record, Request
from driftsched_lib.scheduler import Scheduler
from driftsched_lib.serving import ContinuousBatching, serve
from driftsched_lib.tokens import WhitespaceCounter
from driftsched_lib.validation import PROJECT
from driftsched_lib.workloads.prompts import build_prompt
from driftsched_lib.workloads.synthetic import PhaseLoad

SIZES = (10_000, 100_000, 1_000_000)
OTHERS_SIZE = 50_000
LOAD, SERVERS = 0.9, 8
L4_TOKENS_PER_S = 1_150
"""What the L4's profile generates with all slots taken: only sets how full the engine is."""


def in_python(requests: int) -> None:
    """SJF on calibrated estimates, continuous batching, the paper's stress mix at a load of 0.9, every record kept."""
    records: list[Record] = []
    serve(_stress(requests), _scheduler(records), _engine(), ContinuousBatching())
    assert len(records) == requests


def driftsched(requests: int) -> None:
    """The same, in machine code, as long runs are served."""
    load = PhaseLoad("stress", 0.0, _stress(requests))
    assert len(serve_compiled([load], _scheduler([]), _engine(), ContinuousBatching()).requests) == requests


def _scheduler(records: list[Record]) -> Scheduler:
    return Scheduler(ShortestJobFirst(), PaperEstimator(), WhitespaceCounter(), KeywordClassifier(), records.append)


def _engine() -> SimulatedEngine:
    return SimulatedEngine(Profile.load(PROJECT / "data" / "profiles" / "l4-qwen1.5-1.8b.json"))


def ciw_mmc(customers: int) -> None:
    """Ciw's M/M/8 at the same load."""
    import ciw

    network = ciw.create_network(
        arrival_distributions=[ciw.dists.Exponential(rate=LOAD * SERVERS)],
        service_distributions=[ciw.dists.Exponential(rate=1.0)],
        number_of_servers=[SERVERS],
    )
    ciw.seed(1)
    simulation = ciw.Simulation(network)
    simulation.simulate_until_max_customers(customers)
    assert len(simulation.get_all_records()) >= customers


def simpy_mmc(customers: int) -> None:
    """SimPy's M/M/8 at the same load, as its documentation builds a queue."""
    import simpy

    rng = np.random.default_rng(1)
    environment, waits = simpy.Environment(), []
    servers = simpy.Resource(environment, SERVERS)

    def customer(service_s: float):
        arrived = environment.now
        with servers.request() as turn:
            yield turn
            waits.append(environment.now - arrived)
            yield environment.timeout(service_s)

    def arrivals():
        for gap_s, service_s in zip(
            rng.exponential(1 / (LOAD * SERVERS), customers).tolist(),
            rng.exponential(1, customers).tolist(),
            strict=True,
        ):
            yield environment.timeout(gap_s)
            environment.process(customer(service_s))

    environment.process(arrivals())
    environment.run()
    assert len(waits) == customers


def simulator_speed(sizes: tuple[int, ...] = SIZES, others: int = OTHERS_SIZE) -> pd.DataFrame:
    """Seconds of CPU time, memory and requests a second, a row a simulator and size, each in a process of its own.

    Each simulates a few before its time is measured, so that it is loaded, and compiled, by then.
    """
    runs = [("Ciw, M/M/8", ciw_mmc, others), ("SimPy, M/M/8", simpy_mmc, others)]
    runs += [("its loop in Python", in_python, size) for size in sizes]
    runs += [("DriftSched, SJF and EMA", driftsched, size) for size in sizes]
    rows = [(name, size, *_in_a_process(function, size)) for name, function, size in runs]
    table = pd.DataFrame(rows, columns=["simulator", "requests", "cpu_s", "memory_mib"])
    table["requests_per_s"] = table.requests / table.cpu_s
    table["times_ciw"] = table.requests_per_s / table.requests_per_s[0]
    return table


def _in_a_process(function: Callable[[int], None], size: int) -> tuple[float, float]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measured, function, size).result()


def _measured(function: Callable[[int], None], size: int) -> tuple[float, float]:
    function(10)
    gc.collect()
    gc.freeze()
    started = time.process_time()
    function(size)
    seconds, status = time.process_time() - started, Path("/proc/self/status").read_text()
    return seconds, int(status.partition("VmHWM:")[2].split()[0]) / 1024  # `ru_maxrss` counts the parent's, too


def _stress(n: int) -> Iterator[Request]:
    """The paper's stress mix with Poisson arrivals, made as they are needed."""
    mix = PAPER_PHASES[-1].mix
    categories, prompts = list(mix), [build_prompt(category, "DNS", 0) for category in mix]
    limits = [BASE_TOKENS[category] for category in categories]
    tokens = sum(share * limit for share, limit in zip(mix.values(), limits, strict=True))
    rng = np.random.default_rng(1)
    now = 0.0
    for first in range(0, n, 10_000):
        size = min(10_000, n - first)
        gaps = rng.exponential(tokens / (LOAD * L4_TOKENS_PER_S), size).tolist()
        kinds, tiers = rng.choice(len(mix), size, p=list(mix.values())).tolist(), rng.integers(3, size=size).tolist()
        for i, (gap, kind, tier) in enumerate(zip(gaps, kinds, tiers, strict=True), start=first):
            now += gap
            yield Request(
                str(i), now, prompts[kind], "tenant", TIERS[tier], limits[kind], fixed_output_tokens=limits[kind]
            )
