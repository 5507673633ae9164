"""Which policy and estimator for a load: all of them simulated, ranked for an objective, confirmed, and deployed."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from driftsched_lib.errors import ParamsError
from driftsched_lib.experiments import results
from driftsched_lib.experiments.grid import run_grid
from driftsched_lib.experiments.params import Params
from driftsched_lib.policies import POLICIES
from driftsched_lib.studies.compare import mean_interval
from driftsched_lib.studies.frontier import LARGER_IS_BETTER, frontier
from driftsched_lib.validation import choice, in_project
from driftsched_lib.vllm_plugin.settings import PluginSettings
from driftsched_lib.workloads.synthetic import paper_load

OBJECTIVES = {
    "p50_e2e_s": "median E2E (s)",
    "p99_e2e_s": "P99 E2E (s)",
    "premium_p99_e2e_s": "P99 E2E of premium requests (s)",
    "standard_p99_e2e_s": "P99 E2E of standard requests (s)",
    "batch_p99_e2e_s": "P99 E2E of batch requests (s)",
    "p50_ttft_s": "median TTFT (s)",
    "longest_wait_s": "longest wait (s)",
    "premium_slo": "premium requests that met their objectives",
    "slo": "requests that met their objectives",
    "goodput_per_s": "requests a second that met their objectives",
    "jain": "Jain's index over tenants",
}
AS_IN_VLLM = {
    "batching": ["continuous"],
    "token_counter": ["tokenizer"],
    "calibration": [True],
    "queue_capacity": None,
    "queue_timeout_s": None,
}
"""What the scheduler inside vLLM does: a grid whose winner is to be deployed there can have nothing else."""


def objective_name(objective: str) -> str:
    """What an objective is called, with its unit; ParamsError for one that is not known."""
    if objective not in OBJECTIVES:
        raise ParamsError(f"objective: {choice(objective, OBJECTIVES)}")
    return OBJECTIVES[objective]


def with_promises(
    params: Params, ttft_slo_s: Mapping[str, float], e2e_slo_s: Mapping[str, float], s_per_token: float
) -> Params:
    """The same grid, whose deadline queues, where they were given no others, know these promises.

    Parameters:
        ttft_slo_s, e2e_slo_s: seconds from the arrival to the first and to the last token, by tier.
        s_per_token: seconds that a running request takes for an output token.
    """
    promises = {
        "edf": {"ttft_slo_s": ttft_slo_s},
        "least_slack": {"e2e_slo_s": e2e_slo_s, "s_per_token": s_per_token},
    }
    policies = [
        {policy.name: promises[policy.name]} if policy.name in promises and not policy.options else policy.as_yaml()
        for policy in params.policies
    ]
    return Params.parse(params.model_dump() | {"policies": policies}, "promises")


def on_the_simulator(params: Params, profile: str | Path) -> Params:
    """The same grid on an engine of this profile, which can take slots back, as vLLM with the plug-in can: so the
    policies that do are in it, too."""
    engine = {"engine": "simulated", "engine_args": {}, "server": None, "profile": str(Path(profile).resolve())}
    given = {policy.name for policy in params.policies}
    more = [name for name, policy in POLICIES.items() if policy.preemptive and name not in given]
    policies = [policy.as_yaml() for policy in params.policies]
    return Params.parse(params.model_dump() | engine | {"policies": policies + more}, "simulated")


def later_windows(params: Params, n: int) -> Params:
    """The same grid on `n` seeds that it does not have, and of a trace the windows that come after its own."""
    seeds, changes = range(max(params.seeds) + 1, max(params.seeds) + 1 + n), {}
    if params.workload.trace is not None:
        skip = params.workload.trace.skip + len(params.seeds) * params.requests
        trace = params.workload.trace.model_copy(update={"skip": skip})
        changes["workload"] = params.workload.model_copy(update={"trace": trace})
    return params.model_copy(update={"seeds": list(seeds)} | changes)


def recommend(
    params: Params,
    out: str | Path,
    objective: str,
    load_of: str | Path | None = None,
    **slos: Mapping[str, float],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Serve a grid of policies and estimators, and rank them for an objective.

    Parameters:
        params: with the settings of `AS_IN_VLLM`.
        load_of: the results folder whose engine a load factor refers to, so that requests come at the same times as
            there; None for the engine of `params`.
        slos: as of `frontier.measures`.

    Returns:
        The ranking, as of `ranked`, and the runs, as of `frontier`.

    Raises:
        ParamsError: an objective that is not known, or settings that vLLM's scheduler could not have.
    """
    objective_name(objective)
    for name, value in AS_IN_VLLM.items():
        if getattr(params, name) != value:
            raise ParamsError(f"{name}: the scheduler inside vLLM can have {value} alone")
    if any(estimator.name == "oracle" for estimator in params.estimators):
        raise ParamsError("estimators: the oracle knows what a server cannot, so it can be no recommendation")
    _same_load(load_of, out)
    run_grid(params, out)
    runs = frontier(out, **slos)
    return ranked(runs, objective), runs


