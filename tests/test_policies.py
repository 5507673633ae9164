"""Each policy against a naive reference that scans a list, over random histories; and what all policies share."""

import doctest
import inspect
from math import inf, nan

import pytest
from helpers import make_request
from hypothesis import given
from hypothesis import strategies as st
from naive_policies import (
    NaiveDrr,
    NaiveExpress,
    NaiveGrouped,
    NaiveMlfq,
    NaiveVtc,
    NaiveWeighted,
    NaiveWfq,
    halving,
    naive_boost,
    naive_gittins,
    naive_sigmoid,
    naive_tie,
    scan,
    to_come,
)

from driftsched_lib.policies import POLICIES, AgingPriority, Grouped, KeyedQueue, ShortestJobFirst, Weighted
from driftsched_lib.requests import TIERS, Estimate, Tier

# By name, a policy's options and its reference.  All numbers are exact in floating point: round-off decides no tie.
CASES = {
    "fifo": ({}, scan(lambda request, now, tier, rank: 0)),
    "priority": ({}, scan(lambda request, now, tier, rank: rank)),
    "weighted": ({}, NaiveWeighted),
    "sjf": ({}, scan(lambda request, now, tier, rank: request.estimate.total_tokens)),
    "aging": ({"rate": 1 / 64}, scan(lambda request, now, tier, rank: rank - (now - request.arrival_s) / 64)),
    "grouped": ({}, NaiveGrouped),
    "sjf_aging": (
        {"rate": 1 / 64},
        scan(lambda request, now, tier, rank: request.estimate.total_tokens - (now - request.arrival_s) / 64),
    ),
    "hrrn": ({}, scan(lambda request, now, tier, rank: -(now - request.arrival_s) / request.estimate.total_tokens)),
    "sjf_sigmoid": ({"wait_median_s": 64, "size_median": 8}, scan(naive_sigmoid)),
    "boost": ({"decay": 1 / 8, "tokens_per_s": 1.0}, scan(naive_boost)),
    "edf": ({}, scan(lambda request, now, tier, rank: request.arrival_s + tier.ttft_slo_s)),
    "least_slack": (
        {"s_per_token": 0.5},
        scan(lambda r, now, tier, rank: r.arrival_s + tier.e2e_slo_s - r.estimate.output_tokens / 2 - now),
    ),
    "vtc": ({}, NaiveVtc),
    "drr": ({"quantum_tokens": 2}, NaiveDrr),
    "wfq": ({}, NaiveWfq),
    "mlfq": ({"quantum_tokens": 2, "levels": 4, "boost_s": 128}, NaiveMlfq),
    "gittins": ({}, scan(naive_gittins)),
    "tie": ({"weight": 0.5, "tail": 0.25}, scan(naive_tie)),
    "srpt": ({}, scan(lambda request, *_: to_come(request))),
    "express": ({"express_share": 0.5, "fifo_share": 1 / 8, "lead_tokens": 4, "input_price": 0.5}, NaiveExpress),
}
TIERS_OF_A_RUN = [halving("premium", "standard", "batch"), halving("gold", "silver", "bronze", "free")]

NUMBERS = st.integers(0, 10**6)
HISTORIES = st.lists(
    st.one_of(
        *2
        * [
            st.tuples(
                st.just("add"),
                NUMBERS,
                st.integers(1, 3),
                st.integers(0, 3),
                st.one_of(st.integers(1, 5), st.lists(st.integers(1, 9), min_size=4, max_size=4).map(sorted)),
                st.integers(0, 150),
            )
        ],
        st.tuples(st.just("pop"), st.integers(0, 150)),
        st.tuples(st.just("remove"), NUMBERS),
        st.tuples(st.just("end"), NUMBERS, st.integers(0, 9)),
        st.tuples(st.just("return"), NUMBERS, st.integers(0, 9)),
    ),
    max_size=60,
)


