"""A ranking says what is best, by how much, and with which settings to have it."""

import pandas as pd
import pytest
import yaml
from simulation import PAPER_L4, SMALL

from driftsched_lib.params import Params
from driftsched_lib.plugin_settings import PluginSettings
from driftsched_lib.recommend import OBJECTIVES, ObjectiveError, plugin_yaml, ranked, recommend

GRID = {
    "policies": ["fifo", "sjf", {"aging": {"rate": 0.5}}],
    "estimators": ["paper", "quantiles"],
    "vary_estimates_for": ["sjf"],
    "calibration": [True],
    "token_counter": ["tokenizer"],
    "batching": ["continuous"],
    "seeds": [1, 2, 3],
}


def by_hand(column):
    rows = [("fifo", 1, 10), ("fifo", 2, 12), ("fifo", 3, 14), ("sjf", 1, 9), ("sjf", 2, 13), ("sjf", 3, 13.5)]
    rows += [("drr", 1, 30), ("drr", 2, 32), ("drr", 3, 34)]
    runs = pd.DataFrame(rows, columns=["policy", "seed", column])
    return runs.assign(estimator="paper")


def test_the_best_comes_first_and_others_lie_behind_it_in_the_same_seeds():
    table = ranked(by_hand("p50_e2e_s"), "p50_e2e_s").set_index("policy")
    assert list(table.index) == ["sjf", "fifo", "drr"]
    assert table.behind["fifo"] == pytest.approx((1 - 1 + 0.5) / 3) and table.behind["sjf"] == 0
    assert table.as_good.to_dict() == {"sjf": True, "fifo": True, "drr": False}


def test_where_more_is_better_the_largest_comes_first():
    table = ranked(by_hand("jain"), "jain").set_index("policy")
    assert list(table.index) == ["drr", "fifo", "sjf"] and table.behind["fifo"] == pytest.approx(20)


@pytest.mark.parametrize("objective", ["p99_e2e_s", "premium_p99_e2e_s", "slo"])
def test_a_grid_is_simulated_and_ranked_and_its_winner_can_be_deployed(objective, tmp_path):
    params = Params.load(PAPER_L4, SMALL | GRID)
    table = recommend(params, tmp_path / "out", objective)
    assert len(table) == 4 and set(table.columns) >= {"mean", "low", "high", "behind", "as_good"}
    assert table["mean"].is_monotonic_decreasing if objective == "slo" else table["mean"].is_monotonic_increasing
    for row in table.itertuples():
        (tmp_path / "plugin.yaml").write_text(plugin_yaml(params, row.policy, row.estimator, {"acme": "premium"}))
        settings = PluginSettings.load(tmp_path / "plugin.yaml")
        assert (str(settings.policy), str(settings.estimator)) == (row.policy, row.estimator)
        assert settings.tenants == {"acme": "premium"} and settings.base_tokens == params.max_tokens
    assert yaml.safe_load((tmp_path / "plugin.yaml").read_text())["classifier"] == params.classifier


def test_an_objective_that_is_unknown_is_named(tmp_path):
    with pytest.raises(ObjectiveError, match="objective: 'p50' is unknown"):
        recommend(Params.load(PAPER_L4, SMALL | GRID), tmp_path, "p50")
    assert "p50_e2e_s" in OBJECTIVES and not list(tmp_path.iterdir())
