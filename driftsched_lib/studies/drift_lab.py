"""The drift lab: streams of requests replayed through estimators, without an engine, and what the estimates were worth.

A replay is a table, a row a request in order of arrival: `position`, `category`, `tenant`, `estimated_tokens`,
`actual_tokens`, `low_tokens`, `high_tokens`, and `probe_tokens`, what the estimator then said of one and the same
request of that category, so that its own movement can be told from that of the requests.  Many replays are one table
with `estimator`, `scenario` and `seed`.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from driftsched_lib.estimators import Estimator
from driftsched_lib.experiments.parallel import finish_all
from driftsched_lib.experiments.params import Params, Phase, WorkloadParams
from driftsched_lib.requests import BASE_TOKENS, Request
from driftsched_lib.studies.compare import Interval, mean_interval
from driftsched_lib.workloads.drift import NEWCOMERS, Scenario, drifted
from driftsched_lib.workloads.prompts import build_prompt
from driftsched_lib.workloads.synthetic import paper_load

DAYS = 4
WINDOW = 200


def lab_load(
    scenario: str | Scenario,
    seed: int,
    requests: int = 2000,
    limits: Mapping[str, int] = BASE_TOKENS,
    spread: float | None = None,
) -> list[Request]:
    """A load under a scenario, four categories alike often, classified rightly, spread evenly over `DAYS` days."""
    phase = Phase(name="lab", share=1.0, mix=dict.fromkeys(BASE_TOKENS, 0.25), gap_s=[0.0, 1.0])
    params = Params(requests=requests, workload=WorkloadParams(label_prefix=False, phases=[phase]))
    [load] = paper_load(params, seed, capacity_tokens_per_s=1.0)
    changed = drifted(load.requests, scenario, seed, limits, **({} if spread is None else {"spread": spread}))
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
        lengths: what the outputs came to; None for the lengths at which they are pinned.
        delay: requests in flight between an estimate and its observation.
        probe_tenant: whose request it is that the estimator is asked about each time.
    """
    if lengths is None:
        lengths = [request.fixed_output_tokens for request in requests]
    rows, in_flight = [], deque()
    for request, length in zip(requests, lengths, strict=True):
        estimate = request.estimate = estimator.estimate(request)
        probe = estimator.estimate(_probe(request, length, probe_tenant))
        rows.append(
            (
                request.category,
                request.tenant,
                estimate.output_tokens,
                length,
                estimate.low_tokens,
                estimate.high_tokens,
                probe.output_tokens,
            )
        )
        in_flight.append((request, length))
        if len(in_flight) > delay:
            estimator.observe(*in_flight.popleft())
    columns = ["category", "tenant", "estimated_tokens", "actual_tokens", "low_tokens", "high_tokens", "probe_tokens"]
    return pd.DataFrame(rows, columns=columns).rename_axis("position").reset_index()


def _probe(request: Request, length: int, tenant: str) -> Request:
    """One and the same request of a category, at the time of another."""
    prompt = build_prompt(request.category, "Load Balancing", 0)
    return replace(request, prompt=prompt, tenant=tenant, tier="standard", fixed_output_tokens=length)


def replays(
    estimators: Mapping[str, Callable[[], Estimator]],
    scenarios: Iterable[str],
    seeds: Iterable[int],
    requests: int = 2000,
    delay: int = 0,
) -> pd.DataFrame:
    """Every estimator, begun anew, through every scenario and seed: the replays as one table.

    Parameters:
        estimators: by name, what makes one.
    """
    tasks = [(estimators, scenario, seed, requests, delay) for scenario, seed in product(scenarios, list(seeds))]
    tables = dict(finish_all(_replays, [(number, *task) for number, task in enumerate(tasks)]))
    return pd.concat([tables[number] for number in range(len(tasks))], ignore_index=True)


