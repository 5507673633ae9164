"""The simulated engine: by hand, jumping against stepping, and against vLLM's own scheduler."""

from math import inf, isinf, nan
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inside_vllm import Runner, make_vllm_request, make_vllm_scheduler
from simulation import COSTS, loads, make_profile, request, requests_of, served, simulated, small

from driftsched_lib.engines.base import STEP_COLUMNS
from driftsched_lib.engines.profile import StepCost
from driftsched_lib.engines.simulated import SimulatedEngine
from driftsched_lib.policies import POLICIES, ShortestJobFirst
from driftsched_lib.requests import Output
from driftsched_lib.serving import ContinuousBatching, StaticBatching

COST = StepCost(**COSTS)
BATCHINGS = st.sampled_from([ContinuousBatching, lambda: StaticBatching(3, 0.02)])
NO_LINE = {"decode_s": {1: 1e-4, 2: 9e-4, 4: 5e-4}}


def seconds(prefill_tokens=0, decode_seqs=0, context_tokens=0, prompts=1):
    return (
        COST.base_s
        + prefill_tokens * COST.per_prefill_token_s
        + (prefill_tokens > 0) * (COST.per_prefill_step_s + prompts * COST.per_prompt_s)
        + decode_seqs * COST.decode_s[1]
        + context_tokens * COST.per_context_token_s
    )


def test_one_request_by_hand():
    _, records = simulated([request(0, arrival_s=2.0, prompt=5, output=4)])
    first = 2.0 + seconds(prefill_tokens=5)
    assert records["0"].dispatch_s == 2.0
    assert records["0"].first_token_s == pytest.approx(first)
    assert records["0"].finish_s == pytest.approx(first + sum(seconds(0, 1, context) for context in (6, 7, 8)))
    assert (records["0"].prompt_tokens, records["0"].output_tokens, records["0"].output_words) == (5, 4, 2)


def test_a_prompt_is_computed_in_chunks_beside_those_that_decode():
    requests = [request("a", prompt=4, output=9), request("b", prompt=20, output=2), request("c", prompt=3, output=2)]
    engine, records = simulated(requests, make_profile(max_num_batched_tokens=10), log_steps=True)
    steps = pd.DataFrame(engine.steps, columns=STEP_COLUMNS)
    assert steps.prompt_tokens.tolist()[:4] == [4 + 6, 9, 5 + 3, 0]  # b: 6, 9, 5; c gets what b's last chunk leaves
    assert steps.prompt_requests.tolist()[:4] == [2, 1, 2, 0]
    assert steps.output_requests.tolist()[:5] == [0, 1, 1, 3, 1]
    assert records["b"].first_token_s == records["c"].first_token_s == steps.time_s[2]
    assert steps.duration_s[3] == pytest.approx(seconds(decode_seqs=3, context_tokens=(4 + 3) + 21 + 4))


def test_the_last_admitted_is_preempted_and_computed_again():
    requests = [request("a", prompt=4, output=9), request("b", prompt=4, output=9)]
    engine, records = simulated(requests, make_profile(block_size=4, kv_blocks=5), log_steps=True)
    steps = pd.DataFrame(engine.steps, columns=STEP_COLUMNS)
    # Both hold 2 blocks until their 8 tokens are full; then a takes the fifth, and b must give up its two.
    assert steps.preemptions.tolist()[:6] == [0, 0, 0, 0, 0, 1]
    assert steps.running.tolist()[5] == 1 and steps.waiting.tolist()[5] == 1
    back = steps.index[steps.output_tokens > steps.output_requests].tolist()
    assert back == [9] and steps.output_tokens[9] == 4 + 5  # b's prompt and its five tokens, when a is done
    assert records["b"].first_token_s == steps.time_s[0] and records["b"].output_tokens == 9
    assert (steps.kv_cache_usage <= 1).all() and steps.kv_cache_usage.iloc[-1] == 0


