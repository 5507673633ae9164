"""What the policies by size, wait and deadline promise, their limits, and the forms that engines proposed."""

from functools import partial
from itertools import permutations
from math import exp
from statistics import mean

import pytest
from helpers import filled, ids, make_request
from hypothesis import given
from hypothesis import strategies as st
from naive_policies import halving

from driftsched_lib.policies import (
    AgingShortestJobFirst,
    Boost,
    EarliestDeadline,
    Express,
    Fifo,
    Gittins,
    Hrrn,
    ShortestJobFirst,
    TailInflatedExpectation,
)
from driftsched_lib.policies import SigmoidShortestJobFirst as Sigmoid
from driftsched_lib.requests import TIERS, Tier

SIZES_AND_ARRIVALS = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 50)), min_size=1, max_size=30)


def queue_of(policy, sizes_and_arrivals):
    """The policy with these requests queued, added in the order of arrival."""
    in_order = sorted(sizes_and_arrivals, key=lambda pair: pair[1])
    return filled(policy, [make_request(i, at, total_tokens=size) for i, (size, at) in enumerate(in_order)])


def popped_at(policy, now):
    return [policy.pop(now).request_id for _ in range(len(policy))]


@pytest.mark.parametrize(
    ("kind", "fifo", "sjf", "now"),
    [
        (Hrrn, {"exponent": 0}, {"exponent": 16}, 1e6),  # when all have waited for nearly as long
        (partial(Boost, tokens_per_s=1.0), {"decay": 50.0}, {"decay": 1e-7}, 0.0),
        (partial(Sigmoid, wait_median_s=32.0, size_median=32.0), {"wait_weight": 1}, {"wait_weight": 0}, 60.0),
    ],
)
@given(requests=SIZES_AND_ARRIVALS)
def test_at_its_extremes_it_is_fifo_and_sjf(kind, fifo, sjf, now, requests):
    assert popped_at(queue_of(kind(**fifo), requests), now) == popped_at(queue_of(Fifo(), requests), 0.0)
    assert popped_at(queue_of(kind(**sjf), requests), now) == popped_at(queue_of(ShortestJobFirst(), requests), 0.0)


def test_hrrn_holds_more_sizes_than_it_has_slots_at_first_and_forgets_what_is_removed():
    policy = queue_of(Hrrn(), [(size, 0) for size in range(1, 400)])
    assert popped_at(policy, 1000.0) == list(map(str, range(399)))
    policy = filled(Hrrn(), [make_request(i, arrival_s=i) for i in range(10)])
    for i in range(10, 1000):
        policy.add(make_request(i, arrival_s=i))
        policy.remove(str(i))
    assert sum(map(len, policy._lanes.values())) <= 20 and popped_at(policy, 0.0) == [str(i) for i in range(10)]


@given(requests=st.lists(st.tuples(st.sampled_from([8, 24, 56]), st.integers(0, 50)), max_size=20))
def test_with_a_scale_it_orders_as_the_score_proposed_to_tensorrt(requests):
    length_weight, time_weight, time_median = 0.5, 0.25, 16.0
    rate = 8 * time_weight / (length_weight * time_median)
    policy = queue_of(AgingShortestJobFirst(rate, scale_tokens=8), requests)

    def score(request):
        length = length_weight / (1 + request.estimate.total_tokens / 8)
        return length + time_weight * (100 - request.arrival_s) / time_median

    in_order = sorted(policy, key=lambda request: (-score(request), int(request.request_id)))
    assert popped_at(policy, 100.0) == ids(in_order)


@given(requests=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=5))
def test_boost_makes_the_mean_of_the_exponential_of_response_times_least(requests):
    """Of requests that are all here, in any order, one after another at a token a second."""

    def cost(order):
        done, total = 10.0, 0.0
        for request in order:
            done += request.estimate.total_tokens
            total += exp((done - request.arrival_s) / 8)
        return total

    queued = list(queue_of(Boost(decay=1 / 8, tokens_per_s=1.0), requests))
    assert cost(queued) == pytest.approx(min(map(cost, permutations(queued))))
    long_service = make_request(1, arrival_s=3.0, total_tokens=10**6)
    assert Boost(decay=10.0, tokens_per_s=1.0).key(long_service) == 3.0  # nothing overflows


