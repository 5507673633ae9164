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

    def ended(self, request, output_tokens):
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
    """A counter a tenant; the minimum is taken over those of the requests queued (Sheng et al., algorithm 2)."""

    def __init__(self):
        self.counters, self.last_left, self.charged = defaultdict(float), "", {}

    def cost(self, request, output_tokens):
        return (request.input_tokens + 2 * output_tokens) / WEIGHTS[request.tier]

    def added(self, request, queued):
        if not has_others(request, queued):
            last_left = self.counters[self.last_left]
            lowest = min((self.counters[other.tenant] for other in queued[:-1]), default=last_left)
            self.counters[request.tenant] = max(self.counters[request.tenant], lowest)

    def choose(self, queued, now):
        return min(queued, key=lambda request: self.counters[request.tenant])

    def popped(self, request, queued):
        if request.request_id not in self.charged:
            cost = self.charged[request.request_id] = self.cost(request, request.estimate.output_tokens)
            self.counters[request.tenant] += cost
        self.removed(request, queued)

    def removed(self, request, queued):
        if not has_others(request, queued):
            self.last_left = request.tenant

    def ended(self, request, output_tokens):
        self.counters[request.tenant] += self.cost(request, output_tokens) - self.charged.pop(request.request_id)


class NaiveDrr(Naive):
    """Shreedhar and Varghese's list of active tenants, walked turn by turn."""

    def __init__(self):
        self.turns, self.left, self.begun, self.paid = [], {}, False, set()

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
            if self.price(request) <= self.left[tenant]:
                return request
            self.turns.append(self.turns.pop(0))
            self.begun = False

    def price(self, request):
        return 0 if request.request_id in self.paid else request.estimate.total_tokens

    def popped(self, request, queued):
        self.left[request.tenant] -= self.price(request)
        self.paid.add(request.request_id)
        self.removed(request, queued)

    def removed(self, request, queued):
        if not has_others(request, queued):
            self.begun = self.begun and self.turns[0] != request.tenant
            self.turns.remove(request.tenant)


class NaiveWfq(Naive):
    """The start tag of a tenant's oldest request, by the tenant's arrival and the end of what it was served last."""

    def __init__(self):
        self.virtual, self.tags, self.paid, self.ends = 0.0, defaultdict(float), set(), [0.0]

    def added(self, request, queued):
        if not has_others(request, queued):
            self.tags[request.tenant] = max(self.virtual, self.tags[request.tenant])

    def choose(self, queued, now):
        return min(queued, key=lambda request: self.tags[request.tenant])

    def popped(self, request, queued):
        self.virtual = self.tags[request.tenant]
        if request.request_id not in self.paid:
            self.tags[request.tenant] += request.estimate.total_tokens / WEIGHTS[request.tier]
        self.paid.add(request.request_id)
        self.ends.append(self.tags[request.tenant])
        if len(queued) == 1:
            self.virtual = max(self.ends)


class NaiveMlfq(Naive):
    """Levels that end after 2, 6 and 14 tokens made since the last boost, which is every 128 seconds."""

    def __init__(self):
        self.before, self.boost_at = defaultdict(int), 0.0

    def level(self, request):
        return sum(request.made_tokens - self.before[request.request_id] >= end for end in (2, 6, 14))

    def choose(self, queued, now):
        if now >= self.boost_at:
            self.boost_at = now + 128
            for request in queued:
                if self.level(request):
                    self.before[request.request_id] = request.made_tokens
        return min(queued, key=self.level)


class NaiveExpress(Naive):
    """The rule as its module tells it, with everything counted anew each time."""

    def __init__(self):
        self.seen, self.index, self.credit, self.virtual = [], {}, 0.0, 0.0
        self.ends, self.dispatched = defaultdict(float), set()

    def size(self, request):
        totals = totals_of(request)
        return sum(totals) / len(totals)

    def is_express(self, request):
        return self.index[request.request_id][0] == 0

    def added(self, request, queued):
        if request.request_id in self.dispatched:
            return
        per_weight = self.size(request) / WEIGHTS[request.tier]
        self.seen.append(per_weight)
        is_small = sum(other < per_weight for other in self.seen) < len(self.seen) / 2
        start = max(self.ends[request.tenant], self.virtual)
        express = is_small and start <= self.virtual + 4
        self.index[request.request_id] = (0, per_weight) if express else (1, 0)
        if express:
            self.ends[request.tenant] = start + per_weight

    def choose(self, queued, now):
        if self.credit >= self.size(queued[0]):
            return queued[0]
        return min(queued, key=lambda request: self.index[request.request_id])

    def popped(self, request, queued):
        if request.request_id in self.dispatched:
            return
        self.dispatched.add(request.request_id)
        size = self.size(request)
        self.credit += size / 8
        if request is queued[0]:
            self.credit = max(0.0, self.credit - size)
        self.virtual += size / sum({other.tenant: WEIGHTS[other.tier] for other in queued}.values())

    def removed(self, request, queued):
        if self.is_express(request) and request.request_id not in self.dispatched:
            self.ends[request.tenant] -= self.size(request) / WEIGHTS[request.tier]

    def ended(self, request, output_tokens):
        if self.is_express(request):
            wrong_by = request.input_tokens + output_tokens - self.size(request)
            self.ends[request.tenant] += wrong_by / WEIGHTS[request.tier]


def totals_of(request):
    quantiles = request.estimate.quantiles
    if quantiles is None:
        return [request.estimate.total_tokens]
    return [request.input_tokens + output for output in quantiles]


def to_come(request):
    return max(1, request.estimate.output_tokens - request.made_tokens)


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


def naive_sigmoid(request, now):
    waited, size = now - request.arrival_s, request.estimate.total_tokens
    return -0.5 / (1 + exp(1 - waited / 64)) - 0.5 / (1 + exp(size / 8 - 1))


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
    "sjf_sigmoid": ({"wait_median_s": 64, "size_median": 8}, scan(naive_sigmoid)),
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
    "mlfq": ({"quantum_tokens": 2, "levels": 4, "boost_s": 128}, NaiveMlfq),
    "gittins": ({}, scan(naive_gittins)),
    "tie": ({"weight": 0.5, "tail": 0.25}, scan(naive_tie)),
    "srpt": ({}, scan(lambda request, now: to_come(request))),
    "express": ({"weights": WEIGHTS, "express_share": 0.5, "fifo_share": 1 / 8, "lead_tokens": 4}, NaiveExpress),
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


def test_every_policy_has_a_reference():
    assert {case.split()[0] for case in CASES} == set(POLICIES)


@pytest.mark.parametrize("case", CASES)
@given(history=HISTORIES)
def test_serves_as_its_naive_reference_and_loses_nothing(case, history):
    options, reference = CASES[case]
    policy, reference = POLICIES[case.split()[0]](**options), reference()
    queued, running, returned, now = [], [], set(), 0.0
    for i, (action, *arguments) in enumerate(history):
        if action == "add":
            *estimated, later = arguments
            now += later
            queued.append(estimated_request(i, now, *estimated))
            policy.add(queued[-1])
            reference.added(queued[-1], queued)
        elif action == "return" and running:  # its slot is taken back
            queued.append(running.pop(arguments[0] % len(running)))
            queued[-1].made_tokens += arguments[1]
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
                policy.ended(request, request.made_tokens)
                reference.ended(request, request.made_tokens)
        elif action == "end" and running:
            request = running.pop(arguments[0] % len(running))
            policy.ended(request, arguments[1])
            reference.ended(request, arguments[1])
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
