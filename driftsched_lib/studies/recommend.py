"""Which policy and estimator for a load: simulate all of them, rank them, confirm the best, deploy one."""

import json
import shlex
from math import nan
from operator import attrgetter
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from driftsched_lib.errors import ParamsError
from driftsched_lib.experiments import results
from driftsched_lib.experiments.grid import run_grid
from driftsched_lib.experiments.params import Params
from driftsched_lib.policies import POLICIES
from driftsched_lib.requests import TIERS, Tiers
from driftsched_lib.studies.compare import Interval, behind_best, differences_at_once, mean_interval
from driftsched_lib.studies.frontier import frontier, larger_is_better
from driftsched_lib.validation import choice, in_project
from driftsched_lib.vllm_plugin.settings import PluginSettings
from driftsched_lib.workloads.synthetic import make_load

AS_IN_VLLM = {
    "scheduler.batching": ["continuous"],
    "scheduler.token_counter": ["tokenizer"],
    "scheduler.calibration": [True],
    "scheduler.queue_capacity": None,
    "workload.queue_timeout_s": None,
}
"""The settings of the scheduler inside vLLM: a grid whose winner is to be deployed there can have no others."""


def objectives(tiers: Tiers = TIERS) -> dict[str, str]:
    """Return the columns of `frontier.measures` that a ranking can be by, with their names and units."""
    best = next(iter(tiers))
    return {
        "p50_e2e_s": "median E2E (s)",
        "p99_e2e_s": "P99 E2E (s)",
        **{f"{tier}_p99_e2e_s": f"P99 E2E of {tier} requests (s)" for tier in tiers},
        "p50_ttft_s": "median TTFT (s)",
        "longest_wait_s": "longest wait (s)",
        f"{best}_slo": f"{best} requests that met their objectives",
        "slo": "requests that met their objectives",
        "goodput_per_s": "requests per second that met their objectives",
        "jain": "Jain's index over tenants",
    }


def on_the_simulator(params: Params, profile: str | Path) -> Params:
    """Return the grid on one simulated engine of this profile, with the preemptive policies added.

    vLLM with the plug-in can preempt, as the simulated engine can.
    """
    engine = {"kind": "simulated", "profile": str(Path(profile).resolve()), "args": {}, "server": None}
    given = {policy.name for policy in params.scheduler.policies}
    more = [name for name, policy in POLICIES.items() if policy.preemptive and name not in given]
    policies = [policy.as_yaml() for policy in params.scheduler.policies]
    return params.changed(engine=params.engine.model_dump() | engine, scheduler__policies=policies + more)


def later_windows(params: Params, n: int) -> Params:
    """Return the grid on `n` later seeds, and of a trace on the windows after the grid's own."""
    first = max(params.seeds) + 1
    changes: dict[str, Any] = {"seeds": list(range(first, first + n))}
    if params.workload.trace is not None:
        changes["workload__trace__skip"] = params.workload.trace.skip + len(params.seeds) * params.requests
    return params.changed(**changes)