def passed_by(policy, requests):
    """A request, one that came later and was popped before it, and when, in a stream of two arrivals per pop."""
    in_time, passed = [], []
    for i, (size, arrival) in enumerate(sorted(requests, key=lambda pair: pair[1])):
        in_time.append(make_request(i, arrival, ("standard", "batch")[size % 2], size))
        policy.add(in_time[-1])
        if i % 2:
            first = policy.pop(arrival)
            in_time.remove(first)
            passed += [(waiting, first, arrival) for waiting in in_time if waiting.arrival_s < first.arrival_s]
    return passed


@given(requests=SIZES_AND_ARRIVALS)
def test_no_request_is_passed_by_those_that_came_too_late(requests):
    """Each policy's own bound, of requests of at most 40 tokens."""
    slos = {"standard": Tier(ttft_slo_s=4.0), "batch": Tier(ttft_slo_s=9.0)}
    for waiting, first, _ in passed_by(AgingShortestJobFirst(rate=4.0), requests):
        assert first.arrival_s - waiting.arrival_s <= 40 / 4.0
    boost = Boost(decay=0.5, tokens_per_s=8.0)
    for waiting, first, _ in passed_by(boost, requests):
        boosts = [request.arrival_s - boost.key(request) for request in (first, waiting)]
        assert first.arrival_s - waiting.arrival_s <= boosts[0] - boosts[1] + 1e-9
    for waiting, first, _ in passed_by(EarliestDeadline(slos), requests):
        assert first.arrival_s - waiting.arrival_s <= 9.0 - 4.0
    for waiting, first, now in passed_by(Hrrn(), requests):
        smaller = first.estimate.total_tokens / waiting.estimate.total_tokens
        assert now - first.arrival_s >= (now - waiting.arrival_s) * smaller - 1e-9


def test_the_sigmoid_form_starves_a_long_request_and_hrrn_does_not():
    """A short request a second, one served a second, for ten minutes, and thirty that were there before."""
    for policy, starves in ((Sigmoid(size_median=64.0), True), (Hrrn(), False)):
        filled(policy, [make_request("long", total_tokens=100), *(make_request(f"early {i}") for i in range(30))])
        served = []
        for now in range(1, 600):
            policy.add(make_request(now, arrival_s=now))
            served.append(policy.pop(float(now + 1)).request_id)
        assert ("long" not in served) == starves


SLO_S = {"premium": 4, "standard": 10, "batch": 25}


@given(queued=st.lists(st.tuples(st.sampled_from(list(SLO_S)), st.integers(-5, 0)), max_size=6))
def test_edf_meets_every_deadline_that_an_order_meets(queued):
    """Of requests of a size that are all here at time 0 and start one after another, three seconds apart."""
    policy = EarliestDeadline({name: Tier(ttft_slo_s=slo) for name, slo in SLO_S.items()})
    filled(policy, [make_request(i, arrival, tier) for i, (tier, arrival) in enumerate(queued)])

    def all_met(order):
        return all(3 * i <= request.arrival_s + SLO_S[request.tier] for i, request in enumerate(order))

    assert all_met(policy) == any(map(all_met, permutations(policy)))


DISTRIBUTIONS = st.lists(st.integers(1, 30), min_size=4, max_size=4).map(sorted)


def distributed(i, quantiles, **fields):
    return make_request(i, total_tokens=sorted(quantiles)[1], quantiles=tuple(quantiles), **fields)


@pytest.mark.parametrize("policy", [Gittins, TailInflatedExpectation, Express])
@given(sizes=st.lists(st.integers(1, 9), max_size=30))
def test_of_points_it_is_sjf(policy, sizes):
    options = {"express_share": 1, "fifo_share": 0, "lead_tokens": 1e9} if policy is Express else {}
    requests = [make_request(i, total_tokens=size) for i, size in enumerate(sizes)]
    assert ids(filled(policy(**options), requests)) == ids(filled(ShortestJobFirst(), requests))


def test_gittins_bets_on_an_early_end_the_expectation_does_not_and_tie_adds_a_share_of_the_tails_mean():
    gamble, sure = distributed("gamble", (1, 1, 100, 100)), distributed("sure", (20, 20, 20, 20))
    assert Gittins().key(gamble) == 2.0  # half end after one token, which costs one token each
    assert Gittins().key(sure) == TailInflatedExpectation(weight=0).key(sure) == 20.0
    assert TailInflatedExpectation(weight=0).key(gamble) == 50.5
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
    filled(policy, [distributed(i, quantiles, tier=tier) for i, (quantiles, tier) in enumerate(queued)])

    def cost(order):
        end = total = 0.0
        for request in order:
            end += mean(request.estimate.quantiles)
            total += tiers[request.tier].weight * end
        return total

    assert cost(policy) == pytest.approx(min(map(cost, permutations(policy))))
