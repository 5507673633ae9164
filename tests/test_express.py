"""Express: what each of its terms does, and the wait that it promises."""

from math import inf

import pytest
from helpers import filled, ids, make_request
from hypothesis import given
from hypothesis import strategies as st
from naive_policies import halving

from driftsched_lib.policies import Express, Fifo, ShortestJobFirst
from driftsched_lib.policies.base import example_order
from driftsched_lib.requests import TIERS, Tier

EQUAL = dict.fromkeys(TIERS, Tier(weight=1))
OFF = {"tiers": EQUAL, "express_share": 1, "fifo_share": 0, "lead_tokens": 1e9, "uncertainty": 0, "input_price": 1}
SIZES = st.lists(st.integers(1, 20), min_size=1, max_size=40)


def express(**options):
    return Express(**OFF | options)


def order(policy, sizes, *tiers):
    """Return the places of the sizes in which a policy serves them; tiers take turns."""
    tiers = tiers or ("standard",)
    requests = [make_request(i, tier=tiers[i % len(tiers)], total_tokens=size) for i, size in enumerate(sizes)]
    return [int(request_id) for request_id in example_order(policy, *requests)]


@given(sizes=SIZES)
def test_without_its_terms_it_is_sjf_and_without_an_express_lane_fifo(sizes):
    assert order(express(), sizes) == order(ShortestJobFirst(), sizes)
    assert order(express(express_share=0), sizes) == order(Fifo(), sizes)


def test_above_the_cap_it_is_fifo_and_the_weight_of_a_tier_divides_the_size():
    """40 and 25 are larger than half of what had come by then, themselves included; 30 and 20 were not."""
    sizes = [30, 1, 20, 2, 40, 3, 25, 4]
    served = order(express(express_share=0.5), sizes)
    assert [sizes[i] for i in served] == [1, 2, 3, 4, 20, 30, 40, 25]
    policy = express(tiers=halving(*TIERS))
    assert order(policy, [30, 20, 9, 30], "premium", "standard", "batch", "premium") == [0, 3, 2, 1]


def test_a_size_counts_the_prompt_at_its_price_and_goes_from_the_point_to_the_mean():
    prompt, spread = make_request(1, input_tokens=100), make_request(1, quantiles=(10.0, 10.0, 40.0, 100.0))
    assert [express(input_price=price).key(prompt) for price in (0, 0.1, 1)] == [10, 20, 110]
    assert [express(uncertainty=share).key(spread) for share in (0, 0.5, 1)] == [10, 25, 40]
    gamble, sure = make_request("gamble", quantiles=(1.0, 19.0)), make_request("sure", quantiles=(9.9, 9.9))
    assert example_order(express(uncertainty=1), gamble, sure) == ["sure", "gamble"]  # a mean of 10 against 9.9


@pytest.mark.parametrize(("lead_tokens", "longest"), [(1e9, 100), (20, 2)])
def test_a_tenant_beyond_its_share_makes_no_other_wait(lead_tokens, longest):
    """In each of 40 rounds one tenant sends nine short requests, the other a longer one, and five are served."""
    policy = express(lead_tokens=lead_tokens)
    waits = []
    for round_ in range(40):
        sizes = [*[(10, "noisy")] * 9, (11, "other")]
        filled(
            policy, [make_request(10 * round_ + i, round_, "standard", n, tenant=t) for i, (n, t) in enumerate(sizes)]
        )
        served = [policy.pop(round_) for _ in range(5)]
        waits += [round_ - request.arrival_s for request in served if request.tenant == "other"]
    waits += [40 - request.arrival_s for request in policy if request.tenant == "other"]
    assert (max(waits) > 10) == (lead_tokens == 1e9) and max(waits) <= longest


ACTIONS, SIZE = st.sampled_from(["add", "add", "pop", "remove"]), st.integers(1, 20)
STEPS = st.lists(st.tuples(ACTIONS, SIZE, st.integers(0, 3)), max_size=120)


