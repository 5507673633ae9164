"""Express: what each of its terms does, and the wait that it promises."""

import pytest
from helpers import make_request
from hypothesis import given
from hypothesis import strategies as st

from driftsched_lib.policies import Express, Fifo, ShortestJobFirst
from driftsched_lib.requests import TIERS

EQUAL = dict.fromkeys(TIERS, 1)
OFF = {"weights": EQUAL, "express_share": 1, "fifo_share": 0, "fairness": 0, "uncertainty": 0}
SIZES = st.lists(st.integers(1, 20), min_size=1, max_size=40)


def order(policy, sizes, tiers=("standard",)):
    for i, size in enumerate(sizes):
        policy.add(make_request(i, tier=tiers[i % len(tiers)], total_tokens=size))
    return [int(policy.pop(0.0).request_id) for _ in sizes]


@given(sizes=SIZES)
def test_without_its_terms_it_is_sjf_and_without_an_express_lane_fifo(sizes):
    assert order(Express(**OFF), sizes) == order(ShortestJobFirst(), sizes)
    assert order(Express(**OFF | {"express_share": 0}), sizes) == order(Fifo(), sizes)


def test_above_the_cap_it_is_fifo():
    """40 and 25 are larger than half of what had come by then, themselves included; 30 and 20 were not."""
    sizes = [30, 1, 20, 2, 40, 3, 25, 4]
    served = order(Express(**OFF | {"express_share": 0.5}), sizes)
    assert [sizes[i] for i in served] == [1, 2, 3, 4, 20, 30, 40, 25]


def test_the_weight_of_a_tier_divides_the_size():
    policy = Express(**OFF | {"weights": {"premium": 4, "standard": 2, "batch": 1}})
    assert order(policy, [30, 20, 9, 30], tiers=("premium", "standard", "batch", "premium")) == [0, 3, 2, 1]


def test_uncertainty_goes_from_the_point_to_the_mean():
    request = make_request(1, total_tokens=10)
    request.estimate.quantiles = (10.0, 10.0, 40.0, 100.0)
    assert [Express(**OFF | {"uncertainty": u}).key(request) for u in (0, 0.5, 1)] == [10, 25, 40]


@pytest.mark.parametrize(("fairness", "longest"), [(0, 100), (1, 1)])
def test_a_tenant_beyond_its_share_makes_no_other_wait(fairness, longest):
    """In each of 40 rounds one tenant sends nine requests, the other one, and five are served."""
    policy = Express(**OFF | {"express_share": 0.6, "fairness": fairness})
    waits = []
    for round_ in range(40):
        for i in range(10):
            request = make_request(10 * round_ + i, arrival_s=round_)
            request.tenant = "noisy" if i < 9 else "other"
            policy.add(request)
        served = [policy.pop(round_) for _ in range(5)]
        waits += [round_ - request.arrival_s for request in served if request.tenant == "other"]
    unserved = [40 - request.arrival_s for request in policy if request.tenant == "other"]
    assert max(waits) <= longest and (max(unserved, default=0) > 10) == (fairness == 0)


@given(
    history=st.lists(st.tuples(st.booleans(), st.integers(1, 20), st.sampled_from(TIERS)), max_size=120),
    fifo_share=st.sampled_from([1 / 16, 1 / 4, 1.0]),
    express_share=st.sampled_from([0.3, 1.0]),
)
def test_no_request_waits_longer_than_promised(history, fifo_share, express_share):
    """At most (A + 2 L) / fifo_share tokens dispatched while it waits: A queued before it, L the largest request."""
    policy = Express(express_share=express_share, fifo_share=fifo_share)
    dispatched, queued, allowed = 0, {}, {}
    largest = max((size for _, size, _ in history), default=0)
    for i, (adds, size, tier) in enumerate(history):
        if adds:
            allowed[str(i)] = dispatched + (sum(queued.values()) + 2 * largest) / fifo_share
            queued[str(i)] = size
            policy.add(make_request(i, tier=tier, total_tokens=size))
        elif queued:
            request = policy.pop(0.0)
            assert dispatched <= allowed[request.request_id]
            dispatched += queued.pop(request.request_id)


def test_without_a_fifo_share_a_long_request_starves_and_with_one_it_does_not():
    for fifo_share, starves in ((0, True), (0.1, False)):
        policy = Express(**OFF | {"fifo_share": fifo_share})
        policy.add(make_request("long", total_tokens=100))
        served = []
        for i in range(200):
            policy.add(make_request(i, total_tokens=10))
            served.append(policy.pop(0.0).request_id)
        assert ("long" in served) != starves
        if not starves:
            assert served.index("long") == 100  # after ten times its own tokens


def test_the_cap_follows_recent_sizes():
    policy = Express(**OFF | {"express_share": 0.5})
    for i in range(2000):
        policy.add(make_request(f"old {i}", total_tokens=i % 10 + 1))
        policy.pop(0.0)
    policy.add(make_request("large", total_tokens=50))
    policy.add(make_request("medium", total_tokens=40))
    assert [request.request_id for request in policy] == ["large", "medium"]  # both above the cap
    for i in range(600):
        policy.add(make_request(f"new {i}", total_tokens=100 + i % 10))
    policy.add(make_request("medium again", total_tokens=40))
    assert next(iter(policy)).request_id == "medium again"


def test_parameters_are_checked():
    for name, value in {
        "express_share": 1.1,
        "fifo_share": -0.1,
        "fairness": -1.0,
        "uncertainty": float("inf"),
    }.items():
        with pytest.raises(ValueError, match=f"{name} is"):
            Express(**{name: value})
    with pytest.raises(ValueError, match="weights is"):
        Express(weights=EQUAL | {"batch": 0})
