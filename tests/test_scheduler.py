"""Every submitted request ends in exactly one record."""

from collections import Counter
from math import inf

import pytest
from helpers import make_request, make_scheduler
from hypothesis import given
from hypothesis import strategies as st

from driftsched_lib.estimators import Censored, PaperEstimator
from driftsched_lib.policies import POLICIES
from driftsched_lib.requests import TIERS, Outcome, Output


def queue(*requests, capacity=None):
    """Return a scheduler that these requests were submitted to as they arrived, and the list of its records."""
    scheduler, records = make_scheduler(capacity=capacity)
    for request in requests:
        scheduler.submit(request, request.arrival_s)
    return scheduler, records


MORE = ["give_back", "preempt", "complete", "uncounted", "cancel", "expire", "fail"]
ACTION = st.sampled_from(["submit"] * 4 + ["next"] * 3 + MORE)
STEPS = st.tuples(ACTION, st.sampled_from(list(TIERS)), st.integers(0, 30), st.booleans())


@pytest.mark.parametrize("name", POLICIES)
@given(steps=st.lists(STEPS, min_size=8, max_size=40))
def test_each_request_ends_once_as_it_should_and_a_policy_hears_how_what_it_dispatched_ended(name, steps):
    policy = POLICIES[name]()
    scheduler, records = make_scheduler(policy, capacity=8)
    queued, running, ended, dispatched, heard, told, now = {}, {}, {}, set(), {}, [], 0.0
    on_finish = policy.on_finish
    policy.on_finish = lambda request, tokens: (told.append((request.request_id, tokens)), on_finish(request, tokens))

    def move(request, here, there):
        there[request.request_id] = here.pop(request.request_id)

    def end(request, outcome, reason, tokens=None):
        """The tokens that a policy hears of are those made if it waits again, and by default those estimated."""
        ended[request.request_id] = outcome, reason, now
        if queued.pop(request.request_id, None):
            tokens = request.num_output_tokens
        running.pop(request.request_id, None)
        if request.request_id in dispatched:
            heard[request.request_id] = request.estimate.output_tokens if tokens is None else tokens

    def end_overdue():
        for request in [request for request in queued.values() if (request.deadline_s or inf) <= now]:
            end(request, "expired", "deadline passed in the queue")

    for i, (action, tier, number, flag) in enumerate([*steps, ("fail", "batch", 0, False)]):
        now += 1.0
        here = running if action in ("give_back", "complete", "uncounted") else queued | running
        some = list(here.values())[number % len(here)] if here else None
        match action:
            case "submit":
                request = make_request(i, now, tier, deadline_s=now + number if flag else None)
                scheduler.submit(request, now)
                if len(queued) >= 8:  # those that come back are not turned away
                    end(request, "rejected", "queue full (8)")
                else:
                    queued[request.request_id] = request
            case "next":
                end_overdue()
                request = scheduler.next(now)
                assert (request is None) == (not queued)
                if request is not None:
                    move(request, queued, running)
                    dispatched.add(request.request_id)
            case "preempt":
                made = {r.request_id: r.num_output_tokens + (number * j) % 90 for j, r in enumerate(running.values())}
                if (victim := scheduler.preempt(made, now)) is not None:
                    move(victim, running, queued)
            case "expire":
                end_overdue()
                scheduler.expire(now)
            case "give_back" if some:
                scheduler.give_back(some.request_id)
                move(some, running, queued)
            case "complete" if some:
                scheduler.complete(Output(some, 4, 5, 6, now, now, error="broken" if flag else None))
                end(some, *(("failed", "broken", 5) if flag else ("completed", "", 6)))
            case "uncounted" if some:
                with pytest.raises(ValueError, match="needs the generated text"):
                    scheduler.complete(Output(some, 4, 5, None, now, now))
            case "cancel" if some:
                tokens = number if flag else None
                assert scheduler.cancel(some.request_id, now, tokens) is running.get(some.request_id)
                end(
                    some, "cancelled", f"cancelled while {'queued' if some.request_id in queued else 'running'}", tokens
                )
                assert scheduler.cancel(some.request_id, now) is None
            case "fail" if number == 0:
                assert scheduler.fail_all("the engine died", now) == list(running)
                for request in (*queued.values(), *running.values()):
                    end(request, "failed", "the engine died")
        assert len(scheduler) == len(policy) == len(queued) and scheduler.is_idle == (not queued and not running)
        assert scheduler.depth == dict.fromkeys(TIERS, 0) | Counter(request.tier for request in queued.values())
        assert scheduler.next_deadline() == min((r.deadline_s or inf for r in queued.values()), default=inf)
    assert {record.request_id: (record.outcome, record.reason, record.finish_s) for record in records} == ended
    assert len(records) == len(ended) and dict(told) == heard and len(told) == len(heard)


