"""Which policy and estimator for a load: simulate all of them, rank them, confirm the best, deploy one."""

import json
import shlex
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

import pandas as pd
import yaml

from driftsched_lib.errors import ParamsError
from driftsched_lib.experiments import results
from driftsched_lib.experiments.grid import run_grid
from driftsched_lib.experiments.params import Params, Run
from driftsched_lib.experiments.run import requests_of
from driftsched_lib.policies import POLICIES
from driftsched_lib.requests import TIERS, Tiers
from driftsched_lib.studies.compare import behind_best, differences_at_once, mean_interval
from driftsched_lib.studies.frontier import frontier, larger_is_better
from driftsched_lib.validation import choice, in_project
from driftsched_lib.vllm_plugin.settings import PluginSettings

Folder, Table = str | Path, pd.DataFrame
AS_IN_VLLM = {"scheduler.batching": ["continuous"], "scheduler.token_counter": ["tokenizer"]}
AS_IN_VLLM |= {"scheduler.calibration": [True], "scheduler.queue_capacity": None, "workload.queue_timeout_s": None}
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
    """Return the grid on one engine simulated from a profile, with the preemptive policies, which vLLM serves too."""
    given, profile = params.scheduler.policies, str(Path(profile).resolve())
    more = [name for name, kind in POLICIES.items() if kind.preemptive and name not in [each.name for each in given]]
    engine = {"engine__kind": "simulated", "engine__profile": profile, "engine__args": {}, "engine__server": None}
    return params.changed(scheduler__policies=[*given, *more], **engine)


def later_windows(params: Params, n: int) -> Params:
    """Return the grid on `n` later seeds, and of a trace on the windows after the grid's own."""
    trace, first = params.workload.trace, max(params.seeds) + 1
    skip = {} if trace is None else {"workload__trace__skip": trace.skip + len(params.seeds) * params.requests}
    return params.changed(seeds=list(range(first, first + n)), **skip)


def recommend(params: Params, out: Folder, objective: str, load_of: Folder | None = None) -> tuple[Table, Table]:
    """Serve a grid of policies and estimators; return its ranking, as of `ranked`, and its runs, as of `frontier`.

    Load factors refer to the engine of the results folder `load_of`, or to that of `params`.  Raises ParamsError if the
    objective is unknown, or the scheduler inside vLLM could not have a setting.
    """
    if objective not in (known := objectives(params.tiers)):
        raise ParamsError(f"objective: {choice(objective, known)}")
    for name, value in AS_IN_VLLM.items():
        if attrgetter(name)(params) != value:
            raise ParamsError(f"{name}: the scheduler inside vLLM can have only {value}")
    if any(estimator.name == "oracle" for estimator in params.scheduler.estimators):
        raise ParamsError("scheduler.estimators: the oracle knows what a server cannot, so it cannot be recommended")
    runs = _served(params, out, load_of, params.runs())
    return ranked(runs, objective), runs


def _served(params: Params, out: Folder, load_of: Folder | None, runs: Sequence[Run]) -> Table:
    if load_of is not None and not (Path(out) / results.SPEED).exists():
        results.write_text(Path(out) / results.SPEED, (Path(load_of) / results.SPEED).read_text())
    run_grid(params, out, runs)
    return frontier(out)


def ranked(runs: pd.DataFrame, objective: str) -> pd.DataFrame:
    """Return the settings of `frontier` by the mean of an objective over seeds, the best first, with intervals.

    A setting is `behind` the best in the same seeds, and `as_good` if that interval reaches 0; `against_fifo` is the
    difference from vLLM's own order.  These intervals hold for all rows at once, so also for the best row.  Raises
    ParamsError if the objective means nothing in some run.
    """
    if runs[objective].isna().any():
        raise ParamsError(f"objective: {objective} means nothing in a run that has none of these requests")
    values = runs.pivot_table(index="seed", columns=["policy", "estimator"], values=objective, sort=False)
    behind = behind_best(values, larger_is_better(objective))
    values, table = values[behind.index], behind.index.to_frame(index=False)
    fifo = values["fifo"].iloc[:, 0] if "fifo" in values else pd.Series(index=values.index, dtype=float)
    for names, intervals in (
        (["mean", "low", "high"], [mean_interval(values[setting]) for setting in values]),
        (["behind", "behind_low", "behind_high"], behind),
        (["against_fifo", "against_fifo_low", "against_fifo_high"], differences_at_once(values, fifo)),
    ):
        table[names] = [(interval.estimate, interval.low, interval.high) for interval in intervals]
    return table.assign(as_good=~(table.behind_low > 0))


def confirm(params: Params, ranking: pd.DataFrame, out: Folder, objective: str, load_of: Folder | None = None) -> Table:
    """Serve the best two policies of a ranking that `params` has, each with its best estimator, and FIFO; rank them."""
    best = ranking[ranking.policy.isin(map(str, params.scheduler.policies))].drop_duplicates("policy")
    pairs = pd.concat([best.head(2), best[best.policy == "fifo"]]).set_index(["policy", "estimator"]).index
    grid = params.changed(scheduler__vary_estimates_for=[policy.name for policy in params.scheduler.policies])
    only = [run for run in grid.runs() if (str(run.policy), str(run.estimator)) in pairs]
    return ranked(_served(grid, out, load_of, only), objective)


def plugin_yaml(params: Params, policy: str, estimator: str) -> str:
    """Return settings with which vLLM schedules as the grid did; a tenant of several tiers has to send its tier."""
    scheduler, tiers = params.scheduler, {}
    for seed in params.seeds:
        for request in requests_of(params, seed):
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
    """Return the shell command that serves the model with its engine arguments, scheduled by a settings file."""
    settings = shlex.quote(str(Path(settings_file).resolve()))
    flags = ["--scheduler-cls", "driftsched_lib.vllm_plugin.DriftSchedScheduler"]
    for name, value in params.engine.args.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            flags += [f"--{flag}", value if isinstance(value, str) else json.dumps(value)]
    command = shlex.join(["vllm", "serve", in_project(params.engine.model), *flags])
    return f"DRIFTSCHED_CONFIG={settings} PROMETHEUS_MULTIPROC_DIR=$(mktemp -d) {command}"
