"""The drift lab: streams of requests replayed through estimators, without an engine, and how good the estimates were.

A replay is a table of `position` and `COLUMNS`, one row per request in order of arrival.  Its probe is the estimate of
one fixed request per category.  Many replays are one table with `estimator`, `scenario` and `seed`.
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
from driftsched_lib.studies.compare import Interval, mean_interval
from driftsched_lib.workloads.drift import NEWCOMERS, drifted
from driftsched_lib.workloads.params import Phase, WorkloadParams
from driftsched_lib.workloads.prompts import build_prompt
from driftsched_lib.workloads.synthetic import make_load

DAYS, WINDOW = 4, 200
BY = ["scenario", "estimator"]
COLUMNS = ["category", "tenant", "estimated_tokens", "actual_tokens", "low_tokens", "high_tokens", "probe_tokens"]


def lab_load(scenario: str, seed: int, requests: int = 2000) -> list[Request]:
    """Return a load under a scenario: four categories in equal shares, classified rightly, evenly over `DAYS` days."""
    phase = Phase(name="lab", gap_s=[0.0, 1.0])
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

    Lengths (output tokens) are by default those at which the load fixes the outputs.
    """
    lengths = [request.fixed_output_tokens for request in requests] if lengths is None else lengths
    rows, in_flight = [], deque()
    for request, length in zip(requests, lengths, strict=True):
        made = request.estimate = estimator.estimate(request)
        probe = replace(request, tenant=probe_tenant, tier="standard", fixed_output_tokens=length)
        probe.prompt = build_prompt(request.category, "Load Balancing", 0)
        probe.max_tokens = BASE_TOKENS[request.category]
        estimated = made.output_tokens, length, made.low_tokens, made.high_tokens
        rows.append((request.category, request.tenant, *estimated, estimator.estimate(probe).output_tokens))
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
    """Return errors (estimated less actual), Kendall's tau, and coverage and mean width of the 90% intervals.

    An output that ended at its limit is compared as it was served.  An empty one counts as one token in MAPE.
    """
    estimated, actual, low, high = replay[COLUMNS[2:6]].to_numpy(dtype=float).T
    error, covered = estimated - actual, (low <= actual) & (actual <= high)
    values = {"mae_tokens": np.abs(error).mean(), "rmse_tokens": np.sqrt((error**2).mean())}
    values |= {"mape": np.abs(error / np.maximum(actual, 1)).mean(), "bias_tokens": error.mean()}
    values |= {"kendall_tau": kendalltau(estimated, actual).statistic, "coverage": covered.mean()}
    return pd.Series(values | {"width_tokens": (high - low).mean()})


def accuracies(replays: pd.DataFrame, skip: int = WINDOW) -> pd.DataFrame:
    """Return `accuracy` by scenario, estimator and seed without the first `skip` requests."""
    late = replays[replays.position >= skip]
    return late.groupby([*BY, "seed"], sort=False).apply(accuracy, include_groups=False)


def over_time(replays: pd.DataFrame, size: int = WINDOW) -> pd.DataFrame:
    """Return coverage and mean width of the 90% intervals by scenario, estimator, seed and window of requests."""
    covered = replays.actual_tokens.between(replays.low_tokens, replays.high_tokens)
    width = replays.high_tokens - replays.low_tokens
    table = replays[[*BY, "seed"]].assign(window=replays.position // size, coverage=covered, width_tokens=width)
    return table.groupby([*BY, "seed", "window"], sort=False).mean().reset_index()


def coverage_table(windows: pd.DataFrame, low: float = 0.88, high: float = 0.92) -> pd.DataFrame:
    """Return how even the coverage of `over_time` is, by scenario and estimator, without the first window.

    `least` and `most` are over windows, of the mean over seeds; `lowest` is the worst window of any seed; `within` is
    the share of single windows from `low` to `high`: about 0.7 for a perfect interval with independent misses.
    """
    late = windows[windows.window > 0]
    means = late.groupby([*BY, "window"], sort=False).coverage.mean().groupby(level=BY, sort=False)
    single = late.assign(within=late.coverage.between(low - 1e-9, high + 1e-9)).groupby(BY, sort=False)
    table = {"least": means.min(), "most": means.max(), "lowest": single.coverage.min()}
    return pd.DataFrame(table | {"within": single.within.mean()})


def probe_paths(replays: pd.DataFrame, change: int, delay: int = 0) -> pd.DataFrame:
    """Return how the probe settles after a change at the position `change`: one row per later request.

    `observations` counts its category's since the change, or the newcomers' where these are the change.  `log_error` is
    the log of the probe over the level where it settles: the geometric mean over seeds, second half after the change.
    """
    after, parts = replays[replays.position >= change], []
    for (scenario, *_), group in after.groupby([*BY, "category", "seed"], sort=False):
        positions = group.position.to_numpy()
        counted = positions if scenario not in NEWCOMERS else positions[group.tenant == NEWCOMERS[scenario]]
        observations, logs = np.searchsorted(counted, positions - delay), np.log(group.probe_tokens.astype(float))
        parts.append(group.assign(observations=observations, log_probe=logs))
    paths = pd.concat(parts)
    late = paths.log_probe.where(paths.position >= (change + replays.position.max() + 1) / 2)
    settled = late.groupby([paths[name] for name in (*BY, "category")]).transform("mean")
    columns = [*BY, "category", "seed", "position", "observations", "log_error"]
    return paths.assign(log_error=paths.log_probe - settled)[columns]


def observations_to_recover(paths: pd.DataFrame, tolerance: float = 0.1, until: int = 100) -> pd.Series:
    """Return the observations until the mean estimate over seeds is first within `tolerance` of where it settles.

    Of the slowest category in `probe_paths`; infinite from `until` on.  This is the lag without noise and bias.  The
    interval goes from where Student's of the mean first reaches into the tolerance to where it first is within.
    """

    def slowest(errors: pd.Series) -> float:
        near = errors[errors <= np.log1p(tolerance)].reset_index("observations").groupby("category").observations.min()
        return float(near.reindex(errors.index.unique("category")).fillna(np.inf).max())

    rows = {}
    for where, part in paths[paths.observations < until].groupby(BY, sort=False):
        by_seed = part.groupby(["category", "observations", "seed"]).log_error.mean()
        means = by_seed.groupby(level=["category", "observations"]).agg(mean_interval)
        errors = [(abs(mean.estimate), max(mean.low, -mean.high), max(-mean.low, mean.high)) for mean in means]
        rows[where] = Interval(*pd.DataFrame(errors, means.index).apply(slowest))
    return pd.Series(rows, name="observations").rename_axis(BY)


def settled_bias(replays: pd.DataFrame, change: int) -> pd.Series:
    """Return mean estimate over mean output less 1, in the second half after a change, by scenario and estimator."""
    late = replays[replays.position >= (change + replays.position.max() + 1) / 2]
    sums = late.groupby([*BY, "seed"], sort=False)[["estimated_tokens", "actual_tokens"]].sum()
    return (sums.estimated_tokens / sums.actual_tokens - 1).groupby(level=BY, sort=False).agg(mean_interval)


def steady_noise(replays: pd.DataFrame) -> pd.Series:
    """Return the standard deviation of the log probe in the second half of stationary replays, by estimator."""
    late = replays[replays.position >= (replays.position.max() + 1) / 2]
    logs = np.log(late.probe_tokens.astype(float))
    spread = logs.groupby([late.estimator, late.seed, late.category], sort=False).std()
    return spread.groupby(level=[0, 1], sort=False).mean().groupby(level=0, sort=False).agg(mean_interval)