def test_submission_classifies_counts_and_estimates_and_a_full_queue_rejects_with_the_reason():
    request, output_tokens = make_request(1, tier="premium", max_tokens=256), int(256 * 1.2 * 1.005)
    request.prompt = "Summarize DNS in ten words."
    _, records = queue(request, make_request(2), capacity=1)
    assert (request.category, request.input_tokens) == ("summary", 5)
    assert (request.estimate.output_tokens, request.estimate.total_tokens) == (output_tokens, 5 + output_tokens)
    assert [(r.request_id, r.outcome, r.reason) for r in records] == [("2", "rejected", "queue full (1)")]


def test_completion_is_learnt_from_and_recorded():
    scheduler, records = queue(make_request(1, max_tokens=64))
    request = scheduler.next(2.0)
    scheduler.complete(Output(request, prompt_tokens=6, tokens=40, words=32, first_token_s=3.0, finish_s=9.0))
    [record] = records
    assert record.outcome is Outcome.COMPLETED and record.finish_s == 9.0
    assert (record.output_tokens, record.output_words, record.actual_tokens) == (40, 32, 32)
    assert (record.bias_before, record.measured_bias, record.bias_after) == (1.0, 0.5, pytest.approx(0.95))


def test_an_output_cut_at_its_limit_is_observed_as_censored_though_its_words_are_fewer():
    class Mine(PaperEstimator):
        def observe(self, request, output_tokens):
            seen.append((output_tokens, isinstance(output_tokens, Censored)))

    seen, (scheduler, _) = [], queue(*(make_request(i, max_tokens=limit) for i, limit in enumerate((64, 20, 64))))
    scheduler.estimator = Mine()
    for tokens in (40, 20, 64):
        scheduler.complete(Output(scheduler.next(2.0), 6, tokens, tokens // 2, first_token_s=3.0, finish_s=9.0))
    assert seen == [(20, False), (10, True), (32, True)]


def test_an_id_that_comes_back_has_its_new_deadline_and_one_that_is_here_is_refused():
    scheduler, records = queue(make_request(1, deadline_s=5.0))
    scheduler.cancel("1", 1.0)
    scheduler.submit(make_request(1, deadline_s=10.0), 2.0)
    scheduler.expire(9.0)
    assert len(records) == len(scheduler) == 1
    scheduler.expire(10.0)
    assert [r.outcome for r in records] == ["cancelled", "expired"]
    scheduler.submit(make_request(1), 11.0)
    for _ in ("queued", "running"):
        with pytest.raises(ValueError, match="already here"):
            scheduler.submit(make_request(1), 11.0)
        scheduler.next(11.0)


def test_admission_turns_away_with_its_reason_and_sees_what_is_queued():
    seen = []

    def at_most_one_premium(request, now, queued_tokens):
        seen.append(dict(queued_tokens))
        return "enough" if request.tier == "premium" and queued_tokens["premium"] else None

    scheduler, records = make_scheduler()
    scheduler.admission = at_most_one_premium
    for i, tier in enumerate(("premium", "premium", "batch")):
        scheduler.submit(make_request(i, tier=tier), float(i))
    [record] = records
    assert (record.request_id, record.outcome, record.reason, record.finish_s) == ("1", "rejected", "enough", 1.0)
    assert record.estimated_tokens is not None and scheduler.depth == {"premium": 1, "standard": 0, "batch": 1}
    first = seen[1]["premium"]
    assert first > 0 and seen[0] == dict.fromkeys(TIERS, 0) and seen[2] == {"premium": first, "standard": 0, "batch": 0}
    scheduler.next(3.0)
    scheduler.cancel("2", 3.0)
    assert scheduler.queued_tokens == dict.fromkeys(TIERS, 0)