def test_an_asynchronous_engine_knows_an_iteration_later_what_was_made():
    prompts, both, last = seconds(9, prompts=2), seconds(0, 2, 6 + 5), seconds(0, 1, 7)
    for launch_bound in (False, True):
        load = [request("a", 2.0, prompt=5, output=3), request("b", 2.0, prompt=4, output=2), request("c", 2.5, 3)]
        profile = make_profile(max_num_seqs=2, async_scheduling=True, launch_bound=launch_bound)
        engine, records = simulated(load, profile, log_steps=True)
        first, end_of_both = 2.0 + prompts, 2.0 + prompts + both
        if launch_bound:  # the prompts' tokens are seen when the next iteration has been launched
            first, end_of_both = first + both, end_of_both + last
        assert records["a"].first_token_s == records["b"].first_token_s == pytest.approx(first)
        assert records["b"].finish_s == pytest.approx(end_of_both)
        assert records["a"].finish_s == pytest.approx(2.0 + prompts + both + last)  # nothing is left to launch
        assert records["c"].first_token_s == records["c"].finish_s == pytest.approx(2.5 + seconds(3))
        steps = pd.DataFrame(engine.steps, columns=STEP_COLUMNS)
        assert steps.output_requests.tolist() == [0, 2, 1, 0] and steps.running.tolist() == [2, 1, 0, 0]


def test_what_comes_waits_until_the_launched_iteration_ends():
    load = [request("long", prompt=4, output=9), request("next", arrival_s=1e-3, prompt=2)]
    _, records = simulated(load, make_profile(async_scheduling=True))
    assert records["next"].dispatch_s == pytest.approx(seconds(4))  # the second is launched with the first
    assert records["next"].first_token_s == pytest.approx(seconds(4) + seconds(0, 1, 5) + seconds(2, 1, 6))


def test_a_slot_is_free_once_the_last_token_is_known():
    def wait_s(**profile):
        load = [request("first", output=3), request("longer", output=9), request("next", output=1)]
        records = simulated(load, make_profile(max_num_seqs=2, **profile))[1]
        assert records["next"].dispatch_s == records["first"].finish_s
        return records["next"].first_token_s - records["next"].dispatch_s

    assert wait_s() == pytest.approx(seconds(1, 1, 4))
    assert wait_s(async_scheduling=True) == pytest.approx(seconds(0, 1, 4) + seconds(1, 1, 5))
    assert wait_s(async_scheduling=True, launch_bound=True) == pytest.approx(seconds(1, 1, 5) + seconds(0, 1, 6))


def test_what_waits_for_its_last_token_to_be_known_can_be_aborted_and_not_preempted():
    engine = SimulatedEngine(make_profile(async_scheduling=True, launch_bound=True))
    engine.add(request("gone", output=1))
    engine.add(request("stays", output=3))
    engine.step(0.005)
    assert engine.num_output_tokens() == {"stays": 1}
    engine.abort("gone")
    outputs = []
    while not outputs:
        outputs = engine.step(inf)
    assert [output.request.request_id for output in outputs] == ["stays"] and not engine._in_flight


def test_static_batches_end_together():
    requests = [request(i, prompt=3, output=2 + 5 * i) for i in range(4)]
    _, records = simulated(requests, batching=StaticBatching(4, 0.01))
    assert len({record.finish_s for record in records.values()}) == 1
    assert [record.engine_first_token_s for record in records.values()] == pytest.approx([seconds(12, prompts=4)] * 4)


def test_the_oracle_serves_the_short_first():
    requests = [request(i, output=output) for i, output in enumerate((9, 5, 7))]
    _, records = simulated(requests, make_profile(max_num_seqs=1), policy=ShortestJobFirst())
    assert sorted(records, key=lambda i: records[i].finish_s) == ["1", "2", "0"]


def test_requests_that_can_never_be_served_fail_alone():
    sizes = {"context": (256, 1), "empty": (0, 1), "cache": (100, 102), "fits": (100, 100), "cut": (250, 100)}
    requests = [request(name, 0.0, *lengths) for name, lengths in sizes.items()]
    _, records = simulated(requests, make_profile(kv_blocks=25, block_size=8))
    outcomes = {name: record.outcome.value for name, record in records.items()}
    assert outcomes == dict.fromkeys(sizes, "failed") | {"fits": "completed"}
    assert "takes 1 to 255" in records["context"].reason
    assert "can never fit the KV cache, 25 blocks of 8 tokens" in records["cache"].reason
    _, records = simulated([request("cut", prompt=250, output=100)])
    assert records["cut"].output_tokens == 6  # vLLM ends a sequence that fills the context
    record = served([request(0)], SimulatedEngine(make_profile(), lambda request: (5, 0)))["0"]
    assert record.outcome == "failed" and record.reason == "the output has 0 tokens, it must have at least one"

    # A fixed output beyond the context fails as on vLLM.
    engine, records = simulated([request(0, prompt=250, output=100, fixed_output_tokens=100)])
    assert records["0"].outcome == "failed" and records["0"].reason == "the context holds 6 of 100 fixed tokens"
    assert engine.now() > 5 * COST.base_s  # it was worked on all the same


