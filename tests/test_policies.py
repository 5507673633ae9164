"""Each policy against a naive reference that scans a list, over random histories."""

from collections import defaultdict
from fractions import Fraction
from math import exp, log

import pytest
from helpers import make_request
from hypothesis import given
from hypothesis import strategies as st

from driftsched_lib.policies import POLICIES, RANKS, TURNS, AgingPriority, Grouped, Priority, Weighted
from driftsched_lib.requests import TIERS, Estimate

CYCLE = ["premium"] * 5 + ["standard"] * 3 + ["batch"] * 2
WEIGHTS = {"premium": 4, "standard": 2, "batch": 1}


class Naive:
    """Told what happens; `queued` are the requests in the order of adding, the one told of among them."""

    def added(self, request, queued):
        pass

    def choose(self, queued, now):
        raise NotImplementedError

    def popped(self, request, queued):
        pass

    def removed(self, request, queued):
        pass

    def completed(self, request, output_tokens):
        pass


class NaiveScan(Naive):
    """The first of the queued, in order of arrival, with the smallest score."""

    def __init__(self, score):
        self.score = score

    def choose(self, queued, now):
        return min(queued, key=lambda request: self.score(request, now))


class NaiveWeighted(Naive):
    """PAPER.md's cycle of ten turns over three plain lists."""

    def __init__(self):
        self.turn = 0

    def choose(self, queued, now):
        for offset in range(10):
            index = (self.turn + offset) % 10
            waiting = [request for request in queued if request.tier == CYCLE[index]]
            if waiting:
                self.next_turn = (index + 1) % 10
                return waiting[0]

    def popped(self, request, queued):
        self.turn = self.next_turn


class NaiveGrouped(Naive):
    """The first by a rank, then those of its category for as long as it is the same moment."""

    def __init__(self, rank=lambda request: 0):
        self.rank, self.category, self.at = rank, None, None

    def choose(self, queued, now):
        alike = [request for request in queued if request.category == self.category and now == self.at]
        self.now = now
        return min(alike or queued, key=self.rank)

    def popped(self, request, queued):
        self.category, self.at = request.category, self.now


def has_others(request, queued):
    return any(other.tenant == request.tenant for other in queued if other is not request)


class NaiveVtc(Naive):
    """A counter a tenant; the minimum is taken over those of the requests queued."""

    def __init__(self):
        self.counters, self.last_left = defaultdict(float), 0.0

    def added(self, request, queued):
        if not has_others(request, queued):
            lowest = min((self.counters[other.tenant] for other in queued[:-1]), default=self.last_left)
            self.counters[request.tenant] = max(self.counters[request.tenant], lowest)

    def choose(self, queued, now):
        return min(queued, key=lambda request: self.counters[request.tenant])

    def popped(self, request, queued):
        cost = request.input_tokens + 2 * request.estimate.output_tokens
        self.counters[request.tenant] += cost / WEIGHTS[request.tier]
        self.removed(request, queued)

    def removed(self, request, queued):
        if not has_others(request, queued):
            self.last_left = self.counters[request.tenant]

    def completed(self, request, output_tokens):
        self.counters[request.tenant] += 2 * (output_tokens - request.estimate.output_tokens) / WEIGHTS[request.tier]


class NaiveDrr(Naive):
    """Shreedhar and Varghese's list of active tenants, walked turn by turn."""

    def __init__(self):
        self.turns, self.left, self.begun = [], {}, False

    def added(self, request, queued):
        if not has_others(request, queued):
            self.turns.append(request.tenant)
            self.left[request.tenant] = 0

    def choose(self, queued, now):
        while True:
            tenant = self.turns[0]
            request = next(request for request in queued if request.tenant == tenant)
            if not self.begun:
                self.begun = True
                self.left[tenant] += 2 * WEIGHTS[request.tier]
            if request.estimate.total_tokens <= self.left[tenant]:
                return request
            self.turns.append(self.turns.pop(0))
            self.begun = False

    def popped(self, request, queued):
        self.left[request.tenant] -= request.estimate.total_tokens
        self.removed(request, queued)

    def removed(self, request, queued):
        if not has_others(request, queued):
            self.begun = self.begun and self.turns[0] != request.tenant
            self.turns.remove(request.tenant)


