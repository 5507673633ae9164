"""Shares of tenants: how far apart those who always have requests queued can be, and who gains by idling."""

import pytest
from helpers import make_request
from hypothesis import given
from hypothesis import strategies as st
from naive_policies import halving

from driftsched_lib.policies import DeficitRoundRobin, VirtualTokenCounter, WeightedFairQueueing
from driftsched_lib.requests import TIERS, Tier

EQUAL, TIERS_OF_A_RUN = dict.fromkeys(TIERS, Tier(weight=1)), halving(*TIERS)
WEIGHTS = {name: tier.weight for name, tier in TIERS_OF_A_RUN.items()}
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
    tier = list(TIERS)[tenant % 3]
    return make_request(request_id, tier=tier, total_tokens=size, tenant=f"tenant {tenant}")


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
    policy = backlog(VirtualTokenCounter(1.0, 1.0, TIERS_OF_A_RUN), sizes)
    assert widest(shares(policy, len(sizes))) <= LARGEST


@given(sizes=SIZES, actual=st.lists(st.integers(1, 2 * LARGEST), min_size=1, max_size=20))
def test_vtc_corrects_estimates_by_what_was_observed(sizes, actual):
    """Requests end one after another: counters are then those of the tokens made, not of those estimated."""
    policy = backlog(VirtualTokenCounter(1.0, 1.0, TIERS_OF_A_RUN), sizes)
    had = dict.fromkeys(policy.had, 0.0)
    for i in range(len(sizes) // 2):
        request, tokens = policy.pop(0.0), actual[i % len(actual)]
        policy.on_finish(request, tokens)
        had[request.tenant] += tokens / WEIGHTS[request.tier]
        assert max(had.values()) - min(had.values()) <= 2 * LARGEST


HISTORIES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(1, LARGEST)), max_size=150)


def apart(policy, history, allowed):
    """In every stretch in which two tenants both have requests queued, `allowed(one, other)` tokens per weight."""
    queued, begun = dict.fromkeys(range(3), 0), {}
    had = dict.fromkeys(range(3), 0.0)
    for i, (action, tenant, size) in enumerate(history):
        if action > 2:
            policy.add(sent_by(i, tenant, size))
            queued[tenant] += 1
        elif len(policy):
            request = policy.pop(0.0)
            tenant = int(request.tenant[-1])
            had[tenant] += request.estimate.total_tokens / WEIGHTS[request.tier]
            queued[tenant] -= 1
        for one, other in ((0, 1), (0, 2), (1, 2)):
            difference = had[one] - had[other]
            if not (queued[one] and queued[other]):
                begun.pop((one, other), None)
                continue
            least, most = begun.get((one, other), (difference, difference))
            least, most = begun[one, other] = min(least, difference), max(most, difference)
            assert most - least <= allowed(*(WEIGHTS[list(TIERS)[tenant]] for tenant in (one, other)))


@given(history=HISTORIES, quantum=st.integers(1, 50))
def test_drr_keeps_backlogged_tenants_within_a_quantum_and_their_largest_requests(history, quantum):
    apart(
        DeficitRoundRobin(quantum, TIERS_OF_A_RUN),
        history,
        lambda one, other: quantum + LARGEST / one + LARGEST / other,
    )


@given(history=HISTORIES)
def test_start_tags_keep_backlogged_tenants_within_their_largest_requests(history):
    apart(WeightedFairQueueing(TIERS_OF_A_RUN), history, lambda one, other: LARGEST / one + LARGEST / other)


def test_drr_may_differ_by_more_than_a_quantum_and_the_largest_request():
    policy = DeficitRoundRobin(10, EQUAL)
    for i, size in enumerate((40, 30, 40, 40)):
        policy.add(sent_by(f"a{i}", 0, size))
    policy.add(sent_by("b", 1, 30))
    while policy.pop(0.0).request_id != "b":
        pass
    had = {"tenant 0": 0, "tenant 1": 0}
    for i, size in enumerate((1, 40, 40, 40)):
        policy.add(sent_by(f"b{i}", 1, size))
    widest = 0
    while policy._lanes.keys() == had.keys():
        request = policy.pop(0.0)
        had[request.tenant] += request.estimate.total_tokens
        widest = max(widest, abs(had["tenant 0"] - had["tenant 1"]))
    assert 10 + 40 < widest <= 10 + 2 * 40


