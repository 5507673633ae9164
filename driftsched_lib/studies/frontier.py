"""Many policies on many loads: what each gives and takes, against FIFO on the same requests."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from joblib import Parallel, delayed

from driftsched_lib.experiments import results
from driftsched_lib.experiments.metrics import (
    busy_s,
    latencies,
    met_slos,
    plain,
    queue_waits,
    service_difference,
    tenant_fairness,
)
from driftsched_lib.requests import TIERS, Tiers
from driftsched_lib.studies.compare import behind_best, changes, mean_interval

RELATIVE = {
    "mean_e2e_s": "mean E2E",
    "p50_e2e_s": "P50 E2E",
    "p99_e2e_s": "P99 E2E",
    "longest_wait_s": "longest wait",
}
"""Measures that are compared by their ratio, with their names."""
COMPARED = ("p50_e2e_s", "p99_e2e_s", "longest_wait_s")
SETTING = ["workload", "batching", "rate"]
INTERVAL_S = 10.0
"""Seconds over which service differences are taken."""


def larger_is_better(column: str) -> bool:
    """Return whether a policy should raise a measure: objectives met, throughput, fairness."""
    return column.endswith(("slo", "per_s", "jain", "jain_equal"))


def measures(requests: pd.DataFrame, speed: results.EngineSpeed, tiers: Tiers = TIERS) -> dict[str, float]:
    """Return the measures of one run; those with a tier's name in front are the tier's.

    Share `completed`, latencies (s) and slowdowns of these requests; longest wait to the first dispatch (s); the shares
    that met their SLOs, and goodput (requests per second); Jain index over tenants, per weight and for equal weights;
    mean service difference per second (VTC's, priced tokens per weight); overload, the time until all have ended over
    the time in which they arrive.

    Parameters:
        speed: of the idle engine.
        tiers: their objectives and weights.
    """
    requests = plain(requests)
    done = latencies(requests, speed.idle_ttft_s, speed.idle_tpot_s)[["tier", "e2e_s", "ttft_s", "slowdown"]]
    met, waits, weights = met_slos(requests, tiers), queue_waits(requests), _weights(tiers)
    busy, difference = busy_s(requests), service_difference(requests, INTERVAL_S, weights).difference
    row = {"completed": (requests.outcome == "completed").mean(), "slo": met.mean()}
    row |= _latencies(done) | {"mean_e2e_s": done.e2e_s.mean(), "longest_wait_s": waits.max()}
    for tier in tiers:
        mine = requests.tier == tier
        row |= {f"{tier}_{name}": value for name, value in _latencies(done[done.tier == tier]).items()}
        row |= {f"{tier}_longest_wait_s": waits[mine].max(), f"{tier}_slo": met[mine].mean()}
    return row | {
        "goodput_per_s": met.sum() / busy,
        "output_tokens_per_s": requests.output_tokens[done.index].sum() / busy,
        "jain": tenant_fairness(requests, weights),
        "jain_equal": tenant_fairness(requests),
        "service_difference": difference.mean() / INTERVAL_S,
        "overload": requests.finish_s.max() / requests.arrival_s.max(),
    }


def _weights(tiers: Tiers) -> dict[str, float]:
    return {name: tier.weight for name, tier in tiers.items()}


def _latencies(done: pd.DataFrame) -> dict[str, float]:
    return {
        "p50_e2e_s": done.e2e_s.median(),
        "p99_e2e_s": done.e2e_s.quantile(0.99),
        "p50_ttft_s": done.ttft_s.median(),
        "p50_slowdown": done.slowdown.median(),
    }


def frontier(out: str | Path, tiers: Tiers | None = None) -> pd.DataFrame:
    """Return `measures` of every run of a results folder or study, one row per run, with its setting.

    Parameters:
        tiers: None for those of the runs' parameters.
    """
    tiers = results.load_params(out).tiers if tiers is None else tiers
    names = [run.name for run in results.runs(out)]
    return pd.DataFrame(Parallel(n_jobs=-1)(delayed(_row)(Path(out) / name, tiers) for name in names))


def _row(path: Path, tiers: Tiers) -> dict[str, Any]:
    run = results.load_run(path)
    return run.manifest["run"] | measures(run.table("requests"), run.speed, tiers)


def against(runs: pd.DataFrame, baseline: str = "fifo", columns: Sequence[str] = COMPARED) -> pd.DataFrame:
    """Return each policy's changes against a baseline in the same setting and seed, means over seeds.

    Parameters:
        runs: of `frontier`, with the columns of `SETTING`.
        baseline: a policy.
        columns: those of `RELATIVE` are compared by their ratio less 1, others by their difference.

    Returns:
        One row per setting, policy and column: `change`, `low`, `high`.
    """
    differences, tables = [column for column in columns if column not in RELATIVE], []
    for where, part in runs.groupby(SETTING, sort=False):
        others = {policy: {"policy": policy} for policy in part.policy.unique() if policy != baseline}
        table = changes(part, {"policy": baseline}, others, columns, differences)
        tables.append(table.rename(columns={"setting": "policy"}).assign(**dict(zip(SETTING, where, strict=True))))
    return pd.concat(tables, ignore_index=True)


def best_policies(runs: pd.DataFrame, objectives: Mapping[str, str]) -> pd.DataFrame:
    """Return the best and the worst policies for each objective in each setting.

    Policies are listed with the best or worst mean, the most extreme first, if they cannot be told from it in the same
    seeds at 95% for all at once.

    Parameters:
        objectives: columns of `frontier`, and their names.

    Returns:
        One row per setting and objective: `best` and `worst`, lists of policies.
    """
    rows = []
    for where, part in runs.groupby(SETTING, sort=False):
        for column, name in objectives.items():
            values, larger = part.pivot(index="seed", columns="policy", values=column), larger_is_better(column)
            ends = (behind_best(values, side) for side in (larger, not larger))
            rows.append((*where, name, *([policy for policy in end.index if not end[policy].low > 0] for end in ends)))
    return pd.DataFrame(rows, columns=[*SETTING, "objective", "best", "worst"])


def where_worst(runs: pd.DataFrame, objectives: Mapping[str, str]) -> pd.DataFrame:
    """Return the setting and objective in which each policy is farthest behind.

    The largest `shortfall` decides, from 0 for the best mean to 1 for the worst; of equal ones the one in which the
    policy's mean and the best mean have the largest ratio.

    Parameters:
        objectives: columns of `frontier`, and their names.
    """
    means = runs.groupby([*SETTING, "policy"], sort=False)[list(objectives)].mean().rename_axis(columns="objective")
    table = means.stack(future_stack=True).rename("mean").reset_index()
    sign = table.objective.map(lambda column: -1 if larger_is_better(column) else 1)
    costs = sign * table["mean"]
    least, most = (
        costs.groupby([table[name] for name in [*SETTING, "objective"]]).transform(end) for end in ("min", "max")
    )
    table = table.assign(shortfall=(costs - least) / (most - least), best=sign * least)
    ends = table[["mean", "best"]]
    table = table.assign(
        objective=table.objective.map(objectives), times=ends.max(axis=1) / ends.min(axis=1).clip(1e-9)
    )
    table = table.dropna().sort_values(["shortfall", "times"], ascending=False, kind="stable")
    columns = ["shortfall", "objective", *SETTING, "mean", "best"]
    return table.drop_duplicates("policy").set_index("policy")[columns]


def against_goals(runs: pd.DataFrame, policy: str = "express") -> pd.DataFrame:
    """Return what a policy reaches of this project's goals under continuous batching in one setting.

    Parameters:
        runs: of `frontier`, of one workload and rate, with this policy, SJF, FIFO and Priority.

    Returns:
        One row per goal: its `value`, `low`, `high`, the `goal`, and whether it is `met`: yes or no where the interval
        tells, else open.
    """
    by_policy = {name: part.set_index("seed") for name, part in runs.groupby("policy")}
    mine, sjf, fifo, priority = (by_policy[name] for name in (policy, "sjf", "fifo", "priority"))
    rows = {}
    for name, values, bound in (
        ("P50 against SJF's", mine.p50_e2e_s / sjf.p50_e2e_s - 1, 0.05),
        ("P99 against FIFO's", mine.p99_e2e_s / fifo.p99_e2e_s - 1, 0.0),
        ("longest wait against SJF's", mine.longest_wait_s / sjf.longest_wait_s - 1, -0.5),
        ("premium SLOs under Priority's", priority.premium_slo - mine.premium_slo, 0.01),
        ("Jain index under FIFO's", fifo.jain - mine.jain, 0.0),
    ):
        interval = mean_interval(values)
        met = "yes" if interval.high <= bound else "no" if interval.low > bound else "open"
        rows[name] = interval.estimate, interval.low, interval.high, f"<= {bound:+.0%}", met
    return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high", "goal", "met"])
