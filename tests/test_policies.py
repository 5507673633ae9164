"""Each policy against a naive sorted reference, over random histories."""

import pytest
from helpers import make_request
from hypothesis import given
from hypothesis import strategies as st

from driftsched_lib.policies import POLICIES, RANKS, TURNS, AgingPriority, Grouped, Priority, Weighted
from driftsched_lib.requests import TIERS

CYCLE = ["premium"] * 5 + ["standard"] * 3 + ["batch"] * 2


class NaiveWeighted:
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

    def popped(self):
        self.turn = self.next_turn


class NaiveScan:
    """The first of the queued, in order of arrival, with the smallest score."""

    def __init__(self, score):
        self.score = score

    def choose(self, queued, now):
        return min(queued, key=lambda request: self.score(request, now))

    def popped(self):
        pass


class NaiveGrouped:
    """The oldest, then those of its category for as long as it is the same moment."""

    def __init__(self):
        self.category, self.at = None, None

    def choose(self, queued, now):
        alike = [request for request in queued if request.category == self.category and now == self.at]
        self.chosen, self.now = (alike or queued)[0], now
        return self.chosen

    def popped(self):
        self.category, self.at = self.chosen.category, self.now


REFERENCES = {
    "grouped": NaiveGrouped,
    "fifo": lambda: NaiveScan(lambda request, now: 0),
    "priority": lambda: NaiveScan(lambda request, now: TIERS.index(request.tier)),
    "weighted": NaiveWeighted,
    "sjf": lambda: NaiveScan(lambda request, now: request.estimate.total_tokens),
    "aging": lambda: NaiveScan(lambda request, now: 1 + TIERS.index(request.tier) - 0.01 * (now - request.arrival_s)),
}

HISTORIES = st.lists(
    st.one_of(
        *2 * [st.tuples(st.just("add"), st.sampled_from(TIERS), st.integers(1, 5), st.integers(0, 150))],
        st.tuples(st.just("pop"), st.integers(0, 150)),
        st.tuples(st.just("remove"), st.integers(0, 10**6)),
    ),
    max_size=60,
)


@pytest.mark.parametrize("name", POLICIES)
@given(history=HISTORIES)
def test_serves_as_its_naive_reference(name, history):
    policy, reference, queued, now = POLICIES[name](), REFERENCES[name](), [], 0.0
    for i, (action, *arguments) in enumerate(history):
        if action == "add":
            tier, tokens, later = arguments
            now += 0.999 * later  # never a multiple of 100 s apart: across tiers, round-off would decide an aging tie
            request = make_request(i, arrival_s=now, tier=tier, total_tokens=tokens)
            request.category = str(tokens)
            policy.add(request)
            queued.append(request)
        elif action == "pop" and queued:
            now += arguments[0]
            expected = reference.choose(queued, now)
            assert policy.peek(now) is expected
            assert policy.pop(now) is expected
            reference.popped()
            queued.remove(expected)
        elif action == "remove" and queued:
            request = queued.pop(arguments[0] % len(queued))
            assert policy.remove(request.request_id) is request
        assert len(policy) == len(queued)
        assert sorted(request.request_id for request in policy) == sorted(request.request_id for request in queued)
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