def _replays(
    number: int,
    estimators: Mapping[str, Callable[[], Estimator]],
    scenario: str,
    seed: int,
    requests: int,
    delay: int,
) -> tuple[int, pd.DataFrame]:
    load = lab_load(scenario, seed, requests)
    tenant = NEWCOMERS.get(scenario, "tenant-standard")
    tables = [
        replay(make(), load, delay=delay, probe_tenant=tenant).assign(estimator=name, scenario=scenario, seed=seed)
        for name, make in estimators.items()
    ]
    return number, pd.concat(tables, ignore_index=True)


def accuracy(replay: pd.DataFrame) -> pd.Series:
    """MAE, RMSE, MAPE, bias, Kendall's tau, coverage and width of the 90% intervals of one replay, or a part of one.

    Lengths in tokens, estimated less actual; the others as shares.  An empty output counts as one token in MAPE.
    """
    actual = replay.actual_tokens.to_numpy(dtype=float)
    error = replay.estimated_tokens.to_numpy(dtype=float) - actual
    low, high = replay.low_tokens.to_numpy(dtype=float), replay.high_tokens.to_numpy(dtype=float)
    return pd.Series(
        {
            "mae_tokens": np.abs(error).mean(),
            "rmse_tokens": np.sqrt((error**2).mean()),
            "mape": np.abs(error / np.maximum(actual, 1)).mean(),
            "bias_tokens": error.mean(),
            "kendall_tau": kendalltau(replay.estimated_tokens, replay.actual_tokens).statistic,
            "coverage": ((low <= actual) & (actual <= high)).mean(),
            "width_tokens": (high - low).mean(),
        }
    )


def accuracy_table(replays: pd.DataFrame, skip: int = WINDOW) -> pd.DataFrame:
    """`accuracy` of each scenario and estimator, the first `skip` requests left out: mean over seeds with interval."""
    late = replays[replays.position >= skip]
    by_seed = late.groupby(["scenario", "estimator", "seed"], sort=False).apply(accuracy, include_groups=False)
    return by_seed.groupby(level=["scenario", "estimator"], sort=False).agg(mean_interval)


def over_time(replays: pd.DataFrame, size: int = WINDOW) -> pd.DataFrame:
    """Coverage and mean width of the 90% intervals in windows of `size` requests: a row a scenario, estimator, seed and
    window."""
    actual = replays.actual_tokens
    table = replays[["scenario", "estimator", "seed"]].assign(
        window=replays.position // size,
        coverage=(replays.low_tokens <= actual) & (actual <= replays.high_tokens),
        width_tokens=replays.high_tokens - replays.low_tokens,
    )
    return table.groupby(["scenario", "estimator", "seed", "window"], sort=False).mean().reset_index()


def coverage_table(windows: pd.DataFrame, low: float = 0.88, high: float = 0.92) -> pd.DataFrame:
    """How even the coverage is: a row a scenario and estimator, the first window, where nothing is known, left out.

    `least` and `most` are over windows, of the mean over seeds; `lowest` is the worst window of any seed; `within` is
    the share of single windows from `low` to `high`.  Independent misses would give 0.7 with a perfect interval.

    Parameters:
        windows: from `over_time`.
    """
    late = windows[windows.window > 0]
    by = ["scenario", "estimator"]
    means = late.groupby([*by, "window"], sort=False).coverage.mean().groupby(level=by, sort=False)
    single = late.assign(within=late.coverage.between(low - 1e-9, high + 1e-9)).groupby(by, sort=False)
    return pd.DataFrame(
        {"least": means.min(), "most": means.max(), "lowest": single.coverage.min(), "within": single.within.mean()}
    )


