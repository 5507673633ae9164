"""Shares of tenants: how far apart those who always have requests queued can be, and who gains by idling."""

import pytest
from helpers import make_request
from hypothesis import given
from hypothesis import strategies as st

from driftsched_lib.policies import DeficitRoundRobin, MultilevelFeedback, VirtualTokenCounter, WeightedFairQueueing
from driftsched_lib.requests import TIERS

WEIGHTS = {"premium": 4, "standard": 2, "batch": 1}
LARGEST = 40
SIZES = st.lists(st.integers(1, LARGEST), min_size=30, max_size=60)


def backlog(policy, sizes, tenants=4):
    """As many requests for each tenant as there are sizes, the tenants of all tiers; each takes the sizes in turn."""
    n = 0
    for round_ in range(len(sizes)):
        for tenant in range(tenants):
            n += 1
            policy.add(sent_by(n, tenant, sizes[(round_ + 7 * tenant) % len(sizes)]))
    return policy


def sent_by(request_id, tenant, size=10):
    request = make_request(request_id, tier=TIERS[tenant % 3], total_tokens=size)
    request.tenant = f"tenant {tenant}"
    return request


def shares(policy, pops, tenants=4, after=lambda request: None):
    """Tokens per weight that each tenant has had after each pop."""
    had = {f"tenant {tenant}": 0.0 for tenant in range(tenants)}
    for _ in range(pops):
        request = policy.pop(0.0)
        had[request.tenant] += request.estimate.total_tokens / WEIGHTS[request.tier]
        yield dict(had)
        after(request)


def widest(shares):
    return max(max(had.values()) - min(had.values()) for had in shares)


@given(sizes=SIZES)
def test_vtc_keeps_backlogged_tenants_within_the_largest_request(sizes):
    policy = backlog(VirtualTokenCounter(WEIGHTS, input_price=1.0, output_price=1.0), sizes)
    assert widest(shares(policy, len(sizes))) <= LARGEST


@given(sizes=SIZES, actual=st.lists(st.integers(1, 2 * LARGEST), min_size=1, max_size=20))
def test_vtc_corrects_estimates_by_what_was_observed(sizes, actual):
    """Requests end one after another: counters are then those of the tokens made, not of those estimated."""
    policy = backlog(VirtualTokenCounter(WEIGHTS, input_price=1.0, output_price=1.0), sizes)
    had = dict.fromkeys(policy.counters, 0.0)
    for i in range(len(sizes) // 2):
        request, tokens = policy.pop(0.0), actual[i % len(actual)]
        policy.completed(request, tokens)
        had[request.tenant] += tokens / WEIGHTS[request.tier]
        assert max(had.values()) - min(had.values()) <= 2 * LARGEST


@given(sizes=SIZES)
def test_start_tags_keep_backlogged_tenants_within_two_requests(sizes):
    """Golestani's measure for start-time fair queueing: the largest request of the one and of the other."""
    assert widest(shares(backlog(WeightedFairQueueing(WEIGHTS), sizes), len(sizes))) <= 2 * LARGEST


@given(sizes=SIZES, quantum=st.integers(1, 50))
def test_drr_keeps_backlogged_tenants_within_a_quantum_and_the_largest_request(sizes, quantum):
    policy = backlog(DeficitRoundRobin(quantum, WEIGHTS), sizes)
    assert widest(shares(policy, len(sizes))) <= quantum + LARGEST


def test_drr_does_not_keep_what_an_idle_tenant_has_left():
    policy = DeficitRoundRobin(quantum_tokens=100, weights=dict.fromkeys(TIERS, 1))
    policy.add(sent_by("only", 0, size=1))
    policy.pop(0.0)
    policy.add(sent_by("other", 1, size=90))
    policy.add(sent_by("large", 0, size=150))
    assert [request.request_id for request in policy] == ["other", "large"]


@pytest.mark.parametrize("policy", [VirtualTokenCounter, DeficitRoundRobin, WeightedFairQueueing])
def test_one_that_sends_a_lot_waits_for_itself(policy):
    policy = policy(weights=dict.fromkeys(TIERS, 1))
    for i in range(100):
        policy.add(sent_by(f"many {i}", 0, size=100))
    for tenant in (1, 2):
        policy.add(sent_by(f"one of {tenant}", tenant, size=100))
    assert {"one of 1", "one of 2"} <= {policy.pop(0.0).request_id for _ in range(4)}


def test_vtc_gives_no_credit_for_having_been_idle():
    policy = VirtualTokenCounter(dict.fromkeys(TIERS, 1))
    for i in range(10):
        policy.add(sent_by(f"busy {i}", 0))
        policy.pop(0.0)
    policy.add(sent_by("busy again", 0))  # no one is queued: the last one who was sets the level
    policy.add(sent_by("newcomer", 1))
    assert policy.counters["tenant 1"] == policy.counters["tenant 0"] == 200.0
    assert [request.request_id for request in policy] == ["busy again", "newcomer"]


def test_a_tenant_sinks_by_what_was_observed_and_comes_back_with_all_others():
    policy = MultilevelFeedback(quantum_tokens=10, levels=3, reset_tokens=100)
    heavy, light = sent_by("heavy", 0), sent_by("light", 1)
    policy.completed(sent_by("before", 0), 29)
    assert policy.level("tenant 0") == 1
    policy.completed(sent_by("before", 0), 1)
    assert policy.level("tenant 0") == 2  # 10 at the top, 20 at the next
    policy.add(heavy)
    policy.add(light)
    assert [request.request_id for request in policy] == ["light", "heavy"]
    policy.completed(sent_by("before", 0), 70)
    assert policy.level("tenant 0") == 0 and [request.request_id for request in policy] == ["heavy", "light"]


def test_who_moves_often_leaves_little_behind():
    policy = backlog(VirtualTokenCounter(), [10] * 30)
    for _ in range(1000):
        policy.completed(sent_by("ended", 0), 11)
    assert len(policy._heap) <= 9


@pytest.mark.parametrize(
    ("policy", "options", "message"),
    [
        (VirtualTokenCounter, {"weights": WEIGHTS | {"batch": 0}}, "weights is .* above 0"),
        (VirtualTokenCounter, {"output_price": 0.0}, "output_price is 0.0"),
        (VirtualTokenCounter, {"input_price": -1.0}, "input_price is -1.0"),
        (DeficitRoundRobin, {"quantum_tokens": 0}, "quantum_tokens is 0"),
        (WeightedFairQueueing, {"weights": {"gold": 1}}, "weights is .* must name"),
        (MultilevelFeedback, {"levels": 0}, "levels is 0"),
    ],
)
def test_parameters_are_checked(policy, options, message):
    with pytest.raises(ValueError, match=message):
        policy(**options)
