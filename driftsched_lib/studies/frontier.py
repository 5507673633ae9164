"""Many policies on many loads: what each gives and takes, against FIFO on the same requests."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from joblib import Parallel, delayed

from driftsched_lib.experiments import metrics, results
from driftsched_lib.experiments.grid import run_grid
from driftsched_lib.experiments.params import Params
from driftsched_lib.requests import TIERS, Tiers
from driftsched_lib.studies.compare import behind_best, changes
from driftsched_lib.validation import read_yaml

# Measures that are compared by their ratio, with their names.
RELATIVE = {"mean_e2e_s": "mean E2E", "p50_e2e_s": "P50 E2E", "p99_e2e_s": "P99 E2E", "longest_wait_s": "longest wait"}
COMPARED = ("p50_e2e_s", "p99_e2e_s", "longest_wait_s")
SETTING, COLUMNS = ["workload", "batching", "rate"], ["column", "change", "low", "high"]
INTERVAL_S = 10.0  # over which service differences are taken


def larger_is_better(column: str) -> bool:
    """Return whether a policy should raise a measure: objectives met, throughput, fairness."""
    return column.endswith(("slo", "per_s", "jain", "jain_equal"))


def measures(requests: pd.DataFrame, speed: results.EngineSpeed, tiers: Tiers = TIERS) -> dict[str, float]:
    """Return the measures of one run; those with a tier's name in front are the tier's.

    Latencies and slowdowns are of completed requests, waits to the first dispatch, goodput in requests per second that
    met their SLOs.  `jain` is per weight of the tiers, `service_difference` in priced tokens per weight and second
    (VTC's).  `overload` is the time until all have ended over the time in which they arrive.  `barrier_waste` is NaN in
    continuous batching.
    """
    batched = requests[(requests.outcome == "completed") & requests.batch_id.notna()].assign(run="")
    requests = metrics.plain(requests)
    done = metrics.latencies(requests, speed.idle_ttft_s, speed.idle_tpot_s)[["tier", "e2e_s", "ttft_s", "slowdown"]]
    met, waits = metrics.met_slos(requests, tiers), metrics.queue_waits(requests)
    weights = {name: tier.weight for name, tier in tiers.items()}
    busy, difference = metrics.busy_s(requests), metrics.service_difference(requests, INTERVAL_S, weights).difference
    row = {"completed": (requests.outcome == "completed").mean(), "slo": met.mean()}
    row |= _latencies(done) | {"mean_e2e_s": done.e2e_s.mean(), "longest_wait_s": waits.max()}
    for tier in tiers:
        mine = requests.tier == tier
        row |= {f"{tier}_{name}": value for name, value in _latencies(done[done.tier == tier]).items()}
        row |= {f"{tier}_longest_wait_s": waits[mine].max(), f"{tier}_slo": met[mine].mean()}
    row |= {"goodput_per_s": met.sum() / busy, "output_tokens_per_s": requests.output_tokens[done.index].sum() / busy}
    row |= {"jain": metrics.tenant_fairness(requests, weights), "jain_equal": metrics.tenant_fairness(requests)}
    row |= {"barrier_waste": metrics.barrier_waste(batched) if len(batched) else float("nan")}
    overload = requests.finish_s.max() / requests.arrival_s.max()
    return row | {"service_difference": difference.mean() / INTERVAL_S, "overload": overload}


def _latencies(done: pd.DataFrame) -> dict[str, float]:
    medians = {f"p50_{name}": done[name].median() for name in ("e2e_s", "ttft_s", "slowdown")}
    return medians | {"p99_e2e_s": done.e2e_s.quantile(0.99)}


def frontier(out: str | Path, tiers: Tiers | None = None) -> pd.DataFrame:
    """Return setting and `measures` of every run of a results folder or study; by default with its own tiers."""
    tiers = results.load_params(out).tiers if tiers is None else tiers

    def row(path: Path) -> dict[str, Any]:
        run = results.load_run(path)
        return run.manifest["run"] | measures(run.table("requests"), run.speed, tiers)

    return pd.DataFrame(Parallel(n_jobs=-1)(delayed(row)(Path(out) / run.name) for run in results.runs(out)))


def serve_loads(base: str | Path, loads: Sequence[str | Path], out: str | Path, **changes: Any) -> pd.DataFrame:
    """Serve every load under the parameters of `base`; return `frontier` of all, with the load's name as `workload`.

    Parameters:
        loads: YAML files of what each load changes; `changes` are laid over that.
    """
    parts = []
    for load in map(Path, loads):
        run_grid(Params.load(base, read_yaml(load)).changed(**changes), Path(out, load.stem))
        parts.append(frontier(Path(out, load.stem)).assign(workload=load.stem.replace("-", " ")))
    return pd.concat(parts, ignore_index=True)


def against(runs: pd.DataFrame, baseline: str = "fifo", columns: Sequence[str] = COMPARED) -> pd.DataFrame:
    """Return `change`, `low` and `high` of each policy against a baseline, one row per setting, policy and column.

    Columns of `RELATIVE` are compared by their ratio, others by their difference; see `changes`.
    """
    tables, to = [], {"policy": baseline}
    for where, part in runs.groupby(SETTING, sort=False):
        policies = {policy: {"policy": policy} for policy in part.policy.unique() if policy != baseline}
        tables.append(changes(part, to, policies, columns, RELATIVE).assign(**dict(zip(SETTING, where, strict=True))))
    return pd.concat(tables).rename(columns={"setting": "policy"})[[*SETTING, "policy", *COLUMNS]]


def best_policies(runs: pd.DataFrame, objectives: Mapping[str, str]) -> pd.DataFrame:
    """Return the `best` and `worst` policies, one row per setting and objective, which are columns with their names.

    The lists begin with the extreme mean; the others cannot be told from it in the same seeds (`behind_best`).
    """
    rows = []
    for (where, part), (column, name) in product(runs.groupby(SETTING, sort=False), objectives.items()):
        values, larger = part.pivot(index="seed", columns="policy", values=column), larger_is_better(column)
        ends = (behind_best(values, side) for side in (larger, not larger))
        rows.append((*where, name, *([policy for policy in end.index if not end[policy].low > 0] for end in ends)))
    return pd.DataFrame(rows, columns=[*SETTING, "objective", "best", "worst"])


def where_worst(runs: pd.DataFrame, objectives: Mapping[str, str]) -> pd.DataFrame:
    """Return the setting and objective in which each policy has the largest `shortfall`.

    It is 0 for the best mean and 1 for the worst; of equal ones the largest ratio to the best mean decides.
    """
    means = runs.groupby([*SETTING, "policy"], sort=False)[list(objectives)].mean().rename_axis(columns="objective")
    table = means.stack(future_stack=True).rename("mean").reset_index()
    sign = table.objective.map(lambda column: -1 if larger_is_better(column) else 1)
    costs, where = sign * table["mean"], [table[name] for name in (*SETTING, "objective")]
    least, most = (costs.groupby(where).transform(end) for end in ("min", "max"))
    table = table.assign(best=sign * least, shortfall=(costs - least) / (most - least))
    ends, columns = table[["mean", "best"]], ["shortfall", "objective", *SETTING, "mean", "best"]
    table = table.assign(times=ends.max(axis=1) / ends.min(axis=1).clip(1e-9), objective=where[-1].map(objectives))
    table = table.dropna().sort_values(["shortfall", "times"], ascending=False, kind="stable")
    return table.drop_duplicates("policy").set_index("policy")[columns]
