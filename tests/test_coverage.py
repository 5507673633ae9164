"""Intervals hold the truth as often as they say, at the numbers of seeds that the parameter files use."""

from dataclasses import astuple

import numpy as np
import pandas as pd
import pytest
from simulation import PAPER_L4

from driftsched_lib.engines.load import load_engine
from driftsched_lib.experiments.params import Params
from driftsched_lib.experiments.results import EngineSpeed
from driftsched_lib.experiments.run import serve_run
from driftsched_lib.studies import compare, drift_lab, frontier, recommend
from driftsched_lib.validation import PROJECT, read_yaml

SEEDS = {len(read_yaml(path).get("seeds", Params().seeds)) for path in (PROJECT / "params").glob("*.yaml")} - {1}
FIFO, SJF, DRR = ({"policy": policy} for policy in ("fifo", "sjf", "drr"))


def mean_p50_p99(values):
    return np.stack([values.mean(axis=-1), *np.quantile(values, [0.50, 0.99], axis=-1)])


@pytest.fixture(scope="module")
def paper_load():
    """E2E of the paper's load on the simulated L4, in the stress phase: SJF and FIFO x requests, one array per seed."""
    grid = {"policies": ["sjf", "fifo"], "batching": ["static"], "estimators": ["paper"], "vary_estimates_for": []}
    grid = {f"scheduler.{name}": values for name, values in grid.items()}
    params, e2e_s = Params.load(PAPER_L4, grid | {"seeds": list(range(40)), "requests": 450}), {}
    for run in params.runs():
        tables, _ = serve_run(params, run, load_engine(params.engine), EngineSpeed(1.0, 1.0, 1.0))
        requests = tables["requests"].query("phase == 'stress'")
        requests = requests.iloc[requests.request_id.astype(int).argsort()]
        e2e_s.setdefault(run.seed, []).append((requests.finish_s - requests.arrival_s).to_numpy(float))
    return [np.stack(sides) for sides in e2e_s.values()]


def changes(runs, **options):
    """Estimate, low and high of the changes of mean, P50 and P99, one row each."""
    return rows(compare.intervals(runs, mean_p50_p99, lambda sjf, fifo: sjf / fifo - 1, **options))


def rows(intervals):
    return np.array([astuple(interval)[:3] for interval in intervals])


def holds(rows, truth):
    return (rows[..., 1] <= truth + 1e-9) & (truth <= rows[..., 2] + 1e-9)


@pytest.mark.parametrize("n", [n for n in sorted(SEEDS) if n <= 10])
def test_changes_of_the_papers_load(paper_load, n):
    """Resampled seeds and blocks held P99 75% of the time at 2 seeds and 26% at 3, and the median always: too wide."""
    rng, truth = np.random.default_rng(n), changes(paper_load)[:, 0]
    drawn = [[paper_load[i] for i in rng.choice(len(paper_load), n, replace=False)] for _ in range(200)]
    covered = np.mean([holds(changes(runs), truth) for runs in drawn], axis=0)
    assert (covered >= 0.89).all() and (covered[:2] < 0.99).all()


def test_one_run_of_the_papers_load(paper_load):
    """It cannot know other seeds, but no longer takes the queue's growth for noise: it was ten times as wide."""
    seeds = np.array([changes([run])[:, 0] for run in paper_load])
    alone = np.array([changes([run], resamples=200) for run in paper_load])
    assert (holds(alone, seeds.mean(axis=0)).mean(axis=0) >= [0.85, 0.85, 0.6]).all()
    assert ((alone[..., 2] - alone[..., 1]).mean(axis=0) < 2 * 3.92 * seeds.std(axis=0)).all()


@pytest.mark.parametrize("n", [16, 200, 2003])
def test_requests_of_one_run_are_drawn_equally_often(n):
    times = np.bincount(compare.resampled_rows(n, 2000, 50).ravel(), minlength=n)
    assert times.min() > 1700 and times.max() < 2300


P50 = "p50_e2e_s"
WAYS = {
    "paired change": (-0.4, lambda runs: compare.paired_change(runs, P50, SJF, FIFO)),
    "paired difference": (-4.0, lambda runs: compare.paired_change(runs, P50, SJF, FIFO, relative=False)),
    "share of a gap": (0.5, lambda runs: compare.share_of_gap(runs, P50, DRR, FIFO, SJF)),
    "frontier": (-0.4, lambda runs: first(frontier.against(runs[runs.policy != "drr"], columns=[P50]), "change")),
    "ranking": (10.0, lambda runs: first(recommend.ranked(runs[runs.policy == "fifo"], P50), "mean")),
}


def first(table, estimate):
    return compare.Interval(*table[[estimate, "low", "high"]].iloc[0])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("n", sorted(SEEDS))
def test_intervals_over_seeds(way, n):
    """SJF takes 0.6 of FIFO's time, DRR 0.8.  Resampled seeds held the share half of the time at 2 seeds."""
    (truth, interval), rng, found = WAYS[way], np.random.default_rng(n), []
    for _ in range(40):
        fifo = rng.normal(10, 2, n)
        times = {"fifo": fifo, "sjf": fifo * rng.normal(0.6, 0.1, n), "drr": fifo * rng.normal(0.8, 0.1, n)}
        runs = pd.DataFrame({"seed": range(n)} | times).melt("seed", var_name="policy", value_name=P50)
        found.append(interval(runs.assign(workload="w", batching="static", rate=1.0, estimator="paper")))
    assert holds(rows(found), truth).mean() >= 0.85


@pytest.mark.parametrize("n", sorted(SEEDS))
def test_differences_hold_at_once_whichever_column_is_the_reference(n):
    """Twenty settings are alike, but one is best by chance: at 30 seeds 75% of the tables said that none is worse."""
    tables = [pd.DataFrame(values) for values in np.random.default_rng(n).normal(10, 1, (60, n, 20))]
    for found in (map(compare.behind_best, tables), (compare.differences_at_once(each, each[0]) for each in tables)):
        assert np.mean([holds(rows(table), 0).all() for table in found]) >= 0.88


@pytest.mark.parametrize("n", [3, 20, 60])
def test_observations_to_recover(n):
    """An error of 0.7 * 0.9 ** k is small after 19.  Resampled seeds held that in 29 of 40 at 3."""
    rng, found, k = np.random.default_rng(n), [], np.arange(40)
    for _ in range(40):
        errors = 0.7 * 0.9**k + 0.14 * (rng.normal(size=(n, 1)) + rng.normal(size=(n, 40)))
        paths = pd.DataFrame(errors, columns=k).melt(
            var_name="observations", value_name="log_error", ignore_index=False
        )
        paths = paths.rename_axis("seed").reset_index().assign(category="c", scenario="s", estimator="e")
        found += [*drift_lab.observations_to_recover(paths.astype({"observations": int}))]
    assert holds(rows(found), 19).mean() >= 0.9
