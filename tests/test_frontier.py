"""What a run gave, policies against FIFO, and which is best: on small grids and by hand."""

import pandas as pd
import pytest
from simulation import PAPER_L4, SMALL

from driftsched_lib import Params, results, run_grid
from driftsched_lib.requests import TIERS
from driftsched_lib.studies.compare import select
from driftsched_lib.studies.frontier import against, best_policies, frontier, larger_is_better, where_worst


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    out = tmp_path_factory.mktemp("grid")
    run_grid(Params.load(PAPER_L4, SMALL | {"scheduler.vary_estimates_for": []}), out, jobs=1)
    return out


def test_one_row_per_run_with_what_it_gave(grid):
    runs, requests = frontier(grid), results.load(grid)
    assert len(runs) == requests.run.nunique()
    for row in runs.itertuples():
        mine = select(requests, policy=row.policy, batching=row.batching, seed=row.seed)
        e2e = (mine.finish_s - mine.arrival_s).astype(float)
        assert row.mean_e2e_s == pytest.approx(e2e.mean()) and row.p50_e2e_s == pytest.approx(e2e.median())
        assert row.p99_e2e_s == pytest.approx(e2e.quantile(0.99))
        assert row.completed == (mine.outcome == "completed").mean() == 1.0
        assert row.longest_wait_s == pytest.approx((mine.dispatch_s - mine.arrival_s).max())
        assert row.overload == pytest.approx((mine.arrival_s + e2e).max() / mine.arrival_s.max())
        assert 0 <= row.premium_slo <= 1 and 0 <= row.slo <= 1 and 0 < row.jain <= 1 and 0 < row.jain_equal <= 1


def test_slowdowns_are_against_the_idle_engine_and_tiers_have_their_own(grid):
    runs, speed = frontier(grid), results.load_speed(grid)
    requests = results.load(grid).query("tier == 'batch' and policy == 'sjf' and seed == 1")
    row = runs[(runs.policy == "sjf") & (runs.seed == 1) & (runs.batching == requests.batching.iloc[0])].iloc[0]
    mine = requests[requests.batching == row.batching]
    idle = speed.idle_ttft_s + (mine.output_tokens - 1) * speed.idle_tpot_s
    assert row.batch_p50_slowdown == pytest.approx(((mine.finish_s - mine.arrival_s) / idle).median())
    assert row.batch_longest_wait_s == pytest.approx((mine.dispatch_s - mine.arrival_s).max())
    assert row.p50_slowdown >= 1 and row.output_tokens_per_s > 0


def test_objectives_of_ones_own_are_met_or_not(grid):
    for seconds, met in ((1e-9, 0.0), (1e6, 1.0)):
        slos = {"ttft_slo_s": 1e6, "e2e_slo_s": seconds}
        runs = frontier(grid, {name: tier.model_copy(update=slos) for name, tier in TIERS.items()})
        assert (runs.slo == met).all() and (runs.premium_slo == met).all()


def frame(rows, *columns):
    runs = pd.DataFrame(rows, columns=["policy", "seed", "p50_e2e_s", *columns])
    return runs.assign(workload="w", batching="continuous", rate=1.0)


def test_changes_are_paired_by_seed():
    rows = [("fifo", 1, 10.0, 0.5), ("fifo", 2, 20.0, 0.7), ("sjf", 1, 5.0, 0.9), ("sjf", 2, 15.0, 0.9)]
    runs = frame([*rows, ("drr", 1, 12.0, 0.6), ("drr", 2, 18.0, 0.6)], "slo")
    changes = against(runs, columns=["p50_e2e_s", "slo"]).set_index(["policy", "column"]).change
    assert changes["sjf", "p50_e2e_s"] == pytest.approx((5 / 10 + 15 / 20) / 2 - 1)
    assert changes["drr", "p50_e2e_s"] == pytest.approx((12 / 10 + 18 / 20) / 2 - 1)
    assert changes["drr", "slo"] == pytest.approx(0.0)
    assert set(against(runs, "sjf", ["slo"]).policy) == {"fifo", "drr"}


def many_seeds(**means):
    """Return thirty seeds; the policies differ by their means in every one, and by no more than noise if equal."""
    rows = ((i, policy, mean, seed) for i, (policy, mean) in enumerate(means.items()) for seed in range(30))
    return frame([(policy, seed, mean + seed + 0.01 * ((seed * 7 + i * 3) % 5)) for i, policy, mean, seed in rows])


def test_the_best_and_the_worst_with_those_that_cannot_be_told_from_them_and_more_may_be_better():
    row = best_policies(many_seeds(fifo=9.0, sjf=1.0, tie=1.0, drr=5.0), {"p50_e2e_s": "P50"}).iloc[0]
    assert set(row.best) == {"sjf", "tie"} and row.worst == ["fifo"]
    assert len(best_policies(many_seeds(fifo=1.0, sjf=1.0), {"p50_e2e_s": "P50"}).iloc[0].best) == 2
    better = best_policies(many_seeds(fifo=1.0, sjf=2.0).rename(columns={"p50_e2e_s": "slo"}), {"slo": "SLOs"})
    assert better.iloc[0].best == ["sjf"]
    names = ["slo", "premium_slo", "goodput_per_s", "output_tokens_per_s", "jain", "p50_e2e_s", "service_difference"]
    assert [larger_is_better(name) for name in names] == [True] * 5 + [False] * 2


def test_each_policy_has_a_place_where_it_is_worst():
    runs = many_seeds(fifo=9.0, sjf=1.0, drr=5.0).assign(slo=lambda frame: (frame.policy == "drr").astype(float))
    table = where_worst(runs, {"p50_e2e_s": "P50", "slo": "SLOs"})
    assert table.objective.to_dict() == {"fifo": "SLOs", "sjf": "SLOs", "drr": "P50"}
    assert table.shortfall.round(2).to_dict() == {"fifo": 1.0, "sjf": 1.0, "drr": 0.5}
