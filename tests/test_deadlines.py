"""Deadlines by tier: met where they can be, and what happens where they cannot."""

from itertools import permutations

from helpers import make_request
from hypothesis import given
from hypothesis import strategies as st

from driftsched_lib.policies import EarliestDeadline, LeastSlack
from driftsched_lib.requests import Tier

SLO_S = {"premium": 4, "standard": 10, "batch": 25}


@given(queued=st.lists(st.tuples(st.sampled_from(list(SLO_S)), st.integers(-5, 0)), max_size=6))
def test_edf_meets_every_deadline_that_an_order_meets(queued):
    """Of requests of a size that are all here at time 0 and start one after another, three seconds apart."""
    policy = EarliestDeadline({name: Tier(ttft_slo_s=slo) for name, slo in SLO_S.items()})
    for i, (tier, arrival) in enumerate(queued):
        policy.add(make_request(i, arrival_s=arrival, tier=tier))

    def all_met(order):
        return all(3 * i <= request.arrival_s + SLO_S[request.tier] for i, request in enumerate(order))

    assert all_met(policy) == any(map(all_met, permutations(policy)))


def test_edf_serves_what_is_late_first():
    policy = EarliestDeadline()
    policy.add(make_request("late", arrival_s=0.0, tier="batch"))
    policy.add(make_request("fresh", arrival_s=60.0, tier="premium"))
    assert policy.pop(61.0).request_id == "late"


def test_slack_counts_the_output_that_is_still_to_be_made():
    policy = LeastSlack(0.1, {"standard": Tier(e2e_slo_s=30.0)})
    for request_id, tokens in (("short", 50), ("long", 250), ("middle", 120)):
        policy.add(make_request(request_id, total_tokens=tokens))
    assert [request.request_id for request in policy] == ["long", "middle", "short"]
    assert policy.key(make_request(1, arrival_s=2.0, total_tokens=50)) == 27.0
