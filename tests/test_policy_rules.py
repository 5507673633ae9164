"""What the policies by size, wait and preemption promise, their limits, and the forms that engines proposed."""

from functools import partial
from itertools import accumulate, permutations
from math import exp, log
from statistics import mean

import pytest
from helpers import filled, make_request
from hypothesis import given
from hypothesis import strategies as st
from naive_policies import halving, to_come

from driftsched_lib import policies
from driftsched_lib.policies import POLICIES, AgingShortestJobFirst, Boost, Fifo, ShortestJobFirst
from driftsched_lib.requests import TIERS, Tier

SIZES_AND_ARRIVALS = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 50)), min_size=1, max_size=30)


def order(policy, sizes_and_arrivals, now):
    """Return the ids that the policy pops at `now`, of requests added in the order of arrival."""
    in_order = sorted(sizes_and_arrivals, key=lambda pair: pair[1])
    filled(policy, [make_request(i, at, total_tokens=size) for i, (size, at) in enumerate(in_order)])
    return [policy.pop(now).request_id for _ in in_order]


@pytest.mark.parametrize(
    ("kind", "fifo", "sjf", "now"),
    [
        (policies.Hrrn, {"exponent": 0}, {"exponent": 16}, 1e6),  # when all have waited for nearly as long
        (partial(Boost, tokens_per_s=1.0), {"decay": 50.0}, {"decay": 1e-7}, 0.0),
        (
            partial(policies.SigmoidShortestJobFirst, wait_median_s=32.0, size_median=32.0),
            *({"wait_weight": 1}, {"wait_weight": 0}, 60.0),
        ),
    ],
)
@given(requests=SIZES_AND_ARRIVALS)
def test_at_its_extremes_it_is_fifo_and_sjf(kind, fifo, sjf, now, requests):
    assert order(kind(**fifo), requests, now) == order(Fifo(), requests, 0.0)
    assert order(kind(**sjf), requests, now) == order(ShortestJobFirst(), requests, 0.0)


def test_hrrn_holds_more_sizes_than_it_has_slots_at_first_and_forgets_what_is_removed():
    assert order(policies.Hrrn(), [(size, 0) for size in range(1, 400)], 1000.0) == list(map(str, range(399)))
    policy = filled(policies.Hrrn(), [make_request(i, arrival_s=i) for i in range(10)])
    for i in range(10, 1000):
        policy.add(make_request(i, arrival_s=i))
        policy.remove(str(i))
    assert sum(map(len, policy._lanes.values())) <= 20
    assert [policy.pop(0.0).request_id for _ in range(10)] == [str(i) for i in range(10)]


GAMBLE, SURE, SPREAD = ({"quantiles": q} for q in ((1, 1, 100, 100), (20, 20, 20, 20), (10, 20, 30, 100)))


@pytest.mark.parametrize(
    ("policy", "request_", "key"),
    [
        # The score proposed to TensorRT-LLM, which rises with 1 / (1 + size / scale) and the wait.
        (
            AgingShortestJobFirst(0.5, scale_tokens=8),
            {"total_tokens": 24, "arrival_s": 10.0},
            8 * (1 - 1 / 4) + 5.0,
        ),
        (
            Boost(decay=10.0, tokens_per_s=1.0),
            {"total_tokens": 10**6, "arrival_s": 3.0},
            3.0,
        ),  # nothing overflows
        (policies.Gittins(), GAMBLE, 2.0),  # half end after one token, which costs one token each
        (policies.Gittins(), SURE, 20.0),
        (policies.TailInflatedExpectation(weight=0), SURE, 20.0),
        (policies.TailInflatedExpectation(weight=0), GAMBLE, 50.5),
        (policies.TailInflatedExpectation(weight=0.5, tail=0.5), SPREAD | {"input_tokens": 5}, 45.0 + 0.5 * 70.0),
        (policies.TailInflatedExpectation(weight=0.5, tail=0.1), SPREAD | {"input_tokens": 5}, 45.0 + 0.5 * 105.0),
    ],
)
def test_a_key_is_what_the_rule_says(policy, request_, key):
    assert policy.key(make_request(1, **request_)) == key


SLOS = {"premium": 4, "standard": 10, "batch": 25}
LEAST_COST = {  # a policy, the size that it counts, what a request that ends then costs, and what is made of these
    "boost": (
        partial(Boost, decay=1 / 8, tokens_per_s=1.0),
        lambda quantiles: 8 * log(mean(exp(tokens / 8) for tokens in quantiles)),
        lambda request, end_s: exp((end_s - request.arrival_s) / 8),
        sum,
    ),
    "edf": (
        partial(policies.EarliestDeadline, {name: Tier(ttft_slo_s=slo) for name, slo in SLOS.items()}),
        mean,
        lambda request, end_s: end_s - request.arrival_s - SLOS[request.tier],
        max,
    ),
    "express": (  # Rothkopf's result, below the cap
        partial(policies.Express, express_share=1, fifo_share=0, lead_tokens=1e9, tiers=halving(*TIERS)),
        mean,
        lambda request, end_s: halving(*TIERS)[request.tier].weight * end_s,
        sum,
    ),
}
DISTRIBUTIONS = st.lists(st.integers(1, 30), min_size=4, max_size=4).map(sorted)
QUEUED = st.tuples(DISTRIBUTIONS, st.integers(-9, 0), st.sampled_from(list(TIERS)))


@pytest.mark.parametrize("name", LEAST_COST)
@given(queued=st.lists(QUEUED, min_size=1, max_size=5))
def test_no_order_costs_less(name, queued):
    """Of requests that are all here at time 0 and served one after another at a token a second, in expectation."""
    policy, size, cost, together = LEAST_COST[name]
    requests = [make_request(i, at, tier, quantiles=quantiles) for i, (quantiles, at, tier) in enumerate(queued)]
    served = list(filled(policy(), requests))

    def cost_of(order):
        return together(map(cost, order, accumulate(size(request.estimate.quantiles) for request in order)))

    assert cost_of(served) == pytest.approx(min(map(cost_of, permutations(served))))


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
    policy = policies.MultilevelFeedback(quantum_tokens=4, boost_s=60.0)
    policy.victim([], 0.0)
    filled(policy, [running_request(i, 1, 99, tokens) for i, tokens in enumerate(made)])
    first = policy.peek(0.0)
    policy.add(running_request("late", 1, 99, 0))
    assert [policy.pop(later).request_id for _ in range(len(made) + 1)] == [*map(str, range(len(made))), "late"]
    assert policy.key(first) == 0  # with a new quantum
    policy = filled(policies.MultilevelFeedback(quantum_tokens=4), [running_request(1, 1, 99, 50)])
    policy.on_finish(policy.pop(0.0), 99)
    assert not policy._made_before  # what a boost noted is forgotten with the request
