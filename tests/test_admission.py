"""Who is turned away, and why."""

from math import inf

import pytest
from helpers import make_request
from hypothesis import given
from hypothesis import strategies as st
from simulation import PAPER_L4, SMALL

from driftsched_lib import Params, results, run_grid
from driftsched_lib.admission import LoadShedding, TokenBuckets, admission_check
from driftsched_lib.errors import ParamsError
from driftsched_lib.requests import TIERS

RATES = {"premium": 8.0, "standard": 4.0, "batch": 2.0}
DEPTHS = {"premium": 80.0, "standard": 40.0, "batch": 20.0}
EMPTY = dict.fromkeys(TIERS, 0.0)


def sent_by(tenant, tokens, tier="batch"):
    return make_request(1, tier=tier, total_tokens=tokens, tenant=tenant)


def test_a_bucket_pays_until_it_is_empty_and_fills_again():
    spent = "token budget of a is spent"
    for sent in (
        [("a", 15, 0.0, None), ("a", 6, 0.0, spent), ("b", 6, 0.0, None), ("a", 6, 0.25, spent), ("a", 6, 0.5, None)],
        # A request larger than the bucket waits for a full one and owes the rest.
        [("a", 30, 0, None), ("a", 1, 5, spent), ("a", 1, 5.5, None), ("a", 30, 14, spent), ("a", 30, 16, None)],
    ):
        buckets = TokenBuckets(RATES, DEPTHS)
        assert [buckets(sent_by(*one), now, EMPTY) for *one, now, _ in sent] == [reason for *_, reason in sent]


@given(sent=st.lists(st.tuples(st.integers(0, 8), st.integers(1, 20)), max_size=60))
def test_a_tenant_gets_at_most_its_rate_and_the_depth_in_any_stretch_of_time(sent):
    buckets, now, admitted = TokenBuckets(RATES, DEPTHS), 0.0, []
    for later, tokens in sent:
        now += later
        if buckets(sent_by("a", tokens), now, EMPTY) is None:
            admitted.append((now, tokens))
    for i, (start, _) in enumerate(admitted):
        for j in range(i, len(admitted)):
            stretch = admitted[j][0] - start
            assert sum(tokens for _, tokens in admitted[i : j + 1]) <= DEPTHS["batch"] + stretch * RATES["batch"]


SENT = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 2), st.sampled_from(list(TIERS)), st.integers(1, 90)))


@given(sent=SENT)
def test_forgetting_full_buckets_changes_no_decision(sent):
    buckets, forgetful, now = TokenBuckets(RATES, DEPTHS), TokenBuckets(RATES, DEPTHS), 0.0
    for later, tenant, tier, tokens in sent:
        now, forgetful._forget_at = now + later, 0
        asked = sent_by(str(tenant), tokens, tier)
        assert buckets(asked, now, EMPTY) == forgetful(asked, now, EMPTY)


def test_tenants_whose_buckets_are_full_again_are_forgotten():
    buckets = TokenBuckets(RATES, DEPTHS)
    for i in range(5000):
        assert buckets(sent_by(str(i), 1), float(i), EMPTY) is None
    assert len(buckets._levels) < 200


@pytest.mark.parametrize("tier", TIERS)
def test_the_last_tier_is_shed_first_and_one_with_infinite_patience_never(tier):
    shed = LoadShedding(10.0, {"premium": 5.0, "standard": 15.0, "batch": 60.0})
    turned_away = {queued for queued in TIERS if shed(sent_by("a", 1, tier), 0.0, EMPTY | {queued: 601.0})}
    assert turned_away == set(list(TIERS)[: list(TIERS).index(tier) + 1])
    assert shed(sent_by("a", 1, "batch"), 0.0, EMPTY | {"batch": 600.0}) is None
    reason = "more than 60 s of work before a batch request"
    assert shed(sent_by("a", 1, "batch"), 0.0, EMPTY | {"batch": 601.0}) == reason
    assert LoadShedding(1.0, dict.fromkeys(TIERS, inf))(sent_by("a", 1), 0.0, dict.fromkeys(TIERS, 1e12)) is None


def test_checks_in_turn_give_the_first_reason_and_ask_no_further():
    check = admission_check(1.0, (RATES, DEPTHS), dict.fromkeys(TIERS, 10.0))
    assert "10 s of work" in check(sent_by("a", 20), 0.0, EMPTY | {"premium": 11.0})
    assert check(sent_by("a", 20), 0.0, EMPTY) is None  # the bucket was not asked before
    assert "budget" in check(sent_by("a", 20), 0.0, EMPTY)
    assert admission_check(1.0, None, None) is None


def test_parameters_are_checked():
    with pytest.raises(ValueError, match="burst_tokens of batch is 0"):
        TokenBuckets(RATES, DEPTHS | {"batch": 0.0})
    with pytest.raises(ValueError, match="tokens_per_s is 0"):
        LoadShedding(0.0, RATES)
    with pytest.raises(ValueError, match="max_wait_s is"):
        LoadShedding(1.0, RATES | {"batch": float("nan")})
    for rules, message in (
        ({"tokens_per_s": dict.fromkeys(TIERS, 1.0)}, "give both"),
        ({"max_wait_s": {"batch": 1.0}}, "max_wait_s: it must name premium, standard, batch, each once"),
    ):
        with pytest.raises(ParamsError, match=f"scheduler.*admission.*{message}"):
            Params.load(PAPER_L4, {"scheduler.admission": rules})


def test_a_run_sheds_and_budgets_as_its_parameters_say(tmp_path):
    waits, budget = dict.fromkeys(TIERS, inf) | {"batch": 0.0}, dict.fromkeys(TIERS, 1e6) | {"standard": 1e-3}
    for tier, reason, rules in (
        ("batch", "s of work before a batch request", {"max_wait_s": waits}),
        ("standard", "token budget of", {"tokens_per_s": budget, "burst_tokens": budget}),
    ):
        changes = {"scheduler.policies": ["fifo"], "seeds": [1], "scheduler.admission": rules}
        run_grid(Params.load(PAPER_L4, SMALL | changes), tmp_path / tier, jobs=1)
        rejected = results.load(tmp_path / tier).query("outcome == 'rejected'")
        assert set(rejected.tier) == {tier} and rejected.reason.str.contains(reason).all()