def recommend(
    params: Params, out: str | Path, objective: str, load_of: str | Path | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Serve a grid of policies and estimators; return its ranking, as of `ranked`, and its runs, as of `frontier`.

    Parameters:
        params: with the settings of `AS_IN_VLLM`.
        load_of: the results folder whose engine a load factor refers to, so that requests arrive when they do there;
            None for the engine of `params`.

    Raises:
        ParamsError: the objective is unknown, or vLLM's scheduler could not have a setting.
    """
    if objective not in objectives(params.tiers):
        raise ParamsError(f"objective: {choice(objective, objectives(params.tiers))}")
    for name, value in AS_IN_VLLM.items():
        if attrgetter(name)(params) != value:
            raise ParamsError(f"{name}: the scheduler inside vLLM can have only {value}")
    if any(estimator.name == "oracle" for estimator in params.scheduler.estimators):
        raise ParamsError("scheduler.estimators: the oracle knows what a server cannot, so it cannot be recommended")
    runs = _served(params, out, load_of)
    return ranked(runs, objective), runs


def _served(params: Params, out: str | Path, load_of: str | Path | None, only: Any = None) -> pd.DataFrame:
    """Return the runs of a grid, or a part of it, under the load of another engine."""
    if load_of is not None and not (Path(out) / results.SPEED).exists():
        with results.writing(Path(out)):
            Path(out).mkdir(parents=True, exist_ok=True)
        results.write_speed(Path(out), results.load_speed(load_of))
    run_grid(params, out, only)
    return frontier(out)


def ranked(runs: pd.DataFrame, objective: str) -> pd.DataFrame:
    """Return settings by the mean of an objective over seeds, which are windows of a trace where there is one.

    Parameters:
        runs: of `frontier`, each policy and estimator with the same seeds.

    Returns:
        One row per policy and estimator, the best first: `mean`, `low` and `high` with a 95% interval over seeds;
        `behind`, the distance from the best in the same seeds, and `as_good`, whether its interval reaches 0;
        `against_fifo`, the difference from FIFO, vLLM's own order, NaN without it.  The intervals of these two hold for
        all rows at once (Bonferroni), so also for the row that came out best.

    Raises:
        ParamsError: the objective means nothing in some run.
    """
    if runs[objective].isna().any():
        raise ParamsError(f"objective: {objective} means nothing in a run that has none of these requests")
    values = runs.pivot_table(index="seed", columns=["policy", "estimator"], values=objective, sort=False)
    behind = behind_best(values, larger_is_better(objective))
    values = values[behind.index]
    against_fifo: Any = [Interval(nan, nan, nan)] * len(behind)
    if "fifo" in values:
        against_fifo = differences_at_once(values, values["fifo"].iloc[:, 0])
    table = behind.index.to_frame(index=False)
    for names, intervals in (
        (["mean", "low", "high"], [mean_interval(values[setting]) for setting in values]),
        (["behind", "behind_low", "behind_high"], behind),
        (["against_fifo", "against_fifo_low", "against_fifo_high"], against_fifo),
    ):
        table[names] = [(interval.estimate, interval.low, interval.high) for interval in intervals]
    return table.assign(as_good=~(table.behind_low > 0))


def confirm(
    params: Params, ranking: pd.DataFrame, out: str | Path, objective: str, load_of: str | Path | None = None
) -> pd.DataFrame:
    """Serve the best two policies of a ranking, each with its best estimator, and FIFO; return their ranking.

    All are served by one engine under the same load.

    Parameters:
        params: those of the ranking, except for the engine, the seeds and the policies that the engine cannot have.
        load_of: as of `recommend`.
    """
    best = ranking[ranking.policy.isin(map(str, params.scheduler.policies))].drop_duplicates("policy")
    chosen = pd.concat([best.head(2), best[best.policy == "fifo"]])
    pairs = set(zip(chosen.policy, chosen.estimator, strict=True))
    policies = [policy for policy in params.scheduler.policies if str(policy) in set(chosen.policy)]
    estimators = [estimator for estimator in params.scheduler.estimators if str(estimator) in set(chosen.estimator)]
    grid = params.changed(
        scheduler__policies=[policy.as_yaml() for policy in policies],
        scheduler__estimators=[estimator.as_yaml() for estimator in estimators],
        scheduler__vary_estimates_for=[policy.name for policy in policies],
    )
    only = [run for run in grid.runs() if (str(run.policy), str(run.estimator)) in pairs]
    return ranked(_served(grid, out, load_of, only), objective)


def plugin_yaml(params: Params, policy: str, estimator: str) -> str:
    """Return the plug-in's settings for a setting of the grid: vLLM then schedules as the simulator did.

    A tenant keeps its tier; a tenant with several tiers has to send them.

    Parameters:
        policy, estimator: their names in a results table.
    """
    scheduler, tiers = params.scheduler, {}
    for window, seed in enumerate(params.seeds):
        for phase in make_load(params.workload, params.requests, seed, 1.0, window=window, tiers=params.tiers):
            for request in phase.requests:
                tiers.setdefault(request.tenant, set()).add(request.tier)
    settings = PluginSettings(
        policy=next(known for known in scheduler.policies if str(known) == policy),
        estimator=next(known for known in scheduler.estimators if str(known) == estimator),
        classifier=scheduler.classifier,
        base_tokens=params.workload.max_tokens,
        tiers=scheduler.tiers,
        tenants={tenant: of.pop() for tenant, of in sorted(tiers.items()) if len(of) == 1},
        default_tier="standard" if "standard" in scheduler.tiers else list(scheduler.tiers)[-1],
    )
    return yaml.safe_dump(settings.model_dump(), sort_keys=False)


def serve_command(params: Params, settings_file: str | Path) -> str:
    """Return the shell command that serves a model as `params` has it, scheduled by a settings file.

    Parameters:
        params: of the `vllm` engine, whose arguments become the server's flags.
    """
    settings = shlex.quote(str(Path(settings_file).resolve()))
    env = f"DRIFTSCHED_CONFIG={settings} PROMETHEUS_MULTIPROC_DIR=$(mktemp -d)"
    flags = ["--scheduler-cls", "driftsched_lib.vllm_plugin.DriftSchedScheduler"]
    for name, value in params.engine.args.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            flags += [f"--{flag}", value if isinstance(value, str) else json.dumps(value)]
    return f"{env} vllm serve {shlex.join([in_project(params.engine.model), *flags])}"
