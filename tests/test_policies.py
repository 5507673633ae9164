"""Each policy against a naive reference that scans a list, over random histories; and what all policies share."""

import doctest
import inspect
from math import inf, nan

import naive_policies as naive
import pytest
from helpers import filled, make_request
from hypothesis import given
from hypothesis import strategies as st

from driftsched_lib.policies import POLICIES, ShortestJobFirst, Weighted
from driftsched_lib.requests import TIERS, Estimate, Tier

# By name, a policy's options and its reference.  All numbers are exact in floating point: round-off decides no tie.
CASES = {
    "fifo": ({}, naive.scan(lambda *_: 0)),
    "priority": ({}, naive.scan(lambda request, now, tier, rank: rank)),
    "weighted": ({}, naive.NaiveWeighted),
    "sjf": ({}, naive.scan(lambda request, *_: request.estimate.total_tokens)),
    "aging": ({"rate": 1 / 64}, naive.scan(lambda request, now, tier, rank: rank - (now - request.arrival_s) / 64)),
    "grouped": ({}, naive.NaiveGrouped),
    "sjf_aging": ({"rate": 1 / 64}, naive.scan(lambda r, now, *_: r.estimate.total_tokens - (now - r.arrival_s) / 64)),
    "hrrn": ({}, naive.scan(lambda r, now, *_: -(now - r.arrival_s) / r.estimate.total_tokens)),
    "sjf_sigmoid": ({"wait_median_s": 64, "size_median": 8}, naive.scan(naive.naive_sigmoid)),
    "boost": ({"decay": 1 / 8, "tokens_per_s": 1.0}, naive.scan(naive.naive_boost)),
    "edf": ({}, naive.scan(lambda request, now, tier, rank: request.arrival_s + tier.ttft_slo_s)),
    "least_slack": ({"s_per_token": 0.5}, naive.scan(naive.naive_slack)),
    "vtc": ({}, naive.NaiveVtc),
    "drr": ({"quantum_tokens": 2}, naive.NaiveDrr),
    "wfq": ({}, naive.NaiveWfq),
    "mlfq": ({"quantum_tokens": 2, "levels": 4, "boost_s": 128}, naive.NaiveMlfq),
    "gittins": ({}, naive.scan(naive.naive_gittins)),
    "tie": ({"weight": 0.5, "tail": 0.25}, naive.scan(naive.naive_tie)),
    "srpt": ({}, naive.scan(lambda request, *_: naive.to_come(request))),
    "express": ({"express_share": 0.5, "fifo_share": 0.5, "lead_tokens": 4, "input_price": 0.5}, naive.NaiveExpress),
}
PARAMETERS = {name: inspect.signature(policy).parameters for name, policy in POLICIES.items()}
TIERS_OF_A_RUN = [naive.halving("premium", "standard", "batch"), naive.halving("gold", "silver", "bronze", "free")]

NUMBERS = st.integers(0, 10**6)
OUTPUTS = st.one_of(st.integers(1, 5), st.lists(st.integers(1, 9), min_size=4, max_size=4).map(sorted))
ADD = st.tuples(st.just("add"), NUMBERS, st.integers(1, 3), st.integers(0, 3), OUTPUTS, st.integers(0, 150))
POP, REMOVE = st.tuples(st.just("pop"), st.integers(0, 150)), st.tuples(st.just("remove"), NUMBERS)
END = st.tuples(st.sampled_from(["end", "preempt"]), NUMBERS, st.integers(0, 9))
HISTORIES = st.lists(st.one_of(ADD, ADD, POP, REMOVE, END, END), min_size=20, max_size=60)


def estimated_request(i, now, tier, tenant, input_tokens, output):
    """`output` is a length, or the quantiles of one, whose second is the point."""
    request = make_request(i, now, tier, tenant=f"{tier}-{tenant}", input_tokens=input_tokens)
    quantiles = tuple(output) if isinstance(output, list) else None
    point = output if quantiles is None else quantiles[1]
    request.estimate = Estimate(point, input_tokens + point, 1.0, point, quantiles=quantiles)
    request.category = str(point % 2)
    return request