def probe_paths(replays: pd.DataFrame, change: int, delay: int = 0) -> pd.DataFrame:
    """How the estimate of one and the same request settles after a change at the position `change`, of one scenario.

    The request is a newcomer's where newcomers change the load, and what counts is what was observed of them.

    Returns:
        A row an estimator, scenario, seed, category and request of that category from the change on: `observations`,
        how many requests of the group had been observed since the change, and `log_error`, log of the probe over where
        it settles, its geometric mean over all seeds in the second half of what comes after the change.
    """
    after = replays[replays.position >= change]
    by = ["scenario", "estimator", "category"]
    parts = []
    for (scenario, *_), group in after.groupby([*by, "seed"], sort=False):
        positions = group.position.to_numpy()
        counted = positions if scenario not in NEWCOMERS else positions[group.tenant == NEWCOMERS[scenario]]
        parts.append(
            group.assign(
                observations=np.searchsorted(counted, positions - delay),
                log_probe=np.log(group.probe_tokens.to_numpy(dtype=float)),
            )
        )
    paths = pd.concat(parts)
    half = (change + replays.position.max() + 1) / 2
    settled = paths[paths.position >= half].groupby(by).log_probe.mean().rename("settled")
    paths = paths.join(settled, on=by)
    columns = [*by, "seed", "position", "observations", "log_error"]
    return paths.assign(log_error=paths.log_probe - paths.settled)[columns]


def observations_to_recover(
    paths: pd.DataFrame, tolerance: float = 0.1, until: int = 100, resamples: int = 1000
) -> pd.Series:
    """Observations of a group until the estimate, in the mean over seeds, is first within `tolerance` of where it
    settles; of the slowest group, with a 95% bootstrap interval over seeds.

    It is the time that the estimator's lag takes, whatever its noise, which is `steady_noise`; where it settles may be
    off the truth, which is its bias.  Infinite where that takes `until` observations.

    Parameters:
        paths: from `probe_paths`, of the groups that changed.
    """
    early = paths[paths.observations < until]
    rows = {}
    for where, part in early.groupby(["scenario", "estimator"], sort=False):
        errors = (
            part.groupby(["seed", "category", "observations"]).log_error.mean().unstack(["category", "observations"])
        )
        draws = np.random.default_rng(0).integers(0, len(errors), (resamples, len(errors)))
        weights = np.stack([np.bincount(draw, minlength=len(errors)) for draw in draws])
        weights = np.vstack([np.ones(len(errors)), weights])
        slowest = np.zeros(len(weights))
        for category in errors.columns.unique("category"):
            group = errors[category].sort_index(axis=1)
            known = group.notna().to_numpy()
            means = weights @ group.fillna(0.0).to_numpy() / np.maximum(weights @ known, 1e-9)
            inside = np.abs(means) <= np.log1p(tolerance)
            first = np.where(inside.any(axis=1), group.columns.to_numpy()[inside.argmax(axis=1)], np.inf)
            slowest = np.maximum(slowest, first)
        low, high = np.quantile(slowest[1:], [0.025, 0.975], method="nearest")
        rows[where] = Interval(float(slowest[0]), float(low), float(high))
    return pd.Series(rows, name="observations").rename_axis(["scenario", "estimator"])


def settled_bias(replays: pd.DataFrame, change: int) -> pd.Series:
    """Where estimates settle, over the truth, less 1: their mean over that of the outputs, in the second half of what
    comes after the change; by scenario and estimator, the mean over seeds with its interval."""
    late = replays[replays.position >= (change + replays.position.max() + 1) / 2]
    sums = late.groupby(["scenario", "estimator", "seed"], sort=False)[["estimated_tokens", "actual_tokens"]].sum()
    bias = sums.estimated_tokens / sums.actual_tokens - 1
    return bias.groupby(level=["scenario", "estimator"], sort=False).agg(mean_interval)


def steady_noise(replays: pd.DataFrame) -> pd.DataFrame:
    """Standard deviation of the log estimate of one and the same request, in the second half of a stationary replay.

    A row an estimator, the mean over seeds and categories with its interval over seeds.
    """
    late = replays[replays.position >= (replays.position.max() + 1) / 2]
    logs = np.log(late.probe_tokens.astype(float))
    spread = logs.groupby([late.estimator, late.seed, late.category], sort=False).std()
    return (
        spread.groupby(level=["estimator", "seed"], sort=False)
        .mean()
        .groupby(level="estimator", sort=False)
        .agg(mean_interval)
    )
