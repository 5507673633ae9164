"""Soak: serve millions of requests per policy on a simulated engine that loses outputs and breaks down.

`python tests/soak.py [POLICY ...]` fails if a request does not end exactly once, or if memory grows with their number.
One byte is kept per request that has ended, so whatever else grows is a leak.
"""

import gc
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, count, islice
from random import Random

import psutil
from helpers import make_scheduler

from driftsched_lib.engines.profile import Profile
from driftsched_lib.engines.simulated import SimulatedEngine
from driftsched_lib.estimators import RunningQuantiles
from driftsched_lib.policies import POLICIES
from driftsched_lib.requests import BASE_TOKENS, TIERS, Output, Record, Request
from driftsched_lib.serving import ContinuousBatching, serve
from driftsched_lib.validation import PROJECT
from driftsched_lib.workloads.prompts import TEMPLATES, TOPICS, build_prompt

PROFILE = Profile.load(PROJECT / "data" / "profiles" / "l4-qwen1.5-1.8b.json")
CAPACITY, TENANTS = 500, 2000
GAPS_S, TURN = (0.07, 0.3), 5_000
"""Mean gaps between arrivals, in turns of so many requests: about twice what the engine can serve, and half of it."""
MAX_BLOCKS = 4000
"""Growth of bounded state, in memory blocks: tenants yet to be met, a queue that happens to be long."""
LOST, BREAKS = 1e-3, 1e-5
"""Probabilities that an output is lost, and that the engine breaks down in a step."""


class Breakdown(RuntimeError):
    """The engine is gone, with all that was in it."""


class Unreliable(SimulatedEngine):
    """Loses an output now and then, and now and then breaks down."""

    def __init__(self, rng: Random, start_s: float = 0.0):
        super().__init__(PROFILE)
        self.random = rng.random
        super().step(until=start_s)

    def step(self, until: float) -> list[Output]:
        if self.random() < BREAKS:
            raise Breakdown
        outputs = super().step(until)
        for output in outputs:
            output.error = "lost" if self.random() < LOST else output.error
        return outputs


def soak(policy: str, requests: int, seed: int = 1) -> tuple[Counter, int]:
    """Serve requests on faulty engines, print a line, and return the requests by outcome and the number of breakdowns.

    Raises:
        AssertionError: a request ended never or more than once, or memory blocks were kept after the first tenth.
    """
    started, rng, ended, outcomes = time.perf_counter(), Random(seed), bytearray(requests), Counter()
    breakdowns, early_blocks, latest = 0, 0, None

    def note(record: Record) -> None:
        ended[int(record.request_id)] += 1
        outcomes[record.outcome.value] += 1

    def arrivals(load: Iterable[Request]) -> Iterator[Request]:
        nonlocal latest, early_blocks
        for latest in load:
            if latest.request_id == str(requests // 10):
                early_blocks = _blocks()
            yield latest

    scheduler, _ = make_scheduler(POLICIES[policy](), CAPACITY)
    scheduler.estimator, scheduler.on_record = RunningQuantiles(), note
    load, engine = islice(_requests(rng), requests), Unreliable(rng)
    while True:
        try:
            serve(arrivals(load), scheduler, engine, ContinuousBatching())
            break
        except Breakdown:
            breakdowns, engine = breakdowns + 1, Unreliable(rng, engine.now())
            if not ended[int(latest.request_id)]:  # it was about to arrive
                load = chain([latest], load)
    faulty, grown = requests - ended.count(1), _blocks() - early_blocks
    rate, mib = requests / (time.perf_counter() - started), psutil.Process().memory_info().rss / 2**20
    served = f"{policy}: {requests:,} requests, {rate:,.0f} per second; {dict(outcomes)}; {breakdowns} breakdowns"
    print(f"{served}; {mib:.0f} MiB, {grown:+,} blocks since the first tenth", flush=True)
    assert not faulty, f"{policy}: {faulty} requests without exactly one outcome"
    assert grown <= MAX_BLOCKS + requests / 100, f"{policy}: {grown:,} memory blocks kept after {requests:,} requests"
    return outcomes, breakdowns


def _blocks() -> int:
    """Return Python's memory blocks without garbage, which may be what others left before the soak."""
    gc.collect()
    return sys.getallocatedblocks()


def _requests(rng: Random) -> Iterator[Request]:
    """Yield an endless load that by turns overruns the engine and lets it catch up."""
    prompts = [(build_prompt(category, topic, 0), BASE_TOKENS[category]) for category in TEMPLATES for topic in TOPICS]
    tiers, now, random = list(TIERS), 0.0, rng.random
    for i in count():
        now += rng.expovariate(1 / GAPS_S[i // TURN % 2])
        tenant, (prompt, limit) = int(random() * TENANTS), prompts[int(random() * len(prompts))]
        prompt = prompt if random() > 1e-3 else "word " * 3000  # which is too long
        options = {"fixed_output_tokens": 1 + int(random() * limit)}
        for name, share in (("deadline_s", 0.5), ("cancel_s", 0.1)):
            options[name] = now + rng.expovariate(1 / 60) if random() < share else None
        yield Request(str(i), now, prompt, f"tenant-{tenant}", tiers[tenant % len(tiers)], limit, **options)


if __name__ == "__main__":
    for name in sys.argv[1:] or POLICIES:
        soak(name, 10_000_000)
