"""The loop of `serving` over a simulated engine, in machine code; `compiled` says for what.

It says again what `serve`, `Scheduler`, `KeyedQueue`, `Weighted`, `PaperEstimator` and `SimulatedEngine` say, and in
their order, so that every sum is rounded as theirs.  What they keep in objects is here in `STATE`; a request is a row
of `REQUEST`, and its number in that table stands for it.
"""

from heapq import heappop, heappush
from math import ceil, inf, sqrt
from typing import NamedTuple

import numpy as np
from llvmlite.binding.ffi import lib as llvm
from numba import njit

from driftsched_lib.estimators.conformal import HIGHEST_LEVEL, LEAST_RATIOS, MISS_RATE, STEP
from driftsched_lib.estimators.sliding import CAPACITY

# As it loads, vLLM's CPU build looks for `kernel` in the attributes of every object of every module.  This one, asked
# for its attributes, gives a C function of that name, into which nothing can look.
llvm._fntab["__dict__"] = {}

REQUEST = np.dtype(
    [("arrival_s", "f8")]
    + [(name, "i8") for name in ("tier", "category", "max_tokens", "input_tokens", "prompt_tokens", "output_tokens")]
    + [(name, "i8") for name in ("actual_tokens", "estimated_tokens", "batch_id", "batch_size", "computed")]
    + [(name, "f8") for name in ("low_tokens", "high_tokens", "bias", "bias_before", "measured", "bias_after")]
    + [(name, "f8") for name in ("dispatch_s", "first_token_s", "finish_s")]
)
KNOWN = REQUEST.names[: REQUEST.names.index("estimated_tokens")]
"""Of a request, what is known before the run, whether or not the scheduler knows it."""
PHASE = np.dtype([("first", "i8"), ("beyond", "i8"), ("pause_s", "f8"), ("start_s", "f8"), ("end_s", "f8")])
INTERVAL = np.dtype(
    [("level", "f8"), ("size", "i8"), ("oldest", "i8"), ("values", "f8", CAPACITY), ("ordered", "f8", CAPACITY)]
)
STATE = np.dtype(
    [(name, "f8") for name in ("now", "end", "since_s")]
    + [(name, "i8") for name in ("iteration", "since_iteration", "since_context", "decoding", "begun")]
    + [(name, "i8") for name in ("in_flight", "promised", "turn", "queued")]
)


class Queueing(NamedTuple):
    """A policy: whose turn it is goes round `cycle`, and within a lane the smallest key goes first.

    The key is `rank[tier] + per_token * estimated total + per_second * arrival`.
    """

    cycle: np.ndarray
    lane: np.ndarray  # by tier
    rank: np.ndarray  # by tier
    per_token: float
    per_second: float


class Estimation(NamedTuple):
    """An estimator: the paper's, or the oracle."""

    oracle: bool
    base: np.ndarray  # by category
    safety: np.ndarray  # by tier
    alpha: float  # 0 where it does not calibrate
    lowest: float
    highest: float
    max_input_factor: float
    input_scale: float
    bias: np.ndarray  # by category, learnt
    intervals: np.ndarray  # by category, learnt


class Machine(NamedTuple):
    """An engine: its limits and costs."""

    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    kv_blocks: int
    decode_s: np.ndarray  # by the number of sequences
    per_context_token_s: float
    per_prefill_token_s: float
    per_prefill_step_s: float
    per_prompt_s: float


