"""The serving loop over an engine in virtual time that gives every request a token a second."""

from collections import defaultdict

import pytest
from helpers import OneTokenASecond, ids, make_request, make_scheduler
from hypothesis import given
from hypothesis import strategies as st

from driftsched_lib.requests import TIERS
from driftsched_lib.serving import ContinuousBatching, QueueDepth, StaticBatching, serve


def run(requests, batching, slots=4, **options):
    """Serve and return the engine and the records by request id."""
    scheduler, records = make_scheduler()
    engine = OneTokenASecond(slots)
    serve(requests, scheduler, engine, batching, **options)
    assert sorted(record.request_id for record in records) == sorted(request.request_id for request in requests)
    return engine, {record.request_id: record for record in records}


def outcomes(records):
    return {request_id: (record.outcome.value, record.finish_s) for request_id, record in records.items()}


CONTINUOUS = {"a": (0, 3, None, None), "b": (0, 1, None, None), "c": (1, 3, None, None), "d": (3, 4, None, None)}
STATIC = {"a": (0, 3, 0, 2), "b": (0, 3, 0, 2), "c": (3, 5, 1, 2), "d": (3, 5, 1, 2)}


@pytest.mark.parametrize(
    ("batching", "slots", "expected"), [(ContinuousBatching(), 2, CONTINUOUS), (StaticBatching(2, 0.01), 4, STATIC)]
)
def test_a_free_slot_is_filled_at_once_and_a_static_batch_ends_with_its_last(batching, slots, expected):
    _, records = run(
        [make_request(i, max_tokens=n) for i, n in zip("abcd", (3, 1, 2, 1), strict=True)], batching, slots
    )
    spans = {i: (r.dispatch_s, r.finish_s, r.batch_id, r.batch_size) for i, r in records.items()}
    assert spans == expected and records["b"].engine_first_token_s == 1.0
    assert records["b"].first_token_s == (1.0 if isinstance(batching, ContinuousBatching) else 3.0)


def test_a_static_batch_closes_when_its_window_has_passed_unless_its_only_request_gave_up():
    requests = [make_request("a"), make_request("b", arrival_s=0.5), make_request("c", arrival_s=1.5)]
    engine, _ = run(requests, StaticBatching(3, wait_s=1.0))
    assert engine.log == [(1.0, "a"), (1.0, "b"), (5.0 + 1.0, "c")]
    requests = [make_request("gone", cancel_s=0.5), make_request("later", arrival_s=10.0)]
    engine, records = run(requests, StaticBatching(2, wait_s=1.0))
    assert outcomes(records) == {"gone": ("cancelled", 0.5), "later": ("completed", 15.0)}
    assert engine.log == [(11.0, "later")]


def test_arrivals_are_open_loop_and_phases_follow_each_other():
    scheduler, records = make_scheduler()
    engine = OneTokenASecond(slots=1)
    serve([make_request("a", max_tokens=9), make_request("b", arrival_s=1.0)], scheduler, engine, ContinuousBatching())
    assert engine.now() == 13.0
    serve([make_request("c", arrival_s=1.0)], scheduler, engine, ContinuousBatching(), start_s=20.0)
    assert [(r.request_id, r.arrival_s, r.dispatch_s) for r in records] == [("a", 0, 0), ("b", 1, 9), ("c", 21, 21)]


def test_a_phase_shifts_all_times_of_its_requests_and_the_loop_wakes_for_a_deadline():
    requests = [make_request("expires", deadline_s=5.0), make_request("leaves", cancel_s=7.0)]
    _, records = run(requests, ContinuousBatching(), slots=0, start_s=20.0)
    assert outcomes(records) == {"expires": ("expired", 25.0), "leaves": ("cancelled", 27.0)}
    assert {record.arrival_s for record in records.values()} == {20.0}


@pytest.mark.parametrize("batching", [ContinuousBatching(), StaticBatching(2, 0.0)], ids=["continuous", "static"])
def test_clients_that_give_up(batching):
    requests = [
        make_request("stays", max_tokens=5),
        make_request("running", max_tokens=9, cancel_s=2.0),
        make_request("queued", arrival_s=0.5, cancel_s=1.5),
        make_request("expires", arrival_s=0.6, deadline_s=1.7),
        make_request("after", arrival_s=4.0, max_tokens=1, cancel_s=99.0),
    ]
    engine, records = run(requests, batching, slots=2)
    ended = {request_id: record.outcome for request_id, record in records.items()}
    cancelled = dict.fromkeys(("running", "queued"), "cancelled")
    assert ended == cancelled | {"stays": "completed", "expires": "expired", "after": "completed"}
    assert engine.left == {}


