"""Long simulations in machine code: what `serve` would have recorded of them, many times as fast."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from math import inf
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from driftsched_lib import compiled_loop as loop
from driftsched_lib.engines.simulated import SimulatedEngine
from driftsched_lib.estimators import Oracle, PaperEstimator
from driftsched_lib.estimators.base import LONGEST
from driftsched_lib.policies import AgingPriority, EarliestDeadline, Fifo, Policy, Priority, ShortestJobFirst, Weighted
from driftsched_lib.requests import TIERS, Outcome, Output, Request
from driftsched_lib.scheduler import Scheduler
from driftsched_lib.serving import Batching, ContinuousBatching, StaticBatching
from driftsched_lib.workloads import PhaseLoad

_KNOWN = np.dtype([(name, loop.REQUEST[name]) for name in loop.KNOWN])


class Served(NamedTuple):
    """What became of the requests: each was completed.

    Attributes:
        requests: a row of `compiled_loop.REQUEST` each, in the order in which they ended.
        sent: of each, in the same order, its id, phase, tenant and job type.
        spans: when each phase began and ended.
        depths: samples of the time and of the number of queued requests by tier.
    """

    requests: np.ndarray
    sent: list[tuple[str, str, str, str]]
    spans: list[tuple[float, float]]
    depths: list[tuple[float, int, int, int]]
    scheduler: Scheduler
    engine: SimulatedEngine
    batching: Batching

    def table(self) -> pd.DataFrame:
        """A row a request, as `results.requests_table` makes them of records."""
        rows, n = self.requests, len(self.requests)
        base_tokens = self.scheduler.estimator.base_tokens
        categories, nothing = np.array(list(base_tokens), object), [None] * n
        request_id, phase, tenant, job_type = zip(*self.sent, strict=True)
        learns = isinstance(self.scheduler.estimator, PaperEstimator)
        batched = isinstance(self.batching, StaticBatching)
        return pd.DataFrame(
            {
                "request_id": request_id,
                "phase": phase,
                "tenant": tenant,
                "tier": np.array(TIERS, object)[rows["tier"]],
                "job_type": job_type,
                "category": categories[rows["category"]],
                "outcome": Outcome.COMPLETED,
                "reason": "",
                "arrival_s": rows["arrival_s"],
                "dispatch_s": rows["dispatch_s"],
                "first_token_s": rows["first_token_s"],
                "longest_itl_s": None,
                "finish_s": rows["finish_s"],
                "max_tokens": rows["max_tokens"],
                "input_tokens": rows["input_tokens"],
                "prompt_tokens": rows["prompt_tokens"],
                "output_tokens": rows["output_tokens"],
                "output_words": [self.engine.words(tokens) for tokens in rows["output_tokens"].tolist()],
                "actual_tokens": rows["actual_tokens"],
                "estimated_tokens": rows["estimated_tokens"],
                "estimated_total_tokens": rows["input_tokens"] + rows["estimated_tokens"],
                "base_tokens": np.array(list(base_tokens.values()))[rows["category"]],
                "estimated_low_tokens": rows["low_tokens"],
                "estimated_high_tokens": rows["high_tokens"],
                "bias": rows["bias"],
                "bias_before": rows["bias_before"] if learns else nothing,
                "measured_bias": rows["measured"] if learns else nothing,
                "bias_after": rows["bias_after"] if learns else nothing,
                "batch_id": rows["batch_id"] if batched else nothing,
                "batch_size": rows["batch_size"] if batched else nothing,
                "preemptions": 0,
            }
        ).convert_dtypes()


class _Unfit(Exception):
    """Something that the compiled loop does not do."""


def serve_compiled(
    loads: Iterable[PhaseLoad], scheduler: Scheduler, engine: Any, batching: Batching, depth_interval_s: float = inf
) -> Served | None:
    """What `serve` would record of the loads, to the last bit; None where that is not for the compiled loop to say.

    It does FIFO, Priority, Weighted, SJF, Aging and EDF on the estimates of the paper's estimator or of the oracle, in
    either batching, on one simulated engine that schedules synchronously and whose KV blocks suffice.  All requests are
    let in as they were sent, and none expires, is cancelled or cannot be served.

    Parameters:
        loads: requests are read lazily, and kept as numbers.
        scheduler, engine, batching: new ones.  They say how to serve, and are not changed.
        depth_interval_s: seconds between samples of the queue.
    """
    try:
        if scheduler.capacity is not None or scheduler.admission is not None:
            raise _Unfit
        setting = (_policy(scheduler.policy), _estimator(scheduler.estimator), _engine(engine), *_batching(batching))
        requests, sent, phases = _load(loads, scheduler, engine)
    except (_Unfit, KeyError, ValueError):  # what is wrong with a request is for `serve` to say
        return None
    state = np.zeros(1, loop.STATE)[0]
    suffices, order, depths = loop.serve(requests, phases, *setting, depth_interval_s, state)
    if not suffices:
        return None
    spans = phases[["start_s", "end_s"]].tolist()
    return Served(requests[order], [sent[i] for i in order], spans, depths, scheduler, engine, batching)


def _load(loads: Iterable[PhaseLoad], scheduler: Scheduler, engine: SimulatedEngine):
    """The requests as rows, what they are called, and their phases."""
    place = {category: i for i, category in enumerate(scheduler.estimator.base_tokens)}
    rank = {tier: i for i, tier in enumerate(TIERS)}
    sent: list[tuple[str, str, str, str]] = []

    @lru_cache(maxsize=1000)
    def read(prompt: str) -> tuple[int, int]:
        return place[scheduler.classifier.classify(prompt)], scheduler.counter.prompt(prompt)

    fitted = lru_cache(maxsize=100_000)(engine.fitted)
    counted: dict[int, int] = {}
    needs_pins = isinstance(scheduler.estimator, Oracle)

    def known(request: Request) -> tuple:
        prompt_tokens, wanted = engine.lengths(request)
        output_tokens = fitted(prompt_tokens, wanted)
        if request.deadline_s is not None or request.cancel_s is not None or request.category or request.input_tokens:
            raise _Unfit
        if output_tokens != request.pinned_tokens and (needs_pins or request.pinned_tokens is not None):
            raise _Unfit
        if output_tokens not in counted:
            words = engine.words(output_tokens)
            counted[output_tokens] = scheduler.counter.output(Output(request, 0, output_tokens, words, None, inf))
        category, input_tokens = read(request.prompt)
        sent.append((request.request_id, request.phase, request.tenant, request.job_type))
        return (
            request.arrival_s,
            rank[request.tier],
            category,
            request.max_tokens,
            input_tokens,
            prompt_tokens,
            output_tokens,
            counted[output_tokens],
        )

    tables, phases = [], []
    for load in loads:
        first = len(sent)
        tables.append(np.fromiter(map(known, load.requests), _KNOWN))
        phases.append((first, len(sent), load.pause_s, 0.0, 0.0))
    rows = np.concatenate(tables)
    sound = (rows["arrival_s"] >= 0) & (rows["arrival_s"] < inf) & (rows["actual_tokens"] <= LONGEST)
    if not sound.all() or len({request_id for request_id, *_ in sent}) < len(sent):
        raise _Unfit
    requests = np.zeros(len(rows), loop.REQUEST)
    for name in loop.KNOWN:
        requests[name] = rows[name]
    return requests, sent, np.array(phases, loop.PHASE)


def _policy(policy: Policy) -> loop.Queueing:
    one_lane, no_rank = (np.zeros(1, int), np.zeros(len(TIERS), int)), np.zeros(len(TIERS))
    kind = type(policy)
    if kind is Fifo:
        return loop.Queueing(*one_lane, no_rank, 0.0, 0.0)
    if kind is Priority:
        return loop.Queueing(*one_lane, _by_tier(policy.ranks), 0.0, 0.0)
    if kind is ShortestJobFirst:
        return loop.Queueing(*one_lane, no_rank, 1.0, 0.0)
    if kind is AgingPriority:
        return loop.Queueing(*one_lane, _by_tier(policy.ranks), 0.0, policy.rate)
    if kind is EarliestDeadline:
        return loop.Queueing(*one_lane, _by_tier(policy.ttft_slo_s), 0.0, 1.0)
    if kind is Weighted:
        cycle = np.array([TIERS.index(tier) for tier in policy.cycle])
        return loop.Queueing(cycle, np.arange(len(TIERS)), no_rank, 0.0, 0.0)
    raise _Unfit


def _estimator(estimator: Any) -> loop.Estimation:
    base = np.array(list(estimator.base_tokens.values()))
    bias, intervals = np.ones(len(base)), np.zeros(len(base), loop.INTERVAL)
    if type(estimator) is Oracle:
        return loop.Estimation(True, base, np.ones(len(TIERS)), 0.0, 0.0, 0.0, 0.0, 1.0, bias, intervals)
    if type(estimator) is not PaperEstimator:
        raise _Unfit
    for i, category in enumerate(estimator.base_tokens):
        learnt, interval = estimator.state_.intervals[category], intervals[i]
        size = len(learnt.ratios)
        bias[i], interval["level"], interval["size"] = estimator.state_.bias[category], learnt.level, size
        interval["values"][:size], interval["ordered"][:size] = learnt.ratios.values, learnt.ratios.ordered
    return loop.Estimation(
        False,
        base,
        _by_tier(estimator.safety),
        estimator.alpha if estimator.calibrate else 0.0,
        *map(float, estimator.clip),
        estimator.max_input_factor,
        float(estimator.input_scale),
        bias,
        intervals,
    )


def _engine(engine: Any) -> loop.Machine:
    if type(engine) is not SimulatedEngine or engine.log_steps or engine.limits.async_scheduling:
        raise _Unfit
    limits, cost = engine.limits, engine.profile.step
    return loop.Machine(
        limits.max_num_seqs,
        limits.max_num_batched_tokens,
        limits.block_size,
        limits.kv_blocks,
        np.array(engine.profile.decode_costs()),
        cost.per_context_token_s,
        cost.per_prefill_token_s,
        cost.per_prefill_step_s,
        cost.per_prompt_s,
    )


def _batching(batching: Batching) -> tuple[int, float]:
    if type(batching) is StaticBatching:
        return batching.size, batching.wait_s
    if type(batching) is ContinuousBatching:
        return 0, 0.0
    raise _Unfit


def _by_tier(values: Mapping[str, float]) -> np.ndarray:
    return np.array([values[tier] for tier in TIERS], float)
