"""Shares of tenants: how far apart those who always have requests queued can be, and who gains by idling."""

from itertools import combinations

import pytest
from helpers import filled, make_request
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


def test_drr_skips_the_rounds_in_which_none_can_pay():
    """Prompts of a thousand quanta take a few looks at each tenant, not a thousand."""
    looks = []

    class Counting(DeficitRoundRobin):
        def _price(self, request):
            looks.append(request)
            return super()._price(request)

    policy = filled(Counting(1, EQUAL), [sent_by(i, i, 1000 + 7 * i % 50) for i in range(100)])
    assert policy.pop(0.0).request_id == "0" and len(looks) < 6 * 100


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
