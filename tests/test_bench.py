"""The benchmarks measure what they say, at sizes that take a moment; no test here asks how fast this machine is."""

import benchmarks
import pandas as pd
import pytest
from benchmarks import CLASSIFIERS, QUEUED, estimator_costs, goals, loop_throughput_ratios, policy_costs
from helpers import OneTokenASecond

from driftsched_lib.estimators import ESTIMATORS
from driftsched_lib.experiments.params import Params
from driftsched_lib.policies import POLICIES
from driftsched_lib.validation import PROJECT

GOOD = {"slow": [10, 15, 20], "estimator": 49, "text": 499, "last": (1_000_000, 9999, 1499, 10), "explorer": 0.49}
GOOD |= {"loop": [0.9, 0.98, 0.99], "plugin": [0.97, 0.98, 0.99]}
BAD = {"slow": [10, 20, 26], "estimator": 50, "text": 500, "last": (1_000_000, 6600, 1500, 9.9), "explorer": 0.5}
BAD |= {"loop": [0.9, 0.96, 0.99], "plugin": [0.9, 0.979, 1.0]}
WORKLOAD = Params.load(PROJECT / "params" / "smoke.yaml").workload


class WithoutLimit(OneTokenASecond):
    """Works on `slots` requests at a time and lets the others wait, as vLLM does; `open` slots look free to a loop."""

    open = 4

    def restart_clock(self):
        self.time = 0.0

    def has_room(self):
        return len(self.left) < self.open

    def step(self, until):
        requests = list(self.left.items())
        self.left = dict(requests[: self.slots])
        done = super().step(until)
        self.left |= requests[self.slots :]
        return done


def test_each_policy_estimator_and_classifier_has_a_cost():
    costs = policy_costs(queued=(5, 50), blocks=3, size=4)
    assert set(costs.index) == set(POLICIES) and list(costs.columns) == [5, 50]
    assert (costs > 0).all().all()
    costs = estimator_costs(requests=60, size=10)
    assert set(costs.index) == {*ESTIMATORS, *CLASSIFIERS} and (costs > 0).all()


def test_a_loop_that_keeps_the_engine_full_has_its_throughput_and_one_that_leaves_slots_empty_is_seen(monkeypatch):
    assert loop_throughput_ratios(WORKLOAD, WithoutLimit(slots=4), requests=20, pairs=3) == [1.0] * 3
    monkeypatch.setattr(WithoutLimit, "open", 2)
    assert max(loop_throughput_ratios(WORKLOAD, WithoutLimit(slots=4), requests=20, pairs=3)) < 0.8


@pytest.mark.parametrize(("m", "met"), [(GOOD, "yes"), (BAD, "no")])
def test_goals_are_judged_by_the_median_ratio_the_worst_cost_and_the_largest_run(m, met):
    policies = pd.DataFrame([[1, 1, 1], m["slow"]], columns=list(QUEUED))
    costs = pd.Series({"quick": 1.0, "slow": m["estimator"], "key words": 600, "text classifier": m["text"]})
    columns = ["requests", "requests_per_s", "memory_mib", "times_blis"]
    simulated = pd.DataFrame([(10_000, 10_000, 1, 20), m["last"]], columns=columns)
    judged = goals(policies, costs, simulated, m["loop"], m["plugin"], m["explorer"])
    assert (judged.met == met).all(), judged


def test_simulators_are_measured_in_processes_of_their_own(monkeypatch):
    assert min(benchmarks._in_a_process(10)) > 0
    monkeypatch.setattr(benchmarks, "_in_a_process", benchmarks._measured)  # each takes seconds to start
    monkeypatch.setattr("gc.freeze", lambda: None)  # this process goes on
    table = benchmarks.simulator_speed(sizes=(50, 100))
    assert table.requests.tolist() == [50, 100] and (table > 0).all().all()