def test_a_request_of_a_batch_can_be_cancelled_at_the_barrier_and_expire_while_the_batch_is_open():
    requests = [make_request("done", max_tokens=1, cancel_s=3.0), make_request("long", max_tokens=9, cancel_s=5.0)]
    _, records = run([*requests, make_request("short", max_tokens=2)], StaticBatching(3, 0.0))
    assert outcomes(records) == {"done": ("cancelled", 3.0), "long": ("cancelled", 5.0), "short": ("completed", 5.0)}
    requests = [make_request("late", deadline_s=2.0), make_request("fine", arrival_s=1.0)]
    _, records = run(requests, StaticBatching(3, wait_s=5.0))
    assert outcomes(records) == {"late": ("expired", 2.0), "fine": ("completed", 9.0)}


def test_an_engine_that_raises_fails_everything_that_is_there_and_a_loop_that_cannot_go_on_says_so():
    scheduler, records = make_scheduler()
    requests = [make_request(i, arrival_s=i * 0.1) for i in range(3)]
    with pytest.raises(OSError, match="the engine died"):
        serve(requests, scheduler, OneTokenASecond(slots=1, fails_at=6.0), ContinuousBatching())
    assert [record.outcome.value for record in records] == ["completed", "failed", "failed"]
    assert records[1].reason == "OSError: the engine died"
    with pytest.raises(RuntimeError, match="no progress"):
        run([make_request("a")], ContinuousBatching(), slots=0)


ARRIVAL, LENGTH = st.integers(0, 20), st.sampled_from([1, 2, 5, 2000])  # the last one is refused
LOADS = st.lists(  # with the client's patience and that in the queue
    st.tuples(ARRIVAL, LENGTH, st.none() | st.integers(0, 30), st.none() | st.integers(1, 30)), max_size=15
)


def requests_of(load):
    requests = []
    for i, (arrival, length, patience, timeout) in enumerate(sorted(load, key=lambda row: row[0])):
        cancel_s, deadline_s = (None if after is None else arrival + after for after in (patience, timeout))
        fields = {"max_tokens": length, "cancel_s": cancel_s, "deadline_s": deadline_s}
        requests.append(make_request(i, float(arrival), **fields))
    return requests


@given(LOADS)
def test_any_load_ends_within_capacity_and_in_order(load):
    engine, records = run(requests_of(load), ContinuousBatching(), slots=2)
    assert engine.left == {}
    assert [int(request_id) for _, request_id in engine.log] == sorted(int(request_id) for _, request_id in engine.log)
    dispatched = [record for record in records.values() if record.dispatch_s is not None]
    for record in dispatched:
        assert (record.outcome == "failed") == (record.max_tokens == 2000)
        running = [other for other in dispatched if other.dispatch_s <= record.dispatch_s < other.finish_s]
        assert len(running) <= 2
        if record.outcome == "completed":
            assert record.finish_s == record.dispatch_s + record.max_tokens


@given(LOADS, st.sampled_from([0.0, 1.5, 4.0]))
def test_any_load_goes_through_the_barrier_batch_by_batch(load, wait_s):
    requests = requests_of(load)
    sent = {request.request_id: request for request in requests}
    engine, records = run(requests, StaticBatching(3, wait_s))
    assert engine.left == {}
    batches, free_s = defaultdict(list), 0.0
    for record in records.values():
        batches[record.batch_id].append(record)
    batches.pop(None, None)
    for _, batch in sorted(batches.items()):
        assert {record.batch_size for record in batch} == {len(batch)} and len(batch) <= 3
        [dispatch_s] = {record.dispatch_s for record in batch}
        assert dispatch_s >= free_s
        assert all(record.deadline_s is None or record.deadline_s > dispatch_s for record in map(sent.get, ids(batch)))
        served = [record for record in batch if record.outcome != "failed"]
        free_s = max((min(record.finish_s, dispatch_s + record.max_tokens) for record in served), default=free_s)
        for record in served:
            if record.outcome == "completed":
                times = (record.engine_first_token_s, record.first_token_s, record.finish_s)
                assert times == (dispatch_s + 1, free_s, free_s)
    assert sorted(batches) == list(range(len(batches)))


def test_queue_depth_is_sampled_at_its_interval():
    depth = QueueDepth(interval_s=2.0)
    run([make_request(i, tier=list(TIERS)[i]) for i in range(3)], ContinuousBatching(), slots=1, monitor=depth)
    assert [row[0] for row in depth.rows] == [0, 2, 4, 6, 8, 10, 12]
    assert depth.rows[0][1:] == (0, 1, 1) and depth.rows[-1][1:] == (0, 0, 0)