def ranked(runs: pd.DataFrame, objective: str) -> pd.DataFrame:
    """Settings by the mean of an objective over seeds, which are windows of a trace where there is one.

    Parameters:
        runs: of `frontier`, each policy and estimator with the same seeds.

    Returns:
        A row a policy and estimator, the best first: `mean`, `low` and `high` with a 95% interval over seeds;
        `behind`, what the best is ahead in the same seeds, and `as_good`, whether that interval reaches 0;
        `against_fifo`, the difference from FIFO, which is vLLM's own order, NaN where there is none.  The intervals of
        these two hold for all rows at once (Bonferroni), so they hold for the row that came out best, too.

    Raises:
        ParamsError: a run in which the objective means nothing.
    """
    if runs[objective].isna().any():
        raise ParamsError(f"objective: {objective} means nothing in a run that has none of these requests")
    values = runs.pivot_table(index="seed", columns=["policy", "estimator"], values=objective, sort=False)
    sign = -1 if objective in LARGER_IS_BETTER else 1
    order = (sign * values.mean()).sort_values(kind="stable").index
    best = values[order[0]]
    fifo = values["fifo"].iloc[:, 0] if "fifo" in values else best * float("nan")
    at_once = 1 - 0.05 / max(1, len(order) - 1)
    rows = []
    for policy, estimator in order:
        mine = values[policy, estimator]
        columns = {
            "": mean_interval(mine),
            "behind": mean_interval(sign * (mine - best), at_once),
            "against_fifo": mean_interval(mine - fifo, at_once),
        }
        row: dict[str, Any] = {"policy": policy, "estimator": estimator}
        for name, interval in columns.items():
            row |= {name or "mean": interval.estimate}
            row |= {f"{name}_low".lstrip("_"): interval.low, f"{name}_high".lstrip("_"): interval.high}
        rows.append(row)
    table = pd.DataFrame(rows)
    return table.assign(as_good=~(table.behind_low > 0))


def confirm(
    params: Params,
    ranking: pd.DataFrame,
    out: str | Path,
    objective: str,
    load_of: str | Path | None = None,
    most: int = 2,
    **slos: Mapping[str, float],
) -> pd.DataFrame:
    """Serve the best policies of a ranking that `params` has, each with its best estimator, and FIFO, on its engine.

    All are served in one folder, by one engine, under the same load.

    Parameters:
        params: as those that were ranked, but for the engine, the seeds and the policies that the engine cannot have.
        load_of, slos: as of `recommend`.
        most: policies.

    Returns:
        As `ranked`, on the engine of `params`.
    """
    best = ranking[ranking.policy.isin(map(str, params.policies))].drop_duplicates("policy")
    chosen = pd.concat([best.head(most), best[best.policy == "fifo"]])[["policy", "estimator"]].drop_duplicates()
    pairs = set(chosen.itertuples(index=False, name=None))
    policies, estimators = chosen.policy.tolist(), set(chosen.estimator)
    grid = params.model_copy(
        update={
            "policies": [policy for policy in params.policies if str(policy) in policies],
            "estimators": [estimator for estimator in params.estimators if str(estimator) in estimators],
            "vary_estimates_for": [policy.name for policy in params.policies],
        }
    )
    _same_load(load_of, out)
    run_grid(grid, out, [run for run in grid.runs() if (str(run.policy), str(run.estimator)) in pairs])
    return ranked(frontier(out, **slos), objective)


def best_by_objective(runs: pd.DataFrame) -> pd.DataFrame:
    """What `ranked` puts first for each objective that means something for the load, a row an objective.

    Returns:
        `objective`, the best `policy` and `estimator`, its `mean`, that of `fifo`, and how many settings are `as_good`.
    """
    rows = []
    for objective, name in OBJECTIVES.items():
        if runs[objective].notna().all():
            table = ranked(runs, objective)
            best, fifo = table.iloc[0], table[table.policy == "fifo"]["mean"]
            rows.append((name, best.policy, best.estimator, best["mean"], *fifo.head(1), int(table.as_good.sum())))
    return pd.DataFrame(rows, columns=["objective", "policy", "estimator", "mean", "fifo", "as_good"])


def plugin_yaml(params: Params, policy: str, estimator: str) -> str:
    """The settings that make vLLM serve as a setting of the grid did, its tenants in their tiers.

    Parameters:
        policy, estimator: as a results table calls them.
    """
    policies = {str(component): component for component in params.policies}
    estimators = {str(component): component for component in params.estimators}
    settings = PluginSettings(
        policy=policies[policy],
        estimator=estimators[estimator],
        classifier=params.classifier,
        base_tokens=params.max_tokens,
        tenants=_tiers(params),
    )
    return yaml.safe_dump(settings.model_dump(), sort_keys=False)


def _tiers(params: Params) -> dict[str, str]:
    """Tiers by tenant; one whose requests are of several has to send them."""
    tiers: dict[str, set[str]] = {}
    for seed in params.seeds:
        for phase in paper_load(params, seed, capacity_tokens_per_s=1.0):
            for request in phase.requests:
                tiers.setdefault(request.tenant, set()).add(request.tier)
    return {tenant: of.pop() for tenant, of in sorted(tiers.items()) if len(of) == 1}


def _same_load(load_of: str | Path | None, out: str | Path) -> None:
    speed = Path(out) / results.SPEED
    if load_of is not None and not speed.exists():
        with results.writing(speed):
            speed.parent.mkdir(parents=True, exist_ok=True)
        results.write_json(speed, asdict(results.load_speed(load_of)))


def serve_command(params: Params, settings_file: str | Path) -> str:
    """The shell's command that serves a model as `params` has it, scheduled by a settings file, from any folder.

    Parameters:
        params: of the `vllm` engine, whose arguments become the server's flags.
    """
    settings = shlex.quote(str(Path(settings_file).resolve()))
    env = f"DRIFTSCHED_CONFIG={settings} PROMETHEUS_MULTIPROC_DIR=$(mktemp -d)"
    flags = ["--scheduler-cls", "driftsched_lib.vllm_plugin.DriftSchedScheduler"]
    for name, value in params.engine_args.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            flags += [f"--{flag}", value if isinstance(value, str) else json.dumps(value)]
    return f"{env} vllm serve {shlex.join([in_project(params.model), *flags])}"