def test_drr_does_not_keep_what_an_idle_tenant_has_left():
    policy = DeficitRoundRobin(100, EQUAL)
    policy.add(sent_by("only", 0, size=1))
    policy.pop(0.0)
    policy.add(sent_by("other", 1, size=90))
    policy.add(sent_by("large", 0, size=150))
    assert [request.request_id for request in policy] == ["other", "large"]


@pytest.mark.parametrize("policy", [VirtualTokenCounter, DeficitRoundRobin, WeightedFairQueueing])
def test_one_that_sends_a_lot_waits_for_itself(policy):
    policy = policy(tiers=EQUAL)
    for i in range(100):
        policy.add(sent_by(f"many {i}", 0, size=100))
    for tenant in (1, 2):
        policy.add(sent_by(f"one of {tenant}", tenant, size=100))
    assert {"one of 1", "one of 2"} <= {policy.pop(0.0).request_id for _ in range(4)}


def test_vtc_gives_no_credit_for_having_been_idle():
    policy = VirtualTokenCounter(tiers=EQUAL)
    for i in range(10):
        policy.add(sent_by(f"busy {i}", 0))
        policy.pop(0.0)
    policy.add(sent_by("busy again", 0))  # no one is queued: the last one who was sets the level
    policy.add(sent_by("newcomer", 1))
    assert policy.had["tenant 1"] == policy.had["tenant 0"] == 200.0
    assert [request.request_id for request in policy] == ["busy again", "newcomer"]


def test_vtc_lifts_to_what_the_last_tenants_counter_is_by_then():
    policy = VirtualTokenCounter(tiers=EQUAL)
    policy.add(sent_by("long", 0))
    policy.on_finish(policy.pop(0.0), 500)
    policy.add(sent_by("newcomer", 1))
    assert policy.had["tenant 1"] == 1000.0


@pytest.mark.parametrize("policy", [VirtualTokenCounter, DeficitRoundRobin, WeightedFairQueueing])
def test_a_request_that_comes_back_is_charged_once(policy):
    policy = policy(tiers=EQUAL)
    for i in range(8):
        policy.add(sent_by(f"a{i}", 0, 100))
        policy.add(sent_by(f"b{i}", 1, 100))
    mine = next(request for request in iter(lambda: policy.pop(0.0), None) if request.tenant == "tenant 0")
    for _ in range(5):
        for i in range(8):
            if f"a{i}" in policy._alive:
                policy.remove(f"a{i}")
        policy.add(mine)
        while policy.pop(0.0) is not mine:
            pass
    for i in range(10, 18):
        policy.add(sent_by(f"a{i}", 0, 100))
    left = len(policy._lanes["tenant 1"])
    first = [policy.pop(0.0).tenant for _ in range(left + 2)]
    assert "tenant 0" in first


@pytest.mark.parametrize("policy", [VirtualTokenCounter, WeightedFairQueueing])
def test_what_is_cancelled_in_the_queue_leaves_no_trace(policy):
    policy = policy(tiers=EQUAL)
    for i in range(100):
        policy.add(sent_by(f"many {i}", 0, 100))
    for i in range(99):
        policy.remove(f"many {i}")
    for i in range(5):
        policy.add(sent_by(f"other {i}", 1, 100))
    assert "many 99" in [request.request_id for request in policy][:2]


@pytest.mark.parametrize("policy", [VirtualTokenCounter, WeightedFairQueueing, DeficitRoundRobin])
def test_tenants_that_are_gone_are_forgotten(policy):
    policy = policy()
    for i in range(5000):
        policy.add(sent_by(i, i))
        policy.on_finish(policy.pop(0.0), 10)
    kept = policy._left if isinstance(policy, DeficitRoundRobin) else policy.had
    assert len(kept) < 300 and not policy._lanes and not getattr(policy, "_charged", None)


def test_who_moves_often_leaves_little_behind():
    policy = backlog(VirtualTokenCounter(), [10] * 30)
    for _ in range(1000):
        request = policy.pop(0.0)
        policy.on_finish(request, 11)
        policy.add(request)
    assert len(policy._heap) <= 9
