"""The benchmarks measure what they say, at sizes that take a moment; no test here asks how fast this machine is."""

from pathlib import Path

import pandas as pd
import pytest
from benchmarks import simulator
from benchmarks.decisions import QUEUED, decision_costs
from benchmarks.estimators import estimator_costs
from benchmarks.goals import goals, median_interval
from benchmarks.simulator import simulator_speed
from benchmarks.throughput import loop_throughput_ratios
from helpers import OneTokenASecond

from driftsched_lib.estimators import ESTIMATORS
from driftsched_lib.experiments.params import Params
from driftsched_lib.policies import POLICIES

SMOKE = Params.load(Path(__file__).parents[1] / "params" / "smoke.yaml")


class WithoutLimit(OneTokenASecond):
    """Works on `slots` requests at a time and lets the others wait, as vLLM does; its clock starts anew."""

    def restart_clock(self):
        self.time = 0.0

    def step(self, until):
        waiting = dict(list(self.left.items())[self.slots :])
        self.left = dict(list(self.left.items())[: self.slots])
        done = super().step(until)
        self.left |= waiting
        return done


def test_decision_costs_has_a_positive_cost_for_each_policy_and_length():
    costs = decision_costs(SMOKE, queued=(5, 50), blocks=3, size=4)
    assert set(costs.index) == set(POLICIES) and list(costs.columns) == [5, 50]
    assert (costs > 0).all().all()


def test_a_loop_that_keeps_the_engine_full_has_its_throughput():
    assert loop_throughput_ratios(SMOKE, WithoutLimit(slots=4), requests=20, pairs=3) == [1.0] * 3


def test_a_loop_that_leaves_slots_empty_is_seen():
    class HalfOpen(WithoutLimit):
        def has_room(self):
            return len(self.left) < self.slots / 2

    assert max(loop_throughput_ratios(SMOKE, HalfOpen(slots=4), requests=20, pairs=3)) < 0.8


@pytest.mark.parametrize(
    ("costs", "ratios", "met"),
    [
        ([10, 15, 20], [0.9, 0.98, 0.99], ["yes", "yes", "yes"]),
        ([10, 20, 20], [0.9, 0.96, 0.99], ["no", "no", "yes"]),
        ([10, 15, 26], [0.97] * 3, ["yes", "yes", "no"]),
    ],
)
def test_goals_are_judged_by_the_median_ratio_and_the_worst_policy(costs, ratios, met):
    table = pd.DataFrame([[1, 1, 1], costs], index=["quick", "slow"], columns=list(QUEUED))
    judged = goals(table, estimates(), ratios, [0.97, 0.98, 0.99], speeds(5, 9.9, 1499)).met
    assert [judged.iloc[0], judged.iloc[2], judged.iloc[5]] == met and judged.iloc[1] == "yes"
    assert (judged[6:] == "yes").all()


def estimates(slowest=49.0, text=499.0):
    return pd.Series({"quick": 1.0, "slow": slowest, "key words": 1.0, "text classifier": text})


@pytest.mark.parametrize(("measured", "met"), [((49, 499), "yes yes"), ((50, 499), "no yes"), ((49, 500), "yes no")])
def test_the_estimators_goals_are_judged_by_the_slowest(measured, met):
    table = pd.DataFrame([[1, 1, 1]], index=["quick"], columns=list(QUEUED))
    assert goals(table, estimates(*measured), [1.0], [0.97], speeds(5, 9, 1)).met.tolist()[3:5] == met.split()


def test_each_estimator_and_classifier_has_a_cost():
    costs = estimator_costs(requests=60, size=10)
    assert set(costs.index) == {*ESTIMATORS, "key words", "text classifier"} and (costs > 0).all()


def speeds(times_ciw, cpu_s, memory_mib, small_cpu_s=0.1):
    rows = [("Ciw", 10, 1.0, 1, 1.0), ("DriftSched", 10_000, small_cpu_s, 1, 6.0)]
    rows.append(("DriftSched", 1_000_000, cpu_s, memory_mib, times_ciw))
    return pd.DataFrame(rows, columns=["simulator", "requests", "cpu_s", "memory_mib", "times_ciw"])


@pytest.mark.parametrize(
    ("measured", "met"),
    [((4.9, 9, 1), "no yes yes yes"), ((5, 10, 1500), "yes no no yes"), ((5, 9, 1, 0.05), "yes yes yes no")],
)
def test_the_simulators_goals_are_judged_by_the_largest_run(measured, met):
    table = pd.DataFrame([[1, 1, 1]], index=["quick"], columns=list(QUEUED))
    assert goals(table, estimates(), [1.0], [0.97], speeds(*measured)).met.tolist()[6:] == met.split()


def test_simulators_are_measured_side_by_side(monkeypatch):
    in_a_process = simulator._in_a_process
    monkeypatch.setattr(simulator, "_in_a_process", simulator._measured)  # each of which takes seconds to start
    monkeypatch.setattr("gc.freeze", lambda: None)  # this process goes on
    table = simulator_speed(sizes=(50, 100), others=50)
    assert table.requests.tolist() == [50, 50, 50, 100, 50, 100]
    assert min(in_a_process(simulator.simpy_mmc, 10)) > 0
    assert (table[["cpu_s", "memory_mib", "requests_per_s"]] > 0).all().all() and table.times_ciw[0] == 1.0


def test_the_interval_of_the_median_is_around_it_and_narrows_with_more_pairs():
    few, many = [0.8, 0.9, 1.0, 1.1, 1.2], [0.8, 0.9, 1.0, 1.1, 1.2] * 20
    (low, high), (lower, upper) = median_interval(many), median_interval(few)
    assert lower <= low <= 1.0 <= high <= upper and high - low < upper - lower
