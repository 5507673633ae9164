"""Speed and memory of the simulator, under the package's own loop."""

import gc
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path
from random import Random
from time import process_time
from timeit import timeit

import pandas as pd
from helpers import make_scheduler

from driftsched_lib.engines.profile import Profile
from driftsched_lib.engines.simulated import SimulatedEngine
from driftsched_lib.policies import ShortestJobFirst
from driftsched_lib.requests import BASE_TOKENS, TIERS, Request
from driftsched_lib.serving import ContinuousBatching, serve
from driftsched_lib.validation import PROJECT
from driftsched_lib.workloads.params import WorkloadParams
from driftsched_lib.workloads.prompts import build_prompt

SIZES = (10_000, 100_000, 1_000_000)
BLIS_REQUESTS_PER_S = 1_380
"""Of BLIS, the fastest open simulator of LLM serving that ran on the same machine (2,000 requests; 362 with 10,000)."""
PROFILE = PROJECT / "data" / "profiles" / "l4-qwen1.5-1.8b.json"
LOAD, TOKENS_PER_S = 0.9, 1_150
"""Load, relative to the output tokens per second that this profile makes with all slots taken."""


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
