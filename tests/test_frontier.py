"""What a run gave, policies against FIFO, and which is best: on small grids and by hand."""

import pandas as pd
import pytest
from simulation import PAPER_L4, SMALL

from driftsched_lib import results
from driftsched_lib.experiment import run_grid
from driftsched_lib.frontier import against_fifo, best_policies, every_order, frontier
from driftsched_lib.params import Params


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    out = tmp_path_factory.mktemp("grid")
    run_grid(Params.load(PAPER_L4, SMALL | {"policies": ["fifo", "sjf"], "vary_estimates_for": []}), out, jobs=1)
    return out


def test_a_row_a_run_with_what_it_gave(grid):
    runs, requests = frontier(grid), results.load(grid)
    assert len(runs) == requests.run.nunique()
    for row in runs.itertuples():
        mine = requests[
            (requests.policy == row.policy) & (requests.batching == row.batching) & (requests.seed == row.seed)
        ]
        e2e = (mine.finish_s - mine.arrival_s).astype(float)
        assert row.p50_e2e_s == pytest.approx(e2e.median()) and row.p99_e2e_s == pytest.approx(e2e.quantile(0.99))
        assert row.completed == (mine.outcome == "completed").mean() == 1.0
        assert row.longest_wait_s == pytest.approx((mine.dispatch_s - mine.arrival_s).max())
        assert 0 <= row.premium_slo <= 1 and 0 <= row.slo <= 1 and 0 < row.jain <= 1


def test_objectives_of_ones_own_are_met_or_not(grid):
    tiers = ("premium", "standard", "batch")
    for seconds, met in ((0.0, 0.0), (1e6, 1.0)):
        runs = frontier(grid, ttft_slo_s=dict.fromkeys(tiers, 1e6), e2e_slo_s=dict.fromkeys(tiers, seconds))
        assert (runs.slo == met).all() and (runs.premium_slo == met).all()


def runs_by_hand():
    rows = [
        ("fifo", 1, 10.0, 20.0, 0.5),
        ("fifo", 2, 20.0, 20.0, 0.7),
        ("sjf", 1, 5.0, 30.0, 0.9),
        ("sjf", 2, 15.0, 30.0, 0.9),
        ("drr", 1, 12.0, 20.1, 0.6),
        ("drr", 2, 18.0, 20.1, 0.6),
    ]
    runs = pd.DataFrame(rows, columns=["policy", "seed", "p50_e2e_s", "p99_e2e_s", "slo"])
    return runs.assign(workload="w", batching="continuous", rate=1.0)


def test_changes_against_fifo_are_paired_by_seed():
    changes = against_fifo(runs_by_hand(), ["p50_e2e_s"]).set_index("policy").change
    assert changes.sjf == pytest.approx((5 / 10 + 15 / 20) / 2 - 1)
    assert changes.drr == pytest.approx((12 / 10 + 18 / 20) / 2 - 1)


def test_the_best_and_the_worst_by_what_is_good():
    which = best_policies(runs_by_hand(), {"p50_e2e_s": "P50", "slo": "SLOs"}).set_index("objective")
    assert (which.best["P50"], which.worst["P50"]) in [("sjf", "fifo"), ("sjf", "drr")]
    assert (which.best["SLOs"], which.worst["SLOs"]) in [("sjf", "fifo"), ("sjf", "drr")]
    alike = runs_by_hand().query("policy != 'sjf'")
    assert best_policies(alike, {"p99_e2e_s": "P99"}).best.tolist() == ["any"]


def test_every_order_by_hand():
    orders = every_order((0, 1), (3, 1))
    assert orders.loc[0, 1].tolist() == [3.0, 3.0]
    assert orders.loc[1, 0].tolist() == [3.0, 5.0]
    assert len(every_order((0,) * 5, (1,) * 5)) == 120
