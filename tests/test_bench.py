"""The benchmarks measure what they say, at sizes that take a moment."""

from driftsched_lib.bench import decision_costs
from driftsched_lib.policies import POLICIES


def test_decision_costs_has_a_positive_cost_for_each_policy_and_length():
    costs = decision_costs(queued=(5, 50), cycles=20, repeats=2)
    assert set(costs.index) == set(POLICIES) and list(costs.columns) == [5, 50]
    assert (costs > 0).all().all()
