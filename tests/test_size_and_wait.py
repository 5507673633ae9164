"""What the policies by size, wait and deadline promise, their limits, and the forms that engines proposed."""

from functools import partial

import pytest
from helpers import filled, make_request
from hypothesis import given
from hypothesis import strategies as st

from driftsched_lib.policies import (
    AgingShortestJobFirst,
    Boost,
    Fifo,
    Gittins,
    Hrrn,
    ShortestJobFirst,
    SigmoidShortestJobFirst,
    TailInflatedExpectation,
)

SIZES_AND_ARRIVALS = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 50)), min_size=1, max_size=30)


def order(policy, sizes_and_arrivals, now):
    """Return the ids that the policy pops at `now`, of requests added in the order of arrival."""
    in_order = sorted(sizes_and_arrivals, key=lambda pair: pair[1])
    filled(policy, [make_request(i, at, total_tokens=size) for i, (size, at) in enumerate(in_order)])
    return [policy.pop(now).request_id for _ in in_order]


@pytest.mark.parametrize(
    ("kind", "fifo", "sjf", "now"),
    [
        (Hrrn, {"exponent": 0}, {"exponent": 16}, 1e6),  # when all have waited for nearly as long
        (partial(Boost, tokens_per_s=1.0), {"decay": 50.0}, {"decay": 1e-7}, 0.0),
        (
            partial(SigmoidShortestJobFirst, wait_median_s=32.0, size_median=32.0),
            *({"wait_weight": 1}, {"wait_weight": 0}, 60.0),
        ),
    ],
)
@given(requests=SIZES_AND_ARRIVALS)
def test_at_its_extremes_it_is_fifo_and_sjf(kind, fifo, sjf, now, requests):
    assert order(kind(**fifo), requests, now) == order(Fifo(), requests, 0.0)
    assert order(kind(**sjf), requests, now) == order(ShortestJobFirst(), requests, 0.0)


def test_hrrn_holds_more_sizes_than_it_has_slots_at_first_and_forgets_what_is_removed():
    assert order(Hrrn(), [(size, 0) for size in range(1, 400)], 1000.0) == list(map(str, range(399)))
    policy = filled(Hrrn(), [make_request(i, arrival_s=i) for i in range(10)])
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
        (AgingShortestJobFirst(0.5, scale_tokens=8), {"total_tokens": 24, "arrival_s": 10.0}, 8 * (1 - 1 / 4) + 5.0),
        (Boost(decay=10.0, tokens_per_s=1.0), {"total_tokens": 10**6, "arrival_s": 3.0}, 3.0),  # nothing overflows
        (Gittins(), GAMBLE, 2.0),  # half end after one token, which costs one token each
        (Gittins(), SURE, 20.0),
        (TailInflatedExpectation(weight=0), SURE, 20.0),
        (TailInflatedExpectation(weight=0), GAMBLE, 50.5),
        (TailInflatedExpectation(weight=0.5, tail=0.5), SPREAD | {"input_tokens": 5}, 45.0 + 0.5 * 70.0),
        (TailInflatedExpectation(weight=0.5, tail=0.1), SPREAD | {"input_tokens": 5}, 45.0 + 0.5 * 105.0),
    ],
)
def test_a_key_is_what_the_rule_says(policy, request_, key):
    assert policy.key(make_request(1, **request_)) == key