def estimated_request(i, now, tier, tenant, input_tokens, output):
    """`output` is a length, or the quantiles of one, whose second is the point."""
    request = make_request(i, arrival_s=now, tier=tier)
    request.tenant, request.input_tokens = f"{tier}-{tenant}", input_tokens
    quantiles = tuple(output) if isinstance(output, list) else None
    point = output if quantiles is None else quantiles[1]
    request.estimate = Estimate(point, input_tokens + point, 1.0, point, quantiles=quantiles)
    request.category = str(point % 2)
    return request


def with_tiers(name, tiers, **options):
    """A policy of these tiers, or without tiers where it has no use for them."""
    known = {"tiers": tiers} if "tiers" in inspect.signature(POLICIES[name]).parameters else {}
    return POLICIES[name](**options, **known)


@pytest.mark.parametrize("name", POLICIES)
@given(history=HISTORIES, tiers=st.sampled_from(TIERS_OF_A_RUN))
def test_serves_as_its_naive_reference_and_loses_nothing(name, history, tiers):
    options, reference = CASES[name]
    policy, reference = with_tiers(name, tiers, **options), reference(tiers)
    queued, running, returned, now = [], [], set(), 0.0
    for i, (action, *arguments) in enumerate(history):
        if action == "add":
            tier, *estimated, later = arguments
            now += later
            queued.append(estimated_request(i, now, list(tiers)[tier % len(tiers)], *estimated))
            policy.add(queued[-1])
            reference.added(queued[-1], queued)
        elif action == "return" and running:  # its slot is taken back
            queued.append(running.pop(arguments[0] % len(running)))
            queued[-1].num_output_tokens += arguments[1]
            returned.add(queued[-1].request_id)
            policy.add(queued[-1])
            reference.added(queued[-1], queued)
        elif action == "pop" and queued:
            now += arguments[0]
            expected = reference.choose(queued, now)
            assert policy.peek(now) is expected
            assert policy.pop(now) is expected
            reference.popped(expected, queued)
            queued.remove(expected)
            running.append(expected)
        elif action == "remove" and queued:
            request = queued[arguments[0] % len(queued)]
            assert policy.remove(request.request_id) is request
            reference.removed(request, queued)
            queued.remove(request)
            if request.request_id in returned:
                policy.on_finish(request, request.num_output_tokens)
                reference.on_finish(request, request.num_output_tokens)
        elif action == "end" and running:
            request = running.pop(arguments[0] % len(running))
            policy.on_finish(request, arguments[1])
            reference.on_finish(request, arguments[1])
        assert len(policy) == len(queued)
        assert sorted(request.request_id for request in policy) == sorted(request.request_id for request in queued)
    if queued:
        policy.peek(now + 1)  # a new moment, of which it is told
    order = list(policy)
    assert order == [policy.pop(now + 1) for _ in range(len(policy))]


@pytest.mark.parametrize("name", POLICIES)
def test_refuses_what_it_cannot_do(name):
    policy = POLICIES[name]()
    with pytest.raises(IndexError):
        policy.pop(0.0)
    with pytest.raises(IndexError):
        policy.peek(0.0)
    with pytest.raises(KeyError):
        policy.remove("never added")
    policy.add(make_request(1))
    for tier in TIERS:
        with pytest.raises(ValueError, match="'1' is queued already"):
            policy.add(make_request(1, tier=tier))
    assert len(policy) == 1


@pytest.mark.parametrize("name", POLICIES)
def test_a_removed_id_comes_back_at_the_end(name):
    policy = POLICIES[name]()
    requests = [make_request(i) for i in range(5)]
    for request in requests:
        policy.add(request)
    policy.remove("0")
    again = make_request(0)
    policy.add(again)
    expected = [*requests[1:], again]
    assert list(policy) == expected and [policy.pop(0.0) for _ in expected] == expected and len(policy) == 0


def test_weighted_gives_five_three_two():
    policy, cycle = Weighted(), ["premium"] * 5 + ["standard"] * 3 + ["batch"] * 2
    for i in range(60):
        policy.add(make_request(i, tier=list(TIERS)[i % 3]))
    assert [request.tier for request in policy][:20] == cycle * 2
    assert [policy.pop(0.0).tier for _ in range(20)] == cycle * 2


