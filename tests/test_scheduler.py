"""Every submitted request ends in exactly one record."""

from collections import Counter
from math import inf

import pytest
from helpers import make_request, make_scheduler
from hypothesis import given
from hypothesis import strategies as st

from driftsched_lib.estimators import Censored, PaperEstimator
from driftsched_lib.policies import POLICIES, Fifo
from driftsched_lib.requests import TIERS, Outcome, Output

ACTION = st.sampled_from(["submit"] * 3 + ["next"] * 2 + ["preempt", "complete", "cancel", "expire", "fail"])
ACTIONS = st.lists(st.tuples(ACTION, st.sampled_from(list(TIERS)), st.integers(0, 30), st.booleans()), max_size=80)


def queue(*requests, policy=None, capacity=None):
    """Return a scheduler that these requests were submitted to as they arrived, and the list of its records."""
    scheduler, records = make_scheduler(policy, capacity)
    for request in requests:
        scheduler.submit(request, request.arrival_s)
    return scheduler, records


@pytest.mark.parametrize("name", POLICIES)
@given(actions=ACTIONS)
def test_conserves_requests(name, actions):
    scheduler, records = make_scheduler(POLICIES[name](), capacity=8)
    submitted, running, now = [], [], 0.0
    for i, (action, tier, number, flag) in enumerate(actions):
        now += 1.0
        if action == "submit":
            deadline = now + number if flag else None
            scheduler.submit(make_request(i, arrival_s=now, tier=tier, deadline_s=deadline), now)
            submitted.append(str(i))
        elif action == "next" and (request := scheduler.next(now)) is not None:
            running.append(request)
        elif action == "preempt" and running:
            made = {r.request_id: r.num_output_tokens + (number * j) % 90 for j, r in enumerate(running)}
            victim = scheduler.preempt(made, now)
            running = [request for request in running if request is not victim]
        elif action == "complete" and running:
            request = running.pop(number % len(running))
            scheduler.complete(Output(request, 4, 5, 5, now, now, error="broken" if flag else None))
        elif action == "cancel" and submitted:
            cancelled = scheduler.cancel(submitted[number % len(submitted)], now)
            assert (cancelled in running) == (cancelled is not None)
            running = [request for request in running if request is not cancelled]
        elif action == "expire":
            scheduler.expire(now)
        elif action == "fail" and number == 0:
            scheduler.fail_all("the engine died", now)
            running = []
        ended = Counter(record.request_id for record in records)
        assert set(ended.values()) <= {1}
        assert len(submitted) == len(records) + len(scheduler) + len(running)
        assert len(scheduler) == len(scheduler.policy) <= 8
        assert scheduler.depth == dict.fromkeys(TIERS, 0) | Counter(request.tier for request in scheduler.policy)
        assert scheduler.is_idle == (not running and not len(scheduler))
    scheduler.fail_all("the end", now)
    assert sorted(record.request_id for record in records) == sorted(submitted)
    assert scheduler.is_idle and set(scheduler.depth.values()) == {0}


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


def test_a_request_expires_at_its_deadline_while_queued_and_when_the_engine_could_not_begin_with_it():
    scheduler, records = queue(make_request(1, deadline_s=5.0), make_request(2, deadline_s=6.0))
    assert scheduler.next(1.0).request_id == "1" and scheduler.next_deadline() == 6.0
    scheduler.expire(5.9)
    assert records == []
    assert scheduler.next(6.0) is None and scheduler.next_deadline() == inf
    scheduler.give_back("1")
    assert scheduler.next_deadline() == 5.0
    scheduler.expire(7.0)
    assert [(r.request_id, r.outcome, r.finish_s) for r in records] == [("2", "expired", 6.0), ("1", "expired", 7.0)]


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


def test_a_running_request_is_handed_back_when_its_client_gives_up():
    scheduler, records = queue(make_request(1), make_request(2))
    running = scheduler.next(1.0)
    assert scheduler.cancel("2", 2.0) is None and scheduler.cancel("1", 3.0) is running
    assert scheduler.cancel("1", 4.0) is None and scheduler.cancel("never seen", 4.0) is None
    ended = [(r.request_id, r.finish_s, r.outcome, r.reason) for r in records]
    assert ended == [
        (i, s, "cancelled", f"cancelled while {at}") for i, s, at in (("2", 2, "queued"), ("1", 3, "running"))
    ]


def test_an_output_that_cannot_be_counted_leaves_its_request_to_be_failed():
    scheduler, records = queue(make_request(1))
    with pytest.raises(ValueError, match="needs the generated text"):
        scheduler.complete(Output(scheduler.next(0.0), 4, 4, None, 1.0, 2.0))
    scheduler.fail_all("no text", 2.0)
    assert [(r.outcome, r.reason) for r in records] == [("failed", "no text")]


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


class Takes(Fifo):
    """Hears of every end, and takes any slot back."""

    preemptive = True

    def __init__(self):
        super().__init__()
        self.heard = []

    def victim(self, running, now):
        return next(iter(running), None)

    def on_finish(self, request, output_tokens):
        self.heard.append((request.request_id, output_tokens))


def test_a_policy_hears_how_each_request_that_it_dispatched_ended():
    scheduler, _ = queue(*map(make_request, range(7)), policy=(policy := Takes()))
    estimated = scheduler.next(1.0).estimate.output_tokens
    running = [scheduler.next(1.0) for _ in range(4)]
    scheduler.complete(Output(running[0], 4, 40, 32, 2.0, 3.0))  # in the run's accounting, whitespace here
    scheduler.complete(Output(running[1], 4, 7, None, 2.0, 3.0, error="broken"))
    scheduler.cancel("3", 3.0, output_tokens=5)
    scheduler.cancel("4", 3.0)
    scheduler.cancel("5", 3.0)  # never dispatched
    assert scheduler.preempt({"0": 9}, 4.0).request_id == "0"
    scheduler.cancel("0", 5.0)  # in the queue, with 9 tokens made
    scheduler.next(6.0)
    scheduler.fail_all("the engine died", 7.0)
    assert policy.heard == [("1", 32), ("2", 7), ("3", 5), ("4", estimated), ("0", 9), ("6", estimated)]
