"""Policies that know a size as a distribution."""

from itertools import permutations
from statistics import mean

import pytest
from helpers import make_request
from hypothesis import given
from hypothesis import strategies as st
from naive_policies import halving

from driftsched_lib.policies import Express, Gittins, ShortestJobFirst, TailInflatedExpectation
from driftsched_lib.requests import TIERS

DISTRIBUTIONS = st.lists(st.integers(1, 30), min_size=4, max_size=4).map(sorted)


def distributed(i, quantiles, **fields):
    return make_request(i, total_tokens=sorted(quantiles)[1], quantiles=tuple(quantiles), **fields)


@pytest.mark.parametrize("policy", [Gittins, TailInflatedExpectation, Express])
@given(sizes=st.lists(st.integers(1, 9), max_size=30))
def test_of_points_it_is_sjf(policy, sizes):
    options = {"express_share": 1, "fifo_share": 0, "lead_tokens": 1e9} if policy is Express else {}
    queues = [policy(**options), ShortestJobFirst()]
    for i, size in enumerate(sizes):
        for queue in queues:
            queue.add(make_request(i, total_tokens=size))
    assert [request.request_id for request in queues[0]] == [request.request_id for request in queues[1]]


def test_gittins_bets_on_an_early_end_and_the_expectation_does_not():
    gamble, sure = distributed("gamble", (1, 1, 100, 100)), distributed("sure", (20, 20, 20, 20))
    assert Gittins().key(gamble) == 2.0  # half end after one token, which costs one token each
    assert Gittins().key(sure) == TailInflatedExpectation(weight=0).key(sure) == 20.0
    assert TailInflatedExpectation(weight=0).key(gamble) == 50.5


def test_tie_is_the_mean_and_a_share_of_the_tails_mean():
    request = distributed(1, (10, 20, 30, 100), input_tokens=5)
    assert TailInflatedExpectation(weight=0.5, tail=0.5).key(request) == 45.0 + 0.5 * 70.0
    assert TailInflatedExpectation(weight=0.5, tail=0.1).key(request) == 45.0 + 0.5 * 105.0


@given(queued=st.lists(st.tuples(DISTRIBUTIONS, st.sampled_from(list(TIERS))), min_size=1, max_size=5))
def test_no_order_has_a_smaller_expected_cost_than_that_of_express(queued):
    """Of requests that are all here and not preempted, a second a token costing each its weight: Rothkopf's result.

    Below the cap the order is Express's own; a request's expected end is the sum of the means before it and its own.
    """
    tiers = halving(*TIERS)
    policy = Express(express_share=1, fifo_share=0, lead_tokens=1e9, tiers=tiers)
    for i, (quantiles, tier) in enumerate(queued):
        policy.add(distributed(i, quantiles, tier=tier))

    def cost(order):
        end = total = 0.0
        for request in order:
            end += mean(request.estimate.quantiles)
            total += tiers[request.tier].weight * end
        return total

    assert cost(policy) == pytest.approx(min(map(cost, permutations(policy))))