class NaiveWfq(Naive):
    """Start tags, by request."""

    def __init__(self):
        self.virtual, self.start, self.finish = 0.0, {}, defaultdict(float)

    def added(self, request, queued):
        tag = self.start[request.request_id] = max(self.virtual, self.finish[request.tenant])
        self.finish[request.tenant] = tag + request.estimate.total_tokens / WEIGHTS[request.tier]

    def choose(self, queued, now):
        return min(queued, key=lambda request: self.start[request.request_id])

    def popped(self, request, queued):
        self.virtual = self.start[request.request_id]


class NaiveMlfq(Naive):
    """Levels that end after 4, 12 and 28 tokens; everyone starts again after 64."""

    def __init__(self):
        self.observed = defaultdict(int)

    def choose(self, queued, now):
        return min(queued, key=lambda request: sum(self.observed[request.tenant] >= end for end in (4, 12, 28)))

    def completed(self, request, output_tokens):
        for name in (request.tenant, "everyone"):
            self.observed[name] += request.input_tokens + output_tokens
        if self.observed["everyone"] >= 64:
            self.observed.clear()


class NaiveExpress(Naive):
    """The rule as its module tells it, with everything counted anew each time."""

    def __init__(self):
        self.recent, self.index, self.credit = [], {}, 0.0
        self.virtual, self.served = 0.0, defaultdict(float)

    def size(self, request):
        totals = totals_of(request)
        return sum(totals) / len(totals)

    def added(self, request, queued):
        tenant = request.tenant
        if not has_others(request, queued):
            self.served[tenant] = max(self.served[tenant], self.virtual)
        rank = self.size(request) / WEIGHTS[request.tier] + max(0.0, self.served[tenant] - self.virtual) / 4
        self.recent.append(rank)
        smaller = sum(other < rank for other in self.recent)
        self.index[request.request_id] = (0, rank) if smaller < len(self.recent) / 2 else (1, 0)

    def choose(self, queued, now):
        if self.credit >= self.size(queued[0]):
            return queued[0]
        return min(queued, key=lambda request: self.index[request.request_id])

    def popped(self, request, queued):
        size = self.size(request)
        self.credit += size / 8
        if request is queued[0]:
            self.credit = max(0.0, self.credit - size)
        self.virtual += size / sum({other.tenant: WEIGHTS[other.tier] for other in queued}.values())
        self.served[request.tenant] += size / WEIGHTS[request.tier]

    def completed(self, request, output_tokens):
        self.served[request.tenant] += (output_tokens - request.estimate.output_tokens) / WEIGHTS[request.tier]


def totals_of(request):
    quantiles = request.estimate.quantiles
    if quantiles is None:
        return [request.estimate.total_tokens]
    return [request.input_tokens + output for output in quantiles]


def naive_gittins(request, now):
    totals = totals_of(request)
    return -max(Fraction(sum(total <= t for total in totals), sum(min(total, t) for total in totals)) for t in totals)


def naive_tie(request, now):
    totals = totals_of(request)
    return sum(totals) / len(totals) + max(totals) / 2


def naive_boost(request, now):
    means = [exp(total / 8) for total in totals_of(request)]
    mean = sum(means) / len(means)
    return request.arrival_s - 8 * log(mean / (mean - 1))


def scan(score):
    return lambda: NaiveScan(score)