@given(steps=STEPS, lead=st.sampled_from([0, 10, 50]))
def test_no_tenant_has_more_in_the_express_lane_than_promised(steps, lead):
    """`lead_tokens` and a request more, per weight, than the virtual time has gone on."""
    policy = Express(express_share=1.0, lead_tokens=lead)
    had, queued = {}, []
    for i, (action, size, tenant) in enumerate(steps):
        if action == "add":
            queued.append(make_request(i, tier=list(TIERS)[tenant % 3], total_tokens=size, tenant=str(tenant)))
            policy.add(queued[-1])
        elif queued and action == "remove":
            policy.remove(queued.pop(size % len(queued)).request_id)
        elif queued:
            first = policy.peek(0.0)
            if policy._alive[first.request_id][0] < inf:
                per_weight = first.estimate.total_tokens / policy.weights[first.tier]
                had[first.tenant] = had.get(first.tenant, 0) + per_weight
                assert had[first.tenant] <= policy._virtual_time + lead + 20 / policy.weights[first.tier] + 1e-9
            queued.remove(policy.pop(0.0))


ACTIONS = st.sampled_from(["add", "pop", "add", "pop", "remove"])
SIZE = SIZE.map(lambda size: [size] * 4) | st.lists(SIZE, min_size=4, max_size=4).map(sorted)
HISTORIES = st.lists(st.tuples(ACTIONS, SIZE, st.sampled_from(list(TIERS))), max_size=120)


@given(HISTORIES, st.sampled_from([1 / 16, 1 / 4, 1.0]), st.sampled_from([0.3, 1.0]))
def test_no_request_waits_longer_than_promised(history, fifo_share, express_share):
    """At most (A + 2 L) / fifo_share tokens dispatched while it waits: A queued before it, L the largest request.

    Whether it is served in the end, removed or still there: sizes are the means of distributions.
    """
    policy = Express(express_share=express_share, fifo_share=fifo_share)
    dispatched, queued, allowed = 0.0, {}, {}
    for i, (action, size, tier) in enumerate(history):
        if action == "add":
            allowed[str(i)] = dispatched + (sum(queued.values()) + 2 * 20) / fifo_share
            queued[str(i)] = sum(size) / 4
            policy.add(make_request(i, tier=tier, total_tokens=size[1], quantiles=tuple(size)))
        elif action == "remove" and queued:
            del queued[policy.remove(list(queued)[i % len(queued)]).request_id]
        elif queued:
            dispatched += queued.pop(policy.pop(0.0).request_id)
        assert all(dispatched <= allowed[request_id] + 20 for request_id in queued)


def test_a_request_that_comes_back_keeps_its_place_and_is_counted_once():
    policy = express(lead_tokens=0.0)
    policy.add(make_request("mine", total_tokens=30))
    mine = policy.pop(0.0)
    before = policy._virtual_time, dict(policy._tags)
    for _ in range(5):
        policy.add(mine)
        assert policy.pop(0.0) is mine
    assert (policy._virtual_time, policy._tags) == before
    policy.on_finish(mine, 50)
    assert policy._tags == {mine.tenant: 50.0} and not policy._dispatched


def test_tenants_that_are_gone_are_forgotten():
    policy = Express()
    for i in range(5000):
        policy.add(make_request(i, tenant=f"name {i}"))
        policy.on_finish(policy.pop(0.0), 10)
    assert len(policy._tags) < 300 and not policy._present


@pytest.mark.parametrize(("fifo_share", "place"), [(0, None), (0.1, 100)])  # after ten times its own tokens
def test_without_a_fifo_share_a_long_request_starves_and_with_one_it_does_not(fifo_share, place):
    policy, served = filled(express(fifo_share=fifo_share), [make_request("long", total_tokens=100)]), []
    for i in range(200):
        policy.add(make_request(i, total_tokens=10))
        served.append(policy.pop(0.0).request_id)
    assert [i for i, request_id in enumerate(served) if request_id == "long"] == ([] if place is None else [place])


def test_the_cap_follows_recent_sizes():
    policy = express(express_share=0.5)
    for i in range(2000):
        policy.add(make_request(f"old {i}", total_tokens=i % 10 + 1))
        policy.pop(0.0)
    above_the_cap = [make_request("large", total_tokens=50), make_request("medium", total_tokens=40)]
    assert ids(filled(policy, above_the_cap)) == ["large", "medium"]
    filled(policy, [make_request(f"new {i}", total_tokens=100 + i % 10) for i in range(600)])
    policy.add(make_request("medium again", total_tokens=40))
    assert next(iter(policy)).request_id == "medium again"
