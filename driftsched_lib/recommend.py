"""Which policy and estimator for a load: all of them simulated, ranked for an objective, and the winner's settings."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import yaml

from driftsched_lib.comparison import mean_interval
from driftsched_lib.errors import DriftSchedError
from driftsched_lib.experiment import run_grid
from driftsched_lib.frontier import LARGER_IS_BETTER, frontier
from driftsched_lib.params import Params
from driftsched_lib.plugin_settings import PluginSettings
from driftsched_lib.validation import choice

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


class ObjectiveError(DriftSchedError, ValueError):
    """An objective that is none of `OBJECTIVES`."""


def recommend(params: Params, out: str | Path, objective: str) -> pd.DataFrame:
    """Serve a grid of policies and estimators, and rank them for an objective.

    Returns:
        A row a policy and estimator, the best first: `mean`, `low` and `high` of the objective over seeds (or windows
        of a trace) with 95% intervals; `behind`, `behind_low` and `behind_high`, what the best of all is ahead in the
        same seeds; and `as_good`, whether that interval reaches 0.

    Raises:
        ObjectiveError: an objective that is not known.
    """
    if objective not in OBJECTIVES:
        raise ObjectiveError(f"objective: {choice(objective, OBJECTIVES)}")
    run_grid(params, out)
    return ranked(frontier(out), objective)


def ranked(runs: pd.DataFrame, objective: str) -> pd.DataFrame:
    """The ranking of `recommend`.

    Parameters:
        runs: of `frontier`, each policy and estimator with the same seeds.
    """
    values = runs.pivot_table(index="seed", columns=["policy", "estimator"], values=objective, sort=False)
    sign = -1 if objective in LARGER_IS_BETTER else 1
    order = (sign * values.mean()).sort_values(kind="stable").index
    best = values[order[0]]
    rows = []
    for policy, estimator in order:
        mine = values[policy, estimator]
        mean, behind = mean_interval(mine), mean_interval(sign * (mine - best))
        rows.append((policy, estimator, mean.estimate, mean.low, mean.high, behind.estimate, behind.low, behind.high))
    columns = ["policy", "estimator", "mean", "low", "high", "behind", "behind_low", "behind_high"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(as_good=table.behind_low <= 0)


def plugin_yaml(params: Params, policy: str, estimator: str, tenants: Mapping[str, str]) -> str:
    """The settings that make vLLM serve as a setting of the grid did.

    Parameters:
        policy, estimator: as a results table calls them.
        tenants: tiers by tenant.
    """
    policies = {str(component): component for component in params.policies}
    estimators = {str(component): component for component in params.estimators}
    settings = PluginSettings(
        policy=policies[policy],
        estimator=estimators[estimator],
        classifier=params.classifier,
        base_tokens=params.max_tokens,
        tenants=dict(tenants),
    )
    return yaml.safe_dump(settings.model_dump(), sort_keys=False)