# By case, a policy's name and what is special: its arguments, and its reference.  All numbers are exact in floating
# point, so that round-off decides no tie.
CASES = {
    "fifo": ({}, scan(lambda request, now: 0)),
    "priority": ({}, scan(lambda request, now: TIERS.index(request.tier))),
    "weighted": ({}, NaiveWeighted),
    "sjf": ({}, scan(lambda request, now: request.estimate.total_tokens)),
    "aging": ({"rate": 1 / 64}, scan(lambda request, now: TIERS.index(request.tier) - (now - request.arrival_s) / 64)),
    "grouped": ({}, NaiveGrouped),
    "grouped shortest": (
        {"lead": "shortest"},
        lambda: NaiveGrouped(lambda request: request.estimate.total_tokens),
    ),
    "sjf_aging": (
        {"rate": 1 / 64},
        scan(lambda request, now: request.estimate.total_tokens - (now - request.arrival_s) / 64),
    ),
    "hrrn": ({}, scan(lambda request, now: -(now - request.arrival_s) / request.estimate.total_tokens)),
    "boost": ({"decay": 1 / 8, "tokens_per_s": 1.0}, scan(naive_boost)),
    "edf": (
        {"ttft_slo_s": {"premium": 64, "standard": 128, "batch": 256}},
        scan(lambda request, now: request.arrival_s + {"premium": 64, "standard": 128, "batch": 256}[request.tier]),
    ),
    "least_slack": (
        {"e2e_slo_s": WEIGHTS, "s_per_token": 0.5},
        scan(lambda request, now: request.arrival_s + WEIGHTS[request.tier] - request.estimate.output_tokens / 2 - now),
    ),
    "vtc": ({"weights": WEIGHTS}, NaiveVtc),
    "drr": ({"weights": WEIGHTS, "quantum_tokens": 2}, NaiveDrr),
    "wfq": ({"weights": WEIGHTS}, NaiveWfq),
    "mlfq": ({"quantum_tokens": 4, "levels": 4, "reset_tokens": 64}, NaiveMlfq),
    "gittins": ({}, scan(naive_gittins)),
    "tie": ({"weight": 0.5, "tail": 0.25}, scan(naive_tie)),
    "srpt": ({}, scan(lambda request, now: request.estimate.output_tokens)),
    "express": ({"weights": WEIGHTS, "express_share": 0.5, "fifo_share": 1 / 8, "fairness": 0.25}, NaiveExpress),
}

NUMBERS = st.integers(0, 10**6)
HISTORIES = st.lists(
    st.one_of(
        *2
        * [
            st.tuples(
                st.just("add"),
                st.sampled_from(TIERS),
                st.integers(1, 3),
                st.integers(0, 3),
                st.one_of(st.integers(1, 5), st.lists(st.integers(1, 9), min_size=4, max_size=4).map(sorted)),
                st.integers(0, 150),
            )
        ],
        st.tuples(st.just("pop"), st.integers(0, 150)),
        st.tuples(st.just("remove"), NUMBERS),
        st.tuples(st.just("complete"), NUMBERS, st.integers(1, 9)),
        st.tuples(st.just("return"), NUMBERS),
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


def test_every_policy_has_a_reference():
    assert {case.split()[0] for case in CASES} == set(POLICIES)


@pytest.mark.parametrize("case", CASES)
@given(history=HISTORIES)
def test_serves_as_its_naive_reference_and_loses_nothing(case, history):
    options, reference = CASES[case]
    policy, reference = POLICIES[case.split()[0]](**options), reference()
    queued, running, now = [], [], 0.0
    for i, (action, *arguments) in enumerate(history):
        if action == "add":
            *estimated, later = arguments
            now += later
            queued.append(estimated_request(i, now, *estimated))
            policy.add(queued[-1])
            reference.added(queued[-1], queued)
        elif action == "return" and running:  # the engine gives it back, to be served anew
            queued.append(running.pop(arguments[0] % len(running)))
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
        elif action == "complete" and running:
            request = running.pop(arguments[0] % len(running))
            policy.completed(request, arguments[1])
            reference.completed(request, arguments[1])
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
    policy = Weighted()
    for i in range(60):
        policy.add(make_request(i, tier=TIERS[i % 3]))
    assert [request.tier for request in policy][:20] == CYCLE * 2
    assert [policy.pop(0.0).tier for _ in range(20)] == CYCLE * 2


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


def test_parameters_are_checked():
    with pytest.raises(ValueError, match="lead is 'longest'"):
        Grouped(lead="longest")
    for rate in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="rate is"):
            AgingPriority(rate=rate)
    for turns in ({"premium": 1}, TURNS | {"batch": 0}, TURNS | {"gold": 1}):
        with pytest.raises(ValueError, match="turns is"):
            Weighted(turns)
    for policy in (Priority, AgingPriority):
        with pytest.raises(ValueError, match="ranks is .* must name premium, standard, batch"):
            policy(ranks={"premium": 1})
    assert Priority(RANKS | {"batch": 0}).key(make_request(1, tier="batch")) == 0
