"""Policies that take slots back: whose, and who is never left out."""

import pytest
from helpers import filled, make_request
from hypothesis import given
from hypothesis import strategies as st
from naive_policies import to_come

from driftsched_lib.policies import POLICIES, MultilevelFeedback

RUNNING = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 60), st.integers(0, 60)), max_size=6)


@pytest.mark.parametrize("name", [name for name, policy in POLICIES.items() if policy.preemptive])
@given(waiting=st.lists(st.tuples(st.integers(1, 60), st.integers(0, 40)), max_size=4), running=RUNNING)
def test_the_victim_is_the_one_that_a_scan_finds(name, waiting, running):
    policy = POLICIES[name](**{"srpt": {"recompute": 0.25}, "mlfq": {"quantum_tokens": 4, "levels": 3}}[name])
    filled(policy, [running_request(f"queued {i}", 1, *lengths) for i, lengths in enumerate(waiting)])
    first = [policy.peek(0.0)] if waiting else []
    requests = [running_request(i, *lengths) for i, lengths in enumerate(running)]
    victim = policy.victim(requests, 0.0)
    if name == "srpt":
        gains = [to_come(r) - (r.input_tokens + r.num_output_tokens) / 4 - to_come(q) for r in requests for q in first]
    else:
        gains = [level(r.num_output_tokens) for r in requests for _ in first]  # the first peek boosts all that wait
    assert victim is (requests[gains.index(max(gains))] if max(gains, default=0) > 0 else None)


def level(num_output_tokens):
    """With a quantum of 4 tokens and three levels."""
    return sum(num_output_tokens >= end for end in (4, 12))


def running_request(request_id, input_tokens, output, made):
    return make_request(request_id, total_tokens=output, input_tokens=input_tokens, num_output_tokens=made)


@given(made=st.lists(st.integers(0, 99), min_size=1, max_size=20), later=st.floats(60.0, 1000.0))
def test_after_a_boost_mlfq_serves_in_the_order_of_queueing(made, later):
    """So none waits longer than `boost_s`, and then for those before it."""
    policy = MultilevelFeedback(quantum_tokens=4, boost_s=60.0)
    policy.victim([], 0.0)
    filled(policy, [running_request(i, 1, 99, tokens) for i, tokens in enumerate(made)])
    first = policy.peek(0.0)
    policy.add(running_request("late", 1, 99, 0))
    assert [policy.pop(later).request_id for _ in range(len(made) + 1)] == [*map(str, range(len(made))), "late"]
    assert policy.key(first) == 0  # with a new quantum
    policy = filled(MultilevelFeedback(quantum_tokens=4), [running_request(1, 1, 99, 50)])
    policy.on_finish(policy.pop(0.0), 99)
    assert not policy._made_before  # what a boost noted is forgotten with the request