def test_weighted_passes_the_turn_of_an_empty_tier_on():
    policy = Weighted()
    for i in range(6):
        policy.add(make_request(i, tier="batch" if i % 2 else "standard"))
    assert [policy.pop(0.0).tier for _ in range(6)] == ["standard"] * 3 + ["batch"] * 2 + ["batch"]


def test_aging_lets_a_request_overtake_one_that_came_more_than_a_hundred_seconds_later():
    policy = AgingPriority()
    for request_id, arrival, tier in (("old", 0.0, "standard"), ("late", 101.0, "premium"), ("near", 99.0, "premium")):
        policy.add(make_request(request_id, arrival_s=arrival, tier=tier))
    assert [request.request_id for request in policy] == ["near", "old", "late"]


def test_a_moment_is_a_group_and_moments_of_their_own_are_fifo():
    policy = Grouped()
    for i in range(8):
        request = make_request(i)
        request.category = "ab"[i % 2]
        policy.add(request)
    assert [int(request.request_id) for request in policy] == [0, 2, 4, 6, 1, 3, 5, 7]
    assert [int(policy.pop(now).request_id) for now in (1, 1, 1, 2, 2, 3, 4, 5)] == [0, 2, 4, 1, 3, 5, 6, 7]


class LongestFirst(KeyedQueue):
    """A user's own policy."""

    def key(self, request):
        return -request.estimate.total_tokens


@pytest.mark.parametrize(
    "own", [LongestFirst(), ShortestJobFirst(size=lambda request: -request.estimate.output_tokens)]
)
def test_a_policy_of_ones_own_is_one_function(own):
    for i, tokens in enumerate((20, 400, 20, 50)):
        own.add(make_request(i, total_tokens=tokens))
    own.remove("3")
    assert [own.pop(0.0).request_id for _ in range(3)] == ["1", "0", "2"]


@pytest.mark.parametrize("name", POLICIES)
def test_its_example_runs(name):
    [example] = doctest.DocTestFinder(recurse=False).find(
        POLICIES[name], globs=inspect.getmodule(POLICIES[name]).__dict__
    )
    assert example.examples and doctest.DocTestRunner().run(example).failed == 0


@pytest.mark.parametrize(
    ("name", "option", "values"),
    [
        ("aging", "rate", (-0.1, nan, inf)),
        ("sjf_aging", "rate", (-0.1, inf)),
        ("sjf_aging", "scale_tokens", (0.0,)),
        ("hrrn", "exponent", (-1.0, 17.0)),
        ("sjf_sigmoid", "wait_weight", (-0.1, 1.5)),
        ("sjf_sigmoid", "wait_median_s", (0.0,)),
        ("boost", "decay", (0.0,)),
        ("boost", "tokens_per_s", (nan,)),
        ("least_slack", "s_per_token", (-1.0,)),
        ("vtc", "output_price", (0.0,)),
        ("vtc", "input_price", (-1.0,)),
        ("drr", "quantum_tokens", (0,)),
        ("mlfq", "levels", (0,)),
        ("mlfq", "quantum_tokens", (0,)),
        ("mlfq", "boost_s", (0.0,)),
        ("tie", "tail", (0.0, 1.1, nan)),
        ("tie", "weight", (-1,)),
        ("srpt", "recompute", (-1.0,)),
        ("express", "express_share", (-0.1, 1.1)),
        ("express", "fifo_share", (-0.1, nan)),
        ("express", "lead_tokens", (-1.0, nan)),
        ("express", "uncertainty", (inf,)),
    ],
)
def test_parameters_are_checked(name, option, values):
    for value in values:
        with pytest.raises(ValueError, match=f"{option} is {value}, it must be"):
            POLICIES[name](**{option: value})


def test_turns_are_whole_numbers():
    with pytest.raises(ValueError, match="weight of gold is 1.5"):
        Weighted({"gold": Tier(weight=1.5)})
