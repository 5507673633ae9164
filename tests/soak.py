"""A soak: as many requests as wanted through a policy, on a simulated engine that loses some of them and breaks down.

Nothing is kept of a request that has ended but one byte, so the memory that grows is the memory that leaks.
"""

import gc
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, count, islice
from random import Random

import psutil

from driftsched_lib.classify import KeywordClassifier
from driftsched_lib.engines.profile import Profile
from driftsched_lib.engines.simulated import SimulatedEngine
from driftsched_lib.errors import DriftSchedError
from driftsched_lib.estimators import RunningQuantiles
from driftsched_lib.policies import POLICIES
from driftsched_lib.requests import BASE_TOKENS, TIERS, Output, Record, Request
from driftsched_lib.scheduler import Scheduler
from driftsched_lib.serving import ContinuousBatching, serve
from driftsched_lib.tokens import WhitespaceCounter
from driftsched_lib.validation import PROJECT
from driftsched_lib.workloads.prompts import TEMPLATES, TOPICS, build_prompt

PROFILE = PROJECT / "data" / "profiles" / "l4-qwen1.5-1.8b.json"
CAPACITY, TENANTS = 500, 2000
GAPS_S = (0.07, 0.3)
"""Mean gaps between arrivals, by turns of `TURN` requests: about twice what the engine can serve, and half of it."""
TURN = 5_000
MAX_BLOCKS = 4000
"""Of memory, what bounded state may grow by: tenants yet to be met, a queue that happens to be long."""
LOST, BREAKS = 1e-3, 1e-5
"""Probabilities that an output is lost, and that the engine breaks down in a step."""


@dataclass(frozen=True)
class Soak:
    """What came of a soak.

    Attributes:
        outcomes: requests by how they ended.
        faulty: requests that ended never, or more than once.
        breakdowns: of the engine, each of which failed all that was queued or running.
        memory_mib, grown_mib: resident memory at the end, and how much of that came after the first tenth.
        grown_blocks: memory blocks that Python held at the end beyond those of the first tenth; unlike resident memory,
            no earlier use of the process hides them.
    """

    policy: str
    requests: int
    outcomes: Counter
    faulty: int
    breakdowns: int
    seconds: float
    memory_mib: float
    grown_mib: float
    grown_blocks: int

    def __str__(self) -> str:
        outcomes = ", ".join(f"{n:,} {outcome}" for outcome, n in sorted(self.outcomes.items()))
        return (
            f"{self.policy}: {self.requests:,} requests, {self.faulty} without exactly one outcome; {outcomes}; "
            f"{self.breakdowns} breakdowns; {self.requests / self.seconds:,.0f} requests/s; "
            f"{self.memory_mib:.0f} MiB, {self.grown_mib:+.1f} and {self.grown_blocks:+,} blocks since the first tenth"
        )


def check(done: Soak) -> None:
    """DriftSchedError for a request without exactly one outcome, or memory that grew with the requests."""
    if done.faulty:
        raise DriftSchedError(f"{done.policy}: {done.faulty} requests without exactly one outcome")
    if done.grown_blocks > MAX_BLOCKS + done.requests / 100:
        raise DriftSchedError(
            f"{done.policy}: {done.grown_blocks:,} memory blocks kept after {done.requests:,} requests"
        )


class Breakdown(RuntimeError):
    """The engine is gone, with all that was in it."""


class _Unreliable(SimulatedEngine):
    """Loses an output now and then, and now and then breaks down."""

    def __init__(self, profile: Profile, rng: Random):
        super().__init__(profile)
        self._rng = rng

    def step(self, until: float) -> list[Output]:
        if self._rng.random() < BREAKS:
            raise Breakdown("made to break down")
        outputs = super().step(until)
        for output in outputs:
            if self._rng.random() < LOST:
                output.error = "lost"
        return outputs


def soak(policy: str, requests: int, seed: int = 1) -> Soak:
    """Serve requests under a policy, some of which are cancelled, expire, are rejected, refused, lost, or go down with
    the engine; after a breakdown a new engine takes the rest."""
    started, process, rng = time.perf_counter(), psutil.Process(), Random(seed)
    ended, outcomes = bytearray(b"\0" * requests), Counter()

    def note(record: Record) -> None:
        ended[int(record.request_id)] += 1
        outcomes[record.outcome.value] += 1

    scheduler = Scheduler(
        POLICIES[policy](), RunningQuantiles(), WhitespaceCounter(), KeywordClassifier(), note, CAPACITY
    )
    profile = Profile.load(PROFILE)
    engine, breakdowns, latest = _Unreliable(profile, rng), 0, None
    early_bytes = early_blocks = 0

    def arrivals(load: Iterable[Request]) -> Iterator[Request]:
        nonlocal latest, early_bytes, early_blocks
        for latest in load:
            if latest.request_id == str(requests // 10):
                early_bytes, early_blocks = _held(process)
            yield latest

    load: Iterator[Request] = islice(_requests(rng), requests)
    while True:
        try:
            serve(arrivals(load), scheduler, engine, ContinuousBatching())
            break
        except Breakdown:
            breakdowns += 1
            broke_s, engine = engine.now(), _Unreliable(profile, rng)
            engine.step(until=broke_s)
            if not ended[int(latest.request_id)]:  # it was about to arrive
                load = chain([latest], load)
    late_bytes, late_blocks = _held(process)
    return Soak(
        policy=policy,
        requests=requests,
        outcomes=outcomes,
        faulty=requests - ended.count(1),
        breakdowns=breakdowns,
        seconds=time.perf_counter() - started,
        memory_mib=late_bytes / 2**20,
        grown_mib=(late_bytes - early_bytes) / 2**20,
        grown_blocks=late_blocks - early_blocks,
    )


def _held(process: psutil.Process) -> tuple[int, int]:
    """Resident bytes and Python's memory blocks, without garbage, which may be what others left before the soak."""
    gc.collect()
    return process.memory_info().rss, sys.getallocatedblocks()


def _requests(rng: Random) -> Iterator[Request]:
    """An endless load that by turns overruns the engine and lets it catch up."""
    prompts = [(category, build_prompt(category, topic, 0)) for category in TEMPLATES for topic in TOPICS]
    too_long = "word " * 3000
    random, expovariate = rng.random, rng.expovariate
    arrival_s = 0.0
    for i in count():
        arrival_s += expovariate(1 / GAPS_S[i // TURN % 2])
        category, prompt = prompts[int(random() * len(prompts))]
        tenant = int(random() * TENANTS)
        yield Request(
            request_id=str(i),
            arrival_s=arrival_s,
            prompt=prompt if random() > 1e-3 else too_long,
            tenant=f"tenant-{tenant}",
            tier=TIERS[tenant % len(TIERS)],
            max_tokens=BASE_TOKENS[category],
            fixed_output_tokens=1 + int(random() * BASE_TOKENS[category]),
            deadline_s=arrival_s + expovariate(1 / 60) if random() < 0.5 else None,
            cancel_s=arrival_s + expovariate(1 / 60) if random() < 0.1 else None,
        )