@pytest.mark.parametrize("name", POLICIES)
@given(history=HISTORIES, tiers=st.sampled_from(TIERS_OF_A_RUN))
def test_serves_as_its_naive_reference_and_loses_nothing(name, history, tiers):
    options, reference = CASES[name]
    known = {"tiers": tiers} if "tiers" in PARAMETERS[name] else {}
    policy, reference = POLICIES[name](**options, **known), reference(tiers)
    queued, running, returned, now = [], [], [], 0.0
    for i, (action, *arguments) in enumerate(history):
        if action == "add" or (action == "preempt" and running):
            if action == "add":
                tier, *estimated, later = arguments
                now += later
                queued.append(estimated_request(i, now, list(tiers)[tier % len(tiers)], *estimated))
            else:
                queued.append(running.pop(arguments[0] % len(running)))
                queued[-1].num_output_tokens += arguments[1]
                returned.append(queued[-1])
            policy.add(queued[-1])
            reference.added(queued[-1], queued)
        elif action == "pop" and queued:
            now += arguments[0]
            running.append(reference.pop(queued, now))
            assert policy.peek(now) is running[-1] and policy.pop(now) is running[-1]
            queued.remove(running[-1])
        elif action == "remove" and queued:
            request = queued[arguments[0] % len(queued)]
            assert policy.remove(request.request_id) is request
            reference.removed(request, queued)
            queued.remove(request)
            for told in (policy, reference) if request in returned else ():
                told.on_finish(request, request.num_output_tokens)
        elif action == "end" and running:
            request = running.pop(arguments[0] % len(running))
            for told in (policy, reference):
                told.on_finish(request, arguments[1])
        assert len(policy) == len(queued)
        assert sorted(request.request_id for request in policy) == sorted(request.request_id for request in queued)
    if queued:
        policy.peek(now + 1)  # a new moment, of which it is told
    order = list(policy)
    assert order == [policy.pop(now + 1) for _ in range(len(policy))]


@pytest.mark.parametrize("name", POLICIES)
def test_refuses_what_it_cannot_do(name):
    policy = POLICIES[name]()
    for refuses, error in ((policy.pop, IndexError), (policy.peek, IndexError), (policy.remove, KeyError)):
        with pytest.raises(error):
            refuses(0.0 if error is IndexError else "never added")
    policy.add(make_request(1))
    for tier in TIERS:
        with pytest.raises(ValueError, match="'1' is queued already"):
            policy.add(make_request(1, tier=tier))
    assert len(policy) == 1


@pytest.mark.parametrize("name", POLICIES)
def test_a_removed_id_comes_back_at_the_end(name):
    requests, again = [make_request(i) for i in range(5)], make_request(0)
    policy = filled(POLICIES[name](), requests)
    policy.remove("0")
    policy.add(again)
    expected = [*requests[1:], again]
    assert list(policy) == expected and [policy.pop(0.0) for _ in expected] == expected and len(policy) == 0


def test_a_policy_of_ones_own_is_one_function():
    own = ShortestJobFirst(size=lambda request: -request.estimate.output_tokens)
    filled(own, [make_request(i, total_tokens=tokens) for i, tokens in enumerate((20, 400, 20, 50))])
    own.remove("3")
    assert [own.pop(0.0).request_id for _ in range(3)] == ["1", "0", "2"]


@pytest.mark.parametrize("name", POLICIES)
def test_its_example_runs(name):
    policy, finder = POLICIES[name], doctest.DocTestFinder(recurse=False)
    [example] = finder.find(policy, globs=vars(inspect.getmodule(policy)))
    assert example.examples and doctest.DocTestRunner().run(example).failed == 0


OPTIONS = [(name, option) for name, known in PARAMETERS.items() for option in known if option not in ("tiers", "size")]
ABOVE_0 = {"scale_tokens", "wait_median_s", "size_median", "decay", "tokens_per_s", "output_price", "tail"}
ABOVE_0 |= {"quantum_tokens", "levels", "boost_s"}
TOO_LARGE = {"exponent": 17.0, "wait_weight": 1.1, "tail": 1.1, "express_share": 1.1, "fifo_share": 1.1}


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_options_are_checked(name, option):
    for value in (-1.0, nan, inf, 0 if option in ABOVE_0 else -0.1, TOO_LARGE.get(option, inf)):
        with pytest.raises(ValueError, match=f"{option} is {value}, it must be"):
            POLICIES[name](**{option: value})


def test_turns_are_whole_numbers():
    with pytest.raises(ValueError, match="weight of gold is 1.5"):
        Weighted({"gold": Tier(weight=1.5)})