def test_an_engine_with_nothing_to_do_waits_or_says_so():
    with pytest.raises(RuntimeError, match="no progress: a request's arrival"):
        simulated([request(0, arrival_s=nan)])
    engine = SimulatedEngine(make_profile())
    assert engine.step(3.0) == [] and engine.now() == 3.0
    with pytest.raises(RuntimeError, match="no progress"):
        engine.step(inf)
    engine.add(request(0))
    with pytest.raises(RuntimeError, match="1 requests are still in flight"):
        engine.restart_clock()
    engine.abort("0")
    engine.restart_clock()
    assert engine.now() == 0.0


def test_lengths_are_the_requests_own_or_those_that_are_given():
    requests = [request("fixed", output=20, fixed_output_tokens=9), request("limited", output=20), request("given")]
    engine = SimulatedEngine(make_profile())
    known = {"fixed": (1, 9), "limited": (1, 20), "given": (7, 3)}
    given = SimulatedEngine(make_profile(), lambda request: known[request.request_id])
    assert served(requests[:2], engine)["fixed"].output_tokens == 9
    lengths = {name: (one.prompt_tokens, one.output_tokens) for name, one in served(requests, given).items()}
    assert lengths == known


@given(small, loads, st.sampled_from(sorted(POLICIES)), BATCHINGS, *[st.booleans()] * 3)
def test_jumping_and_stepping_agree_to_the_last_bit(
    limits, load, policy, batching, line, async_scheduling, is_launched
):
    limits = limits | {"async_scheduling": async_scheduling, "launch_bound": is_launched}
    profile, runs = make_profile(COSTS | ({} if line else NO_LINE), **limits), []
    for log_steps in (False, True):
        options = {"policy": POLICIES[policy](), "batching": batching()}
        engine, records = simulated(requests_of(load), profile, log_steps, **options)
        assert len(records) == len(load)
        runs.append((records, engine.now()))
    assert runs[0] == runs[1]


@given(small, loads, BATCHINGS)
def test_stepping_does_what_vllm_is_written_to_do(limits, load, batching):
    profile = make_profile(**limits)
    literal = LiteralEngine(profile)
    expected = served(requests_of(load), literal, batching=batching())
    engine, records = simulated(requests_of(load), profile, log_steps=True, batching=batching())
    assert [row[2:9] for row in engine.steps] == [row[2:9] for row in literal.steps]
    assert np.array(engine.steps) == pytest.approx(np.array(literal.steps))
    for request_id, record in records.items():
        assert record.outcome == expected[request_id].outcome
        assert record.finish_s == pytest.approx(expected[request_id].finish_s)
        assert record.engine_first_token_s == pytest.approx(expected[request_id].engine_first_token_s)


class Sequence(SimpleNamespace):
    __eq__ = object.__eq__
    generated = computed = blocks = decodes = 0
    first_token_s = None


