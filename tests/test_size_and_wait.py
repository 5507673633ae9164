"""Policies between SJF and FIFO: their limits, what they promise, and the forms that engines proposed."""

from itertools import permutations
from math import exp

import pytest
from helpers import make_request
from hypothesis import given
from hypothesis import strategies as st

from driftsched_lib.policies import AgingShortestJobFirst, Boost, EarliestDeadline, Fifo, Hrrn, ShortestJobFirst
from driftsched_lib.policies import SigmoidShortestJobFirst as Sigmoid
from driftsched_lib.requests import Tier

SIZES_AND_ARRIVALS = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 50)), min_size=1, max_size=30)


def queue_of(policy, sizes_and_arrivals):
    """The policy with these requests queued, added in the order of arrival."""
    for i, (size, arrival) in enumerate(sorted(sizes_and_arrivals, key=lambda pair: pair[1])):
        policy.add(make_request(i, arrival_s=arrival, total_tokens=size))
    return policy


def popped_at(policy, now):
    return [policy.pop(now).request_id for _ in range(len(policy))]


def fifo_and_sjf(requests):
    return [popped_at(queue_of(policy, requests), 0.0) for policy in (Fifo(), ShortestJobFirst())]


@given(requests=SIZES_AND_ARRIVALS)
def test_the_exponent_of_hrrn_goes_from_fifo_to_sjf(requests):
    """Long after the last arrival, when all have waited for nearly as long."""
    fifo, sjf = fifo_and_sjf(requests)
    assert popped_at(queue_of(Hrrn(exponent=0), requests), 1e6) == fifo
    assert popped_at(queue_of(Hrrn(exponent=16), requests), 1e6) == sjf


def test_hrrn_lets_a_long_request_that_waited_long_go_first():
    policy = queue_of(Hrrn(), [(100, 0)])
    policy.add(make_request("short", arrival_s=90.0, total_tokens=10))
    assert policy.peek(95.0).request_id == "0"  # waited 95 s for 100 tokens against 5 s for 10
    assert policy.peek(110.0).request_id == "short"


def test_hrrn_holds_more_sizes_than_it_has_slots_at_first():
    policy = queue_of(Hrrn(), [(size, 0) for size in range(1, 400)])
    assert [int(i) for i in popped_at(policy, 1000.0)] == list(range(399))


def test_hrrn_forgets_what_is_removed():
    policy = Hrrn()
    for i in range(1000):
        policy.add(make_request(i, arrival_s=i))
        if i >= 10:
            policy.remove(str(i))
    assert sum(map(len, policy._lanes.values())) <= 20 and popped_at(policy, 0.0) == [str(i) for i in range(10)]


def test_a_second_of_waiting_makes_up_for_so_many_tokens():
    policy = queue_of(AgingShortestJobFirst(rate=4.0), [(100, 0)])
    policy.add(make_request("late", arrival_s=11.0, total_tokens=60))
    assert [request.request_id for request in policy] == ["0", "late"]
    policy.add(make_request("near", arrival_s=9.0, total_tokens=60))
    assert [request.request_id for request in policy] == ["near", "0", "late"]


@given(requests=st.lists(st.tuples(st.sampled_from([8, 24, 56]), st.integers(0, 50)), max_size=20))
def test_with_a_scale_it_orders_as_the_score_proposed_to_tensorrt(requests):
    length_weight, time_weight, time_median = 0.5, 0.25, 16.0
    rate = 8 * time_weight / (length_weight * time_median)
    policy = queue_of(AgingShortestJobFirst(rate, scale_tokens=8), requests)

    def score(request):
        length = length_weight / (1 + request.estimate.total_tokens / 8)
        return length + time_weight * (100 - request.arrival_s) / time_median

    in_order = sorted(policy, key=lambda request: (-score(request), int(request.request_id)))
    assert popped_at(policy, 100.0) == [request.request_id for request in in_order]


@given(requests=SIZES_AND_ARRIVALS)
def test_boost_goes_from_sjf_to_fifo(requests):
    fifo, sjf = fifo_and_sjf(requests)
    assert popped_at(queue_of(Boost(decay=1e-7, tokens_per_s=1.0), requests), 0.0) == sjf
    assert popped_at(queue_of(Boost(decay=50.0, tokens_per_s=1.0), requests), 0.0) == fifo


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
        policy.add(make_request("long", total_tokens=100))
        for i in range(30):
            policy.add(make_request(f"early {i}", total_tokens=10))
        served = []
        for now in range(1, 600):
            policy.add(make_request(now, arrival_s=now, total_tokens=10))
            served.append(policy.pop(float(now + 1)).request_id)
        assert ("long" not in served) == starves


@given(requests=SIZES_AND_ARRIVALS)
def test_the_sigmoid_goes_from_sjf_to_fifo_with_the_weight_of_the_wait(requests):
    fifo, sjf = fifo_and_sjf(requests)
    options = {"wait_median_s": 32.0, "size_median": 32.0}
    assert popped_at(queue_of(Sigmoid(**options, wait_weight=0), requests), 60.0) == sjf
    assert popped_at(queue_of(Sigmoid(**options, wait_weight=1), requests), 60.0) == fifo


def test_a_long_service_overflows_nothing():
    assert Boost(decay=10.0, tokens_per_s=1.0).key(make_request(1, arrival_s=3.0, total_tokens=10**6)) == 3.0
