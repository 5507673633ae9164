"""The drift lab: streams of requests replayed through estimators, without an engine, and how good the estimates were.

A replay is a table with one row per request in order of arrival: `position`, `category`, `tenant`, `estimated_tokens`,
`actual_tokens`, `low_tokens`, `high_tokens`, and `probe_tokens`, the estimate of one fixed request of that category,
which tells the estimator's movement from that of the requests.  Many replays are one table with `estimator`, `scenario`
and `seed`.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from scipy.stats import kendalltau

from driftsched_lib.estimators import Estimator
from driftsched_lib.requests import BASE_TOKENS, Request
from driftsched_lib.studies.compare import mean_interval, over_seeds
from driftsched_lib.workloads.drift import NEWCOMERS, drifted
from driftsched_lib.workloads.params import Phase, WorkloadParams
from driftsched_lib.workloads.prompts import build_prompt
from driftsched_lib.workloads.synthetic import make_load

DAYS = 4
WINDOW = 200
BY = ["scenario", "estimator"]
COLUMNS = ["category", "tenant", "estimated_tokens", "actual_tokens", "low_tokens", "high_tokens", "probe_tokens"]


def lab_load(scenario: str, seed: int, requests: int = 2000) -> list[Request]:
    """Return a load under a scenario: four categories in equal shares, classified rightly, evenly over `DAYS` days."""
    phase = Phase(name="lab", share=1.0, mix=dict.fromkeys(BASE_TOKENS, 0.25), gap_s=[0.0, 1.0])
    [load] = make_load(WorkloadParams(label_prefix=False, phases=[phase]), requests, seed, capacity_tokens_per_s=1.0)
    changed = drifted(load.requests, scenario, seed, BASE_TOKENS)
    for i, request in enumerate(changed):
        request.category, request.input_tokens = request.job_type, len(request.prompt.split())
        request.arrival_s = DAYS * 86400 * i / requests
    return changed


def replay(
    estimator: Estimator,
    requests: Sequence[Request],
    lengths: Sequence[int] | None = None,
    delay: int = 0,
    probe_tenant: str = "tenant-standard",
) -> pd.DataFrame:
    """Estimate each request, and let the estimator observe its length when `delay` more have been estimated.

    Parameters:
        lengths: output tokens of each request; None for the lengths at which the load fixes them.
        probe_tenant: the tenant of the probe.
    """
    if lengths is None:
        lengths = [request.fixed_output_tokens for request in requests]
    rows, in_flight = [], deque()
    for request, length in zip(requests, lengths, strict=True):
        made = request.estimate = estimator.estimate(request)
        prompt = build_prompt(request.category, "Load Balancing", 0)
        probe = replace(request, prompt=prompt, tenant=probe_tenant, tier="standard", fixed_output_tokens=length)
        row = (request.category, request.tenant, made.output_tokens, length, made.low_tokens, made.high_tokens)
        rows.append((*row, estimator.estimate(probe).output_tokens))
        in_flight.append((request, length))
        if len(in_flight) > delay:
            estimator.observe(*in_flight.popleft())
    return pd.DataFrame(rows, columns=COLUMNS).rename_axis("position").reset_index()


def replays(
    estimators: Mapping[str, Callable[[], Estimator]],
    scenarios: Iterable[str],
    seeds: Iterable[int],
    requests: int = 2000,
    delay: int = 0,
) -> pd.DataFrame:
    """Return the replays of every estimator, made anew, through every scenario and seed, as one table."""

    def one(scenario: str, seed: int) -> pd.DataFrame:
        load, tenant = lab_load(scenario, seed, requests), NEWCOMERS.get(scenario, "tenant-standard")
        tables = {name: replay(make(), load, None, delay, tenant) for name, make in estimators.items()}
        return pd.concat(table.assign(estimator=name, scenario=scenario, seed=seed) for name, table in tables.items())

    seeds = list(seeds)
    tasks = [delayed(one)(scenario, seed) for scenario in scenarios for seed in seeds]
    return pd.concat(Parallel(n_jobs=-1)(tasks), ignore_index=True)


def accuracy(replay: pd.DataFrame) -> pd.Series:
    """Return MAE, RMSE, MAPE, bias, Kendall's tau, coverage and mean width of the 90% intervals of a replay.

    Lengths in tokens, estimated less actual; the others as shares.  An empty output counts as one token in MAPE.
    """
    actual, estimated, low, high = (
        replay[f"{name}_tokens"].to_numpy(dtype=float) for name in ("actual", "estimated", "low", "high")
    )
    error = estimated - actual
    return pd.Series(
        {
            "mae_tokens": np.abs(error).mean(),
            "rmse_tokens": np.sqrt((error**2).mean()),
            "mape": np.abs(error / np.maximum(actual, 1)).mean(),
            "bias_tokens": error.mean(),
            "kendall_tau": kendalltau(estimated, actual).statistic,
            "coverage": ((low <= actual) & (actual <= high)).mean(),
            "width_tokens": (high - low).mean(),
        }
    )


def accuracy_table(replays: pd.DataFrame, skip: int = WINDOW) -> pd.DataFrame:
    """Return `accuracy` by scenario and estimator without the first `skip` requests, mean over seeds with interval."""
    late = replays[replays.position >= skip]
    by_seed = late.groupby([*BY, "seed"], sort=False).apply(accuracy, include_groups=False)
    return by_seed.groupby(level=BY, sort=False).agg(mean_interval)


def over_time(replays: pd.DataFrame, size: int = WINDOW) -> pd.DataFrame:
    """Return coverage and mean width of the 90% intervals by scenario, estimator, seed and window of requests."""
    table = replays[[*BY, "seed"]].assign(
        window=replays.position // size,
        coverage=replays.actual_tokens.between(replays.low_tokens, replays.high_tokens),
        width_tokens=replays.high_tokens - replays.low_tokens,
    )
    return table.groupby([*BY, "seed", "window"], sort=False).mean().reset_index()


def coverage_table(windows: pd.DataFrame, low: float = 0.88, high: float = 0.92) -> pd.DataFrame:
    """Return how even the coverage is, one row per scenario and estimator, without the first window.

    `least` and `most` are over windows, of the mean over seeds; `lowest` is the worst window of any seed; `within` is
    the share of single windows from `low` to `high`: about 0.7 for a perfect interval with independent misses.

    Parameters:
        windows: from `over_time`.
    """
    late = windows[windows.window > 0]
    means = late.groupby([*BY, "window"], sort=False).coverage.mean().groupby(level=BY, sort=False)
    single = late.assign(within=late.coverage.between(low - 1e-9, high + 1e-9)).groupby(BY, sort=False)
    return pd.DataFrame(
        {"least": means.min(), "most": means.max(), "lowest": single.coverage.min(), "within": single.within.mean()}
    )


def probe_paths(replays: pd.DataFrame, change: int, delay: int = 0) -> pd.DataFrame:
    """Return how the probe's estimate settles after a change at the position `change`.

    Where newcomers change the load, only observations of the newcomers count.

    Returns:
        One row per estimator, scenario, seed, category and request of that category from the change on: `observations`
        of the group since the change, and `log_error`, log of the probe over the level where it settles, its geometric
        mean over all seeds in the second half after the change.
    """
    after, parts = replays[replays.position >= change], []
    for (scenario, *_), group in after.groupby([*BY, "category", "seed"], sort=False):
        positions = group.position.to_numpy()
        counted = positions if scenario not in NEWCOMERS else positions[group.tenant == NEWCOMERS[scenario]]
        observations, logs = np.searchsorted(counted, positions - delay), np.log(group.probe_tokens.astype(float))
        parts.append(group.assign(observations=observations, log_probe=logs))
    paths = pd.concat(parts)
    half = (change + replays.position.max() + 1) / 2
    settled = paths[paths.position >= half].groupby([*BY, "category"]).log_probe.mean().rename("settled")
    paths = paths.join(settled, on=[*BY, "category"])
    columns = [*BY, "category", "seed", "position", "observations", "log_error"]
    return paths.assign(log_error=paths.log_probe - paths.settled)[columns]


def observations_to_recover(paths: pd.DataFrame, tolerance: float = 0.1, until: int = 100) -> pd.Series:
    """Return the observations of a group until its mean estimate over seeds is first within `tolerance` of settled.

    Of the slowest group, with a 95% bootstrap interval over seeds.  This is the estimator's lag without its noise
    (`steady_noise`) and its bias (`settled_bias`); infinite where it takes `until` observations.

    Parameters:
        paths: from `probe_paths`, of the groups that changed.
    """
    rows = {}
    for where, part in paths[paths.observations < until].groupby(BY, sort=False):
        errors = (
            part.groupby(["seed", "category", "observations"]).log_error.mean().unstack(["category", "observations"])
        )

        def slowest(weights: np.ndarray, errors: pd.DataFrame = errors) -> np.ndarray:
            found = []
            for category in errors.columns.unique("category"):
                group = errors[category].sort_index(axis=1)
                means = weights @ group.fillna(0.0).to_numpy() / np.maximum(weights @ group.notna().to_numpy(), 1e-9)
                inside = np.abs(means) <= np.log1p(tolerance)
                found.append(np.where(inside.any(axis=1), group.columns.to_numpy()[inside.argmax(axis=1)], np.inf))
            return np.max(found, axis=0)

        rows[where] = over_seeds(slowest, len(errors), method="nearest")
    return pd.Series(rows, name="observations").rename_axis(BY)


def settled_bias(replays: pd.DataFrame, change: int) -> pd.Series:
    """Return where estimates settle over the truth, less 1, by scenario and estimator: mean over seeds with interval.

    Mean estimate over mean output in the second half after the change.
    """
    late = replays[replays.position >= (change + replays.position.max() + 1) / 2]
    sums = late.groupby([*BY, "seed"], sort=False)[["estimated_tokens", "actual_tokens"]].sum()
    return (sums.estimated_tokens / sums.actual_tokens - 1).groupby(level=BY, sort=False).agg(mean_interval)


def steady_noise(replays: pd.DataFrame) -> pd.Series:
    """Return the standard deviation of the probe's log estimate in the second half of a stationary replay.

    By estimator, the mean over seeds and categories with its interval over seeds.
    """
    late = replays[replays.position >= (replays.position.max() + 1) / 2]
    logs = np.log(late.probe_tokens.astype(float))
    spread = logs.groupby([late.estimator, late.seed, late.category], sort=False).std()
    by_seed = spread.groupby(level=["estimator", "seed"], sort=False).mean()
    return by_seed.groupby(level="estimator", sort=False).agg(mean_interval)