@njit(cache=True)
def serve(requests, phases, policy, estimator, engine, batch_size, batch_wait_s, depth_interval_s, state):
    """Serve the phases one after the other.

    Parameters:
        requests: rows of `REQUEST`, in the order of arrival, whose times count from the beginning of their phase; what
            is not known at admission is filled in, and the times then count from the beginning of the run.
        batch_size: of static batches; 0 for continuous batching.

    Returns:
        Whether the KV cache held whatever was served: if not, nothing here is of use; the requests in the order in
        which they ended; and samples of the time and of how many of each tier are queued.
    """
    depth = np.zeros(len(policy.lane), np.int64)
    # Numba learns what an empty list will hold from what it would have held.
    lanes = [[(0.0, 0) for _ in range(0)] for _ in range(policy.lane.max() + 1)]  # heaps: key, request
    ends = [(0, 0, 0) for _ in range(0)]  # heap: iteration of the last token, place among the first tokens, request
    depths = [(0.0, 0, 0, 0) for _ in range(0)]
    dispatched = [0 for _ in range(0)]  # in this order; those from `state.begun` on have made no token yet
    batch = [0 for _ in range(0)]  # open, not dispatched yet
    finished = [0 for _ in range(0)]  # of the batch that runs
    ended = [0 for _ in range(0)]
    next_sample_s = -inf
    for phase in phases:
        start_s = state.now + phase.pause_s
        phase.start_s = start_s
        for i in range(phase.first, phase.beyond):
            requests[i].arrival_s += start_s
        upcoming, batches, running, closes_s = phase.first, 0, 0, inf
        while True:
            now = state.now
            while upcoming < phase.beyond and requests[upcoming].arrival_s <= now:
                request = requests[upcoming]
                estimate(request, estimator)
                total = request.input_tokens + request.estimated_tokens
                key = policy.rank[request.tier] + policy.per_token * total + policy.per_second * request.arrival_s
                heappush(lanes[policy.lane[request.tier]], (key, upcoming))
                state.queued += 1
                depth[request.tier] += 1
                upcoming += 1
            if batch_size == 0:
                while state.queued and state.in_flight < engine.max_num_seqs:
                    start(pop(lanes, depth, requests, policy, state), now, requests, dispatched, engine, state)
            elif running == 0:
                while state.queued and len(batch) < batch_size:
                    if len(batch) == 0:
                        closes_s = now + batch_wait_s
                    batch.append(pop(lanes, depth, requests, policy, state))
                if len(batch) and (len(batch) == batch_size or now >= closes_s):
                    for i in batch:
                        requests[i].batch_id = batches
                        requests[i].batch_size = len(batch)
                        start(i, now, requests, dispatched, engine, state)
                    running, closes_s = len(batch), inf
                    batches += 1
                    batch.clear()
            if state.promised > engine.kv_blocks:
                return False, ended, depths
            if now >= next_sample_s:
                depths.append((now, depth[0], depth[1], depth[2]))
                next_sample_s = now + depth_interval_s
            if upcoming == phase.beyond and state.queued + len(batch) + state.in_flight == 0:
                break
            until = min(requests[upcoming].arrival_s if upcoming < phase.beyond else inf, closes_s)
            step(until, requests, dispatched, ends, finished, engine, state)
            if len(finished) < running:
                continue
            running = 0
            for i in finished:
                requests[i].finish_s = state.now
                observe(requests[i], estimator)
                ended.append(i)
            finished.clear()
        phase.end_s = state.now
    return True, ended, depths


@njit(cache=True)
def pop(lanes, depth, requests, policy, state):
    while len(lanes[policy.cycle[state.turn % len(policy.cycle)]]) == 0:
        state.turn += 1
    i = heappop(lanes[policy.cycle[state.turn % len(policy.cycle)]])[1]
    state.turn += 1
    state.queued -= 1
    depth[requests[i].tier] -= 1
    return i


@njit(cache=True)
def start(i, now, requests, dispatched, engine, state):
    requests[i].dispatch_s = now
    dispatched.append(i)
    state.in_flight += 1
    state.promised += blocks(requests[i], engine)


