"""Several simulated engines behind a router."""

import pytest
from hypothesis import given
from simulation import LIMITS, KnowsLimits, loads, make_profile, request, requests_of, served, simulated, small

from driftsched_lib.engines.replicas import ROUTERS, ReplicatedEngine
from driftsched_lib.engines.simulated import SimulatedEngine
from driftsched_lib.serving import StaticBatching


def replicate(n, router="round_robin", max_outstanding=None, **limits):
    engines = [SimulatedEngine(make_profile(**limits)) for _ in range(n)]
    return ReplicatedEngine(engines, ROUTERS[router], max_outstanding)


@pytest.mark.parametrize(("replicas", "max_outstanding"), [(1, None), (3, 10)])
@given(small, loads)
def test_turns_taken_make_independent_engines_and_one_is_the_engine_itself(replicas, max_outstanding, limits, load):
    def patient():
        return [some for some in requests_of(load) if some.cancel_s is None]

    records = served(patient(), replicate(replicas, max_outstanding=max_outstanding, **limits))
    for turn in range(replicas):
        _, alone = simulated(patient()[turn::replicas], make_profile(**limits))
        for request_id, expected in alone.items():
            record = records[request_id]
            assert record.outcome == expected.outcome
            assert record.first_token_s == pytest.approx(expected.first_token_s)
            if record.outcome == "completed":  # a refusal is met at dispatch, between two iterations' ends
                assert record.finish_s == pytest.approx(expected.finish_s)


@given(small, loads)
def test_clients_of_replicas_may_leave(limits, load):
    replicated = replicate(2, **limits)
    assert len(served(requests_of(load), replicated)) == len(load)
    replicated.restart_clock()  # refuses where a request is left


def test_a_static_batch_larger_than_all_replicas_waits_inside_them():
    load, batching = [request(i, output=5) for i in range(20)], StaticBatching(20, 0.01)
    records = served(load, replicate(2, "least_requests"), batching=batching)
    assert {record.outcome.value for record in records.values()} == {"completed"}


@pytest.mark.parametrize(
    ("router", "first"),
    [("round_robin", ["0", "2", "4"]), ("least_requests", ["0", "2", "4"]), ("least_estimated_tokens", ["0"])],
)
def test_routers_follow_turns_requests_or_estimated_tokens(router, first):
    replicated = replicate(2, router, 9)
    for i, output in enumerate((100, 9, 9, 9, 9)):
        one = request(i, output=output)
        one.estimate = KnowsLimits().estimate(one)
        replicated.add(one)
    assert list(replicated._replicas[0].outstanding) == first


def test_replicas_have_one_clock_say_when_nothing_can_happen_and_take_turns_anew_in_a_new_run():
    replicated = replicate(2)
    assert replicated.step(2.0) == [] and replicated.now() == 2.0
    with pytest.raises(RuntimeError, match="no progress"):
        replicated.step(float("inf"))
    records = served([request(i, 2.0 + i, 3, 20) for i in range(9)], replicated)
    assert all(record.outcome == "completed" for record in records.values())
    assert replicated.steps == [] and replicated.max_num_seqs == 2 * LIMITS["max_num_seqs"]
    replicated = replicate(2)
    for _ in range(2):
        replicated.restart_clock()
        served([request(0, output=5)], replicated)
        assert replicated._last == 0
