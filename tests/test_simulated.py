"""The simulated engine: by hand, jumping against stepping, and against vLLM's own scheduler."""

from itertools import count
from math import inf, nan

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inside_vllm import Runner, make_vllm_request, make_vllm_scheduler
from simulation import COSTS, loads, make_profile, request, requests_of, served, simulated, small

from driftsched_lib.engines.base import STEP_COLUMNS
from driftsched_lib.engines.profile import Profile, StepCost
from driftsched_lib.engines.simulated import SimulatedEngine
from driftsched_lib.policies import POLICIES
from driftsched_lib.serving import ContinuousBatching, StaticBatching
from driftsched_lib.validation import PROJECT

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


def test_a_preempted_request_keeps_the_time_of_its_first_token():
    load, profile = [request(name, prompt=4, output=9) for name in "ab"], make_profile(block_size=4, kv_blocks=5)
    engine, records = simulated(load, profile, log_steps=True)
    steps = pd.DataFrame(engine.steps, columns=STEP_COLUMNS)
    assert steps.preemptions.sum() == 1 and records["b"].first_token_s == steps.time_s[0]


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


def test_requests_that_can_never_be_served_fail_alone():
    sizes = {"context": (256, 1), "empty": (0, 1), "cache": (100, 102), "fits": (100, 100), "cut": (250, 100)}
    requests = [request(name, 0.0, *lengths) for name, lengths in sizes.items()]
    requests.append(request("fixed", 0.0, 250, 100, fixed_output_tokens=100))
    _, records = simulated(requests, make_profile(kv_blocks=25, block_size=8))
    outcomes = {name: record.outcome.value for name, record in records.items()}
    assert outcomes == dict.fromkeys([*sizes, "fixed"], "failed") | {"fits": "completed"}
    assert "takes 1 to 255" in records["context"].reason
    assert (records["fixed"].reason, records["fixed"].finish_s) == ("the context holds 6 of 100 fixed tokens", 0.0)
    assert "can never fit the KV cache, 25 blocks of 8 tokens" in records["cache"].reason
    _, records = simulated([request("cut", prompt=250, output=100)])
    assert records["cut"].output_tokens == 6  # vLLM ends a sequence that fills the context
    record = served([request(0)], SimulatedEngine(make_profile(), lambda request: (5, 0)))["0"]
    assert record.outcome == "failed" and record.reason == "the output has 0 tokens, it must have at least one"


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


@pytest.mark.parametrize("path", sorted((PROJECT / "data" / "profiles").glob("*.json")), ids=lambda path: path.stem)
def test_a_given_length_is_that_length_on_every_profile_whatever_the_text(path):
    given = {"0": (500, 500, 40), "3": (1, 1, 7), "700": (999, 999, 1)}  # by the words of the text
    lengths = {i: {"prompt_tokens": n, "fixed_output_tokens": output} for i, (n, _, output) in given.items()}
    _, records = simulated([request(i, 0.0, int(i), 9, **lengths[i]) for i in given], Profile.load(path))
    assert {i: (one.prompt_tokens, one.input_tokens, one.output_tokens) for i, one in records.items()} == given
    for wrong in ({"prompt_tokens": 0}, {"fixed_output_tokens": 0}, {"output": 0}):
        with pytest.raises(ValueError, match="request 'x': a length is 0, it must be at least one token"):
            request("x", **wrong)


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


@pytest.mark.parametrize("async_scheduling", [False, True], ids=["synchronous", "asynchronous"])
@pytest.mark.parametrize("seed", range(8))
def test_iterations_are_those_of_vllms_own_scheduler(seed, async_scheduling):
    """Every iteration holds the same tokens of the same kind, and a synchronous one takes what they cost.

    All requests are there at once; for odd seeds and synchronous iterations they come and go.
    """
    pytest.importorskip("vllm")
    rng = np.random.default_rng(seed)
    limits = {"max_num_seqs": int(rng.integers(2, 9)), "max_num_batched_tokens": int(rng.integers(16, 65))}
    limits |= {"max_model_len": 128, "kv_blocks": int(rng.integers(9, 20)), "async_scheduling": async_scheduling}
    load = [(0, inf, *rng.integers(1, 60, 2).tolist()) for _ in range(30)]
    if seed % 2 and not async_scheduling:
        comes, lasts = rng.integers(0, 150, 30).tolist(), rng.integers(1, 200, 30).tolist()
        load = [(begin, begin + n, *one[2:]) for begin, n, one in zip(comes, lasts, load, strict=True)]
    engine = SimulatedEngine(make_profile(**limits), log_steps=True)
    calls = lambda i, *n: engine.add(request(i, 0.0, *n)), engine.abort, lambda: engine.step(0.0)
    in_turn(load, *calls, is_busy=lambda: engine._in_flight)
    rows, costs = vllm_iterations(load, limits)
    assert [row[2:9] for row in engine.steps] == rows
    assert async_scheduling or [row[1] for row in engine.steps] == pytest.approx(costs)
    assert seed > 0 or sum(row[8] for row in engine.steps) > 0  # blocks did run out


def in_turn(load, add, abort, step, is_busy):
    """Add and abort the requests of a load (when each comes and goes, its lengths) before steps of these numbers."""
    for number in count():
        for i, (comes, goes, *lengths) in enumerate(load):
            if comes == number:
                add(str(i), *lengths)
            if goes == number:
                abort(str(i))
        if is_busy():
            step()
        elif number > max(comes for comes, *_ in load):
            return


def vllm_iterations(load, limits):
    """The iterations of vLLM's v1 scheduler: `steps` from `running` to `preemptions`, and what they cost."""
    from vllm.v1.request import RequestStatus
    from vllm.v1.utils import compute_iteration_details

    def log(scheduled):
        done = compute_iteration_details(scheduled)
        made = (done.num_generation_requests, done.num_generation_tokens, len(scheduled.preempted_req_ids or ()))
        held = (len(scheduler.running), len(scheduler.waiting))
        rows.append((*held, done.num_ctx_requests, done.num_ctx_tokens, *made))

    def schedule():
        decoding = [one for one in scheduler.running if not one.is_prefill_chunk]
        scheduled = own_schedule()
        tokens = scheduled.num_scheduled_tokens
        context = [one.num_computed_tokens for one in decoding if one.request_id in tokens]
        prefills = sum(tokens.values()) - len(context), len(tokens) - len(context)
        costs.append(seconds(prefills[0], len(context), sum(context), prefills[1]))
        return scheduled

    rows, costs, late = [], [], limits["async_scheduling"]
    limits = limits | {"kv_blocks": limits["kv_blocks"] + 1}  # one is vLLM's own null block
    kind = "async_scheduler.AsyncScheduler" if late else "scheduler.Scheduler"
    scheduler = make_vllm_scheduler(f"vllm.v1.core.sched.{kind}", **limits)
    own_schedule, scheduler.schedule = scheduler.schedule, schedule
    runner = Runner(scheduler, 1 + late, log)
    in_turn(
        load,
        lambda i, prompt, output: scheduler.add_request(make_vllm_request(i, output, prompt=prompt)),
        lambda i: scheduler.finish_requests([i], RequestStatus.FINISHED_ABORTED),
        runner.step,
        is_busy=lambda: scheduler.requests or runner.late,
    )
    return rows, costs