@njit(cache=True)
def blocks(request, engine):
    return -(-(request.prompt_tokens + request.output_tokens) // engine.block_size)


@njit(cache=True)
def step(until, requests, dispatched, ends, finished, engine, state):
    """Pass iterations up to the first that ends a request, or that ends at or after `until`."""
    if state.in_flight == 0:
        state.now = max(state.now, until)
        state.end = max(state.end, state.now)
        state.since_s = state.end
        return
    before = len(finished)
    while True:
        pass_iterations(until, requests, dispatched, ends, finished, engine, state)
        if len(finished) > before or state.now >= until:
            return


@njit(cache=True)
def pass_iterations(until, requests, dispatched, ends, finished, engine, state):
    """Pass one iteration, or all that are alike."""
    budget = engine.max_num_batched_tokens - state.decoding
    prompts, tokens = 0, 0
    while (
        tokens < budget and state.begun + prompts < len(dispatched) and state.decoding + prompts < engine.max_num_seqs
    ):
        request = requests[dispatched[state.begun + prompts]]
        tokens += request.prompt_tokens - request.computed
        prompts += 1
    if prompts:
        prefill(prompts, min(tokens, budget), requests, dispatched, ends, engine, state)
    else:
        jump(until, ends, engine, state)
    state.now = state.end
    while len(ends) and ends[0][0] == state.iteration:
        i = heappop(ends)[2]
        reckon_from_here(state)
        state.since_context -= requests[i].prompt_tokens + requests[i].output_tokens
        state.decoding -= 1
        state.in_flight -= 1
        state.promised -= blocks(requests[i], engine)
        requests[i].finish_s = state.now
        finished.append(i)


@njit(cache=True)
def prefill(prompts, tokens, requests, dispatched, ends, engine, state):
    """An iteration that computes so many tokens of the first prompts, in the order of their dispatch."""
    state.iteration += 1
    state.end = end_s(state.iteration, engine, state)
    state.end += tokens * engine.per_prefill_token_s + engine.per_prefill_step_s + prompts * engine.per_prompt_s
    reckon_from_here(state)
    for i in dispatched[state.begun : state.begun + prompts]:
        request = requests[i]
        computed = min(request.prompt_tokens - request.computed, tokens)
        tokens -= computed
        request.computed += computed
        if request.computed == request.prompt_tokens:
            request.first_token_s = state.end
            state.begun += 1
            state.decoding += 1
            state.since_context += request.prompt_tokens + 1
            heappush(ends, (state.iteration - 1 + request.output_tokens, state.begun, i))


@njit(cache=True)
def jump(until, ends, engine, state):
    """Pass all iterations up to that in which a sequence ends, or to the first that ends at or after `until`."""
    last = ends[0][0]
    last_s = end_s(last, engine, state)
    if last_s > until:
        growth = state.decoding * engine.per_context_token_s
        left = max(0.0, until - state.since_s)
        pace = engine.decode_s[state.decoding] + state.since_context * engine.per_context_token_s - growth / 2
        near = state.since_iteration + ceil(2 * left / (pace + sqrt(pace * pace + 2 * growth * left)))
        first = state.iteration + 1
        last = max(near, first)
        last_s = end_s(last, engine, state)
        while last_s < until:
            last += 1
            last_s = end_s(last, engine, state)
        while last > first and end_s(last - 1, engine, state) >= until:
            last -= 1
            last_s = end_s(last, engine, state)
    state.iteration, state.end = last, last_s


@njit(cache=True)
def end_s(iteration, engine, state):
    """When an iteration ends, if since the last change of the decoding sequences there was nothing but decoding."""
    n = iteration - state.since_iteration
    context = n * state.since_context + state.decoding * (n * (n - 1) // 2)
    return state.since_s + n * engine.decode_s[state.decoding] + context * engine.per_context_token_s


@njit(cache=True)
def reckon_from_here(state):
    """The decoding sequences are about to change."""
    state.since_context += state.decoding * (state.iteration - state.since_iteration)
    state.since_iteration, state.since_s = state.iteration, state.end


@njit(cache=True)
def expect(request, estimator):
    input_factor = min(estimator.max_input_factor, 1.0 + request.input_tokens / estimator.input_scale)
    category = request.category
    return estimator.base[category] * estimator.bias[category] * estimator.safety[request.tier] * input_factor


@njit(cache=True)
def estimate(request, estimator):
    if estimator.oracle:
        request.estimated_tokens = request.output_tokens
        request.bias = request.output_tokens / estimator.base[request.category]
        request.low_tokens = request.high_tokens = request.output_tokens
        return
    point = expect(request, estimator)
    request.estimated_tokens = int(point)
    request.bias = estimator.bias[request.category]
    request.low_tokens, request.high_tokens = bounds(estimator.intervals[request.category], point, request.max_tokens)


@njit(cache=True)
def observe(request, estimator):
    if estimator.oracle:
        return
    category, length = request.category, min(request.actual_tokens, request.max_tokens)
    point = max(expect(request, estimator), 1.0)
    low, high = bounds(estimator.intervals[category], point, request.max_tokens)
    learn(estimator.intervals[category], length / point, not low <= length <= high)
    request.bias_before = estimator.bias[category]
    request.measured = min(max(length / estimator.base[category], estimator.lowest), estimator.highest)
    if estimator.alpha:
        estimator.bias[category] = (1 - estimator.alpha) * request.bias_before + estimator.alpha * request.measured
    request.bias_after = estimator.bias[category]


@njit(cache=True)
def bounds(interval, point, max_tokens):
    """`AdaptiveInterval.bounds`, in tokens."""
    rank = int((interval.size + 1) * (interval.level / 2))
    low, high = 0.0, inf
    if rank >= 1:
        low, high = interval.ordered[rank - 1], interval.ordered[interval.size - rank]
    low, high = point * low - 0.5, point * high + 0.5
    if high > max_tokens:
        low, high = min(low, float(max_tokens)), float(max_tokens)
    return max(low, 0.0), high


@njit(cache=True)
def learn(interval, ratio, missed):
    """`AdaptiveInterval.learn`: the oldest ratio gives its place to the newest, in time and in order."""
    if interval.size >= LEAST_RATIOS:
        interval.level = min(interval.level + STEP * (MISS_RATE - missed), HIGHEST_LEVEL)
    ordered = interval.ordered
    if interval.size < CAPACITY:
        place, newest = interval.size, interval.size
        interval.size += 1
    else:
        newest = interval.oldest
        place = np.searchsorted(ordered, interval.values[newest])
        interval.oldest = (newest + 1) % CAPACITY
    interval.values[newest] = ratio
    while place > 0 and ordered[place - 1] > ratio:
        ordered[place] = ordered[place - 1]
        place -= 1
    while place < interval.size - 1 and ordered[place + 1] < ratio:
        ordered[place] = ordered[place + 1]
        place += 1
    ordered[place] = ratio