class LiteralEngine:
    """vLLM's `Scheduler.schedule` written down line by line, block by block: slow and plain."""

    def __init__(self, profile):
        self.limits, self.cost, self.max_num_seqs = profile.limits, profile.step, profile.limits.max_num_seqs
        self.time, self.running, self.waiting, self.steps, self.free = 0.0, [], [], [], profile.limits.kv_blocks

    def now(self):
        return self.time

    def has_room(self):
        return len(self.running) + len(self.waiting) < self.max_num_seqs

    def add(self, request):
        prompt = len(request.prompt.split())
        output = min(request.max_tokens, self.limits.max_model_len - prompt)
        if output < 1 or prompt + output - 1 > self.limits.kv_blocks * self.limits.block_size:
            raise ValueError("too long")
        self.waiting.append(Sequence(request=request, prompt=prompt, output=output))

    def abort(self, request_id):
        for sequence in [one for one in self.running + self.waiting if one.request.request_id == request_id]:
            (self.running if sequence in self.running else self.waiting).remove(sequence)
            self.release(sequence)

    def allocate(self, sequence, tokens):
        blocks = -(-tokens // self.limits.block_size)
        if blocks - sequence.blocks > self.free:
            return False
        self.free -= blocks - sequence.blocks
        sequence.blocks = blocks
        return True

    def release(self, sequence):
        self.free += sequence.blocks
        sequence.blocks = 0

    def step(self, until):
        if not self.running and not self.waiting:
            assert not isinf(until)
            self.time = max(self.time, until)
            return []
        budget, scheduled, preempted = self.limits.max_num_batched_tokens, [], []
        while len(scheduled) < len(self.running) and budget:
            sequence = self.running[len(scheduled)]
            tokens = min(sequence.prompt + sequence.generated - sequence.computed, budget)
            while not (allocated := self.allocate(sequence, sequence.computed + tokens)):
                last = self.running.pop()
                self.release(last)
                last.computed, last.decodes = 0, False
                self.waiting.insert(0, last)
                preempted.append(last)
                if last is sequence:
                    break
            if not allocated:
                break
            scheduled.append((sequence, tokens))
            budget -= tokens
        while not preempted and self.waiting and budget and len(self.running) < self.max_num_seqs:
            sequence = self.waiting[0]
            whole = sequence.prompt + sequence.generated
            if -(-whole // self.limits.block_size) > self.free:
                break
            tokens = min(whole, budget)
            self.allocate(sequence, tokens)
            self.running.append(self.waiting.pop(0))
            scheduled.append((sequence, tokens))
            budget -= tokens
        return self.execute(scheduled, len(preempted))

    def execute(self, scheduled, preemptions):
        decodes = [one for one, _ in scheduled if one.decodes]
        prefills = [(one, tokens) for one, tokens in scheduled if not one.decodes]
        fresh = [tokens for one, tokens in prefills if one.generated == 0]
        computed, context = sum(tokens for _, tokens in prefills), sum(one.prompt + one.generated for one in decodes)
        duration = seconds(computed, len(decodes), context, len(prefills))
        self.time += duration
        outputs = []
        for one, tokens in scheduled:
            one.computed += tokens
            if one.computed < one.prompt + one.generated:
                continue
            one.decodes = True
            one.generated += 1
            one.first_token_s = one.first_token_s or self.time
            if one.generated == one.output:
                self.running.remove(one)
                self.release(one)
                outputs.append(Output(one.request, one.prompt, one.output, None, one.first_token_s, self.time))
        others = sum(tokens for _, tokens in scheduled) - sum(fresh)
        usage = 1 - self.free / self.limits.kv_blocks
        held = (len(self.running), len(self.waiting), len(fresh), sum(fresh), len(scheduled) - len(fresh), others)
        self.steps.append((self.time, duration, *held, preemptions, usage))
        return outputs


@pytest.mark.parametrize("async_scheduling", [False, True], ids=["synchronous", "asynchronous"])
@pytest.mark.parametrize("seed", range(8))
def test_iterations_are_those_of_vllms_own_scheduler(seed, async_scheduling):
    """All requests are there at once; every iteration must hold the same tokens of the same kind."""
    pytest.importorskip("vllm")
    rng = np.random.default_rng(seed)
    limits = {"max_num_seqs": int(rng.integers(2, 9)), "max_num_batched_tokens": int(rng.integers(16, 65))}
    limits |= {"max_model_len": 128, "kv_blocks": int(rng.integers(9, 20)), "async_scheduling": async_scheduling}
    load = [(int(rng.integers(1, 60)), int(rng.integers(1, 60))) for _ in range(30)]
    engine = SimulatedEngine(make_profile(**limits), log_steps=True)
    for i, (prompt, output) in enumerate(load):
        engine.add(request(i, 0.0, prompt, output))
    while engine.step(0.0) or engine._in_flight:
        pass
    assert [row[2:9] for row in engine.steps] == vllm_iterations(load, limits)
    assert seed > 0 or sum(row[8] for row in engine.steps) > 0  # blocks did run out


def vllm_iterations(load, limits):
    """The iterations of vLLM's v1 scheduler for (prompt, output) lengths: `steps` from `running` to `preemptions`."""
    from vllm.v1.utils import compute_iteration_details

    def log(scheduled):
        done = compute_iteration_details(scheduled)
        made = (done.num_generation_requests, done.num_generation_tokens, len(scheduled.preempted_req_ids or ()))
        held = (len(scheduler.running), len(scheduler.waiting))
        rows.append((*held, done.num_ctx_requests, done.num_ctx_tokens, *made))

    rows, late = [], limits["async_scheduling"]
    limits = limits | {"kv_blocks": limits["kv_blocks"] + 1}  # one is vLLM's own null block
    kind = "async_scheduler.AsyncScheduler" if late else "scheduler.Scheduler"
    scheduler = make_vllm_scheduler(f"vllm.v1.core.sched.{kind}", **limits)
    for i, (prompt, output) in enumerate(load):
        scheduler.add_request(make_vllm_request(str(i), output, prompt=prompt))
    Runner(scheduler, 1 + late, log).drain()
    return rows
