"""Shares of tenants: how far apart those who always have requests queued can be, and who gains by idling."""

from itertools import combinations

import pytest
from helpers import filled, ids, make_request
from hypothesis import given
from hypothesis import strategies as st
from naive_policies import halving

from driftsched_lib.policies import DeficitRoundRobin, VirtualTokenCounter, WeightedFairQueueing
from driftsched_lib.requests import TIERS, Tier

EQUAL, TIERS_OF_A_RUN = dict.fromkeys(TIERS, Tier(weight=1)), halving(*TIERS)
WEIGHTS = {name: tier.weight for name, tier in TIERS_OF_A_RUN.items()}
LARGEST = 40
SIZES = st.lists(st.integers(1, LARGEST), min_size=30, max_size=60)


def sent_by(request_id, tenant, size=10):
    return make_request(request_id, tier=list(TIERS)[tenant % 3], total_tokens=size, tenant=f"tenant {tenant}")


def burst(name, tenant, n, size=100):
    return [sent_by(f"{name}{i}", tenant, size) for i in range(n)]


def backlog(policy, sizes):
    """As many requests for each of four tenants, of all tiers, as there are sizes; each takes the sizes in turn."""
    n = len(sizes)
    requests = [sent_by(i, i % 4, sizes[(i // 4 + 7 * (i % 4)) % n]) for i in range(4 * n)]
    return filled(policy, requests)


@pytest.mark.parametrize("one_by_one", [False, True])
@given(sizes=SIZES, actual=st.lists(st.integers(1, 2 * LARGEST), min_size=1, max_size=20))
def test_vtc_keeps_backlogged_tenants_within_the_largest_request(one_by_one, sizes, actual):
    """If requests end one after another, counters are those of the tokens made, not of those estimated."""
    policy = backlog(VirtualTokenCounter(1.0, 1.0, TIERS_OF_A_RUN), sizes)
    had = {f"tenant {tenant}": 0.0 for tenant in range(4)}
    for i in range(len(sizes) // 2 if one_by_one else len(sizes)):
        request = policy.pop(0.0)
        tokens = actual[i % len(actual)] if one_by_one else request.estimate.total_tokens
        if one_by_one:
            policy.on_finish(request, tokens)
        had[request.tenant] += tokens / WEIGHTS[request.tier]
        assert max(had.values()) - min(had.values()) <= (2 * LARGEST if one_by_one else LARGEST)


HISTORIES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(1, LARGEST)), max_size=150)


@pytest.mark.parametrize("kind", [DeficitRoundRobin, WeightedFairQueueing])
@given(history=HISTORIES, quantum=st.integers(1, 50))
def test_backlogged_tenants_stay_within_their_largest_requests_and_a_quantum_of_drr(kind, history, quantum):
    """In tokens per weight, in every stretch in which two tenants both have requests queued."""
    quantum = [quantum] if kind is DeficitRoundRobin else []
    policy = kind(*quantum, TIERS_OF_A_RUN)
    queued, had, begun = dict.fromkeys(range(3), 0), dict.fromkeys(range(3), 0.0), {}
    for i, (action, tenant, size) in enumerate(history):
        if action > 2:
            policy.add(sent_by(i, tenant, size))
            queued[tenant] += 1
        elif len(policy):
            request = policy.pop(0.0)
            tenant = int(request.tenant[-1])
            had[tenant] += request.estimate.total_tokens / WEIGHTS[request.tier]
            queued[tenant] -= 1
        for one, other in combinations(range(3), 2):
            difference = had[one] - had[other]
            if not (queued[one] and queued[other]):
                begun.pop((one, other), None)
                continue
            least, most = begun.get((one, other), (difference, difference))
            least, most = begun[one, other] = min(least, difference), max(most, difference)
            largest = [LARGEST / WEIGHTS[list(TIERS)[tenant]] for tenant in (one, other)]
            assert most - least <= sum(quantum + largest)


def test_drr_may_differ_by_more_than_a_quantum_and_the_largest_request():
    sizes = enumerate((40, 30, 40, 40))
    policy = filled(
        DeficitRoundRobin(10, EQUAL), [*(sent_by(f"a{i}", 0, size) for i, size in sizes), sent_by("b", 1, 30)]
    )
    while policy.pop(0.0).request_id != "b":
        pass
    had = {"tenant 0": 0, "tenant 1": 0}
    filled(policy, [sent_by(f"b{i}", 1, size) for i, size in enumerate((1, 40, 40, 40))])
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
    assert ids(filled(policy, [sent_by("other", 1, size=90), sent_by("large", 0, size=150)])) == ["other", "large"]


@pytest.mark.parametrize("policy", [VirtualTokenCounter, DeficitRoundRobin, WeightedFairQueueing])
def test_one_that_sends_a_lot_waits_for_itself(policy):
    requests = [*burst("many", 0, 100), *burst("one", 1, 1), *burst("other", 2, 1)]
    assert {"one0", "other0"} <= set(ids(filled(policy(tiers=EQUAL), requests))[:4])


def test_vtc_gives_no_credit_for_having_been_idle():
    policy = VirtualTokenCounter(tiers=EQUAL)
    for i in range(10):
        policy.add(sent_by(f"busy {i}", 0))
        policy.pop(0.0)
    # No one is queued: the last one who was sets the level.
    assert ids(filled(policy, [sent_by("again", 0), sent_by("newcomer", 1)])) == ["again", "newcomer"]
    assert policy.had["tenant 1"] == policy.had["tenant 0"] == 200.0
    policy = VirtualTokenCounter(tiers=EQUAL)  # its counter may have been corrected since
    policy.add(sent_by("long", 0))
    policy.on_finish(policy.pop(0.0), 500)
    policy.add(sent_by("newcomer", 1))
    assert policy.had["tenant 1"] == 1000.0


@pytest.mark.parametrize("policy", [VirtualTokenCounter, DeficitRoundRobin, WeightedFairQueueing])
def test_a_request_that_comes_back_is_charged_once(policy):
    policy = filled(policy(tiers=EQUAL), [sent_by(i, i % 2, 100) for i in range(16)])
    mine = next(request for request in iter(lambda: policy.pop(0.0), None) if request.tenant == "tenant 0")
    for _ in range(5):
        for request_id in [request.request_id for request in policy if request.tenant == "tenant 0"]:
            policy.remove(request_id)
        policy.add(mine)
        while policy.pop(0.0) is not mine:
            pass
    filled(policy, burst("c", 0, 8))
    left = len(policy._lanes["tenant 1"])
    assert "tenant 0" in [policy.pop(0.0).tenant for _ in range(left + 2)]


@pytest.mark.parametrize("policy", [VirtualTokenCounter, WeightedFairQueueing])
def test_what_is_cancelled_in_the_queue_leaves_no_trace(policy):
    policy = filled(policy(tiers=EQUAL), burst("many ", 0, 100))
    for i in range(99):
        policy.remove(f"many {i}")
    assert "many 99" in ids(filled(policy, burst("other", 1, 5)))[:2]


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
