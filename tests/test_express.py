"""Express: what each of its terms does, and the wait that it promises."""

from collections import Counter
from math import inf
from statistics import mean

import pytest
from helpers import filled, ids, make_request
from hypothesis import given
from hypothesis import strategies as st

from driftsched_lib.policies import Express, Fifo, ShortestJobFirst
from driftsched_lib.requests import TIERS, Tier

OFF = {"express_share": 1, "fifo_share": 0, "lead_tokens": 1e9, "uncertainty": 0, "input_price": 1}
OFF |= {"tiers": dict.fromkeys(TIERS, Tier(weight=1))}


def express(**options):
    return Express(**OFF | options)


@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=40))
def test_without_its_terms_it_is_sjf_and_without_an_express_lane_fifo(sizes):
    requests = [make_request(i, total_tokens=size) for i, size in enumerate(sizes)]
    for mine, simple in ((express(), ShortestJobFirst()), (express(express_share=0), Fifo())):
        assert ids(filled(mine, requests)) == ids(filled(simple, requests))


POINT = st.integers(1, 20)
SIZES = POINT.map(lambda size: [size] * 4) | st.lists(POINT, min_size=4, max_size=4).map(sorted)
ACTIONS = st.sampled_from(["add", "pop", "add", "pop", "remove"])
HISTORIES = st.lists(st.tuples(ACTIONS, st.integers(1, 12), SIZES, st.integers(0, 2)), min_size=8, max_size=30)


@given(HISTORIES, st.sampled_from([0.3, 1.0]), st.sampled_from([1 / 16, 1 / 4, 1.0]), st.sampled_from([0, 0, 10, 50]))
def test_no_request_waits_longer_and_no_tenant_has_more_than_promised(history, express_share, fifo_share, lead):
    """At most (A + 2 L) / fifo_share tokens are dispatched while one waits: A queued before it, L the largest request.

    Whether it is served in the end, removed or still there: sizes are the means of distributions.  In the express lane
    a tenant has, per weight, at most `lead` tokens and a request more than the virtual time has gone on.
    """
    policy = Express(express_share, fifo_share, lead)
    dispatched, virtual_time, queued, allowed, had = 0.0, 0.0, {}, {}, Counter()
    for i, (action, size, tenant) in enumerate((action, *rest) for action, n, *rest in history for _ in range(n)):
        if action == "add":
            allowed[str(i)] = dispatched + (sum(queued.values()) + 2 * 20) / fifo_share
            queued[str(i)] = mean(size)
            sender = {"tier": list(TIERS)[tenant // 2], "tenant": str(tenant)}
            policy.add(make_request(i, total_tokens=size[1], quantiles=tuple(size), **sender))
        elif action == "remove" and queued:
            del queued[policy.remove(list(queued)[i % len(queued)]).request_id]
        elif queued:
            first = policy.peek(0.0)
            weight = policy.weights[first.tier]
            if policy._alive[first.request_id][0] < inf:
                had[first.tenant] += queued[first.request_id] / weight
                assert had[first.tenant] <= virtual_time + lead + 20 / weight + 1e-9
            present = {request.tenant: policy.weights[request.tier] for _, _, request in policy._alive.values()}
            virtual_time += queued[first.request_id] / sum(present.values())
            dispatched += queued.pop(policy.pop(0.0).request_id)
        assert all(dispatched <= allowed[request_id] + 20 for request_id in queued)


def test_a_request_that_comes_back_keeps_its_place_and_is_counted_once_and_a_removed_one_is_not():
    policy = express(lead_tokens=0.0)
    policy.add(make_request("gone", total_tokens=10))
    policy.remove("gone")
    filled(policy, [make_request("other", tenant="other", total_tokens=99), make_request("mine", total_tokens=30)])
    mine = policy.pop(0.0)
    assert policy._virtual_time == 30 / 2
    before = policy._virtual_time, dict(policy._tags)
    for _ in range(5):
        policy.add(mine)
        assert policy.pop(0.0) is mine
    assert (policy._virtual_time, policy._tags) == before
    policy.on_finish(mine, 50)
    assert policy._tags == {mine.tenant: 50.0, "other": 99.0}


@pytest.mark.parametrize(("fifo_share", "places"), [(0, []), (0.1, [100, 191])])  # after ten times its own tokens
def test_without_a_fifo_share_a_long_request_starves_and_with_one_it_does_not(fifo_share, places):
    policy, served = express(fifo_share=fifo_share), []
    filled(policy, [make_request(f"long {i}", total_tokens=100) for i in range(2)])
    for i in range(300):
        policy.add(make_request(i, total_tokens=10))
        served.append(policy.pop(0.0).request_id)
    assert [i for i, request_id in enumerate(served) if "long" in request_id] == places


def test_tenants_that_are_gone_are_forgotten():
    policy = Express()
    for i in range(5000):
        policy.add(make_request(i, tenant=f"name {i}"))
        policy.on_finish(policy.pop(0.0), 10)
    assert len(policy._tags) < 300 and not policy._present and not policy._dispatched and not policy._counted


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
