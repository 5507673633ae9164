"""The statistics of all studies: estimates with intervals, changes paired by seed or by request.

Intervals over seeds, which are independent, are Student's.  Others are percentile bootstraps from a fixed generator.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

MIN_SEEDS = 10  # this many independent runs give an interval of their own
Statistic = Callable[[np.ndarray], np.ndarray]
Setting = Mapping[str, Any]  # values of columns, which together select rows


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval."""

    estimate: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.estimate:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def quantile(q: float) -> Statistic:
    """Return a statistic over the last axis: the q-quantile."""
    return lambda values: np.quantile(values, q, axis=-1)


def mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over the last axis."""
    return values.mean(axis=-1)


def rms(values: np.ndarray) -> np.ndarray:
    """Return the root of the mean square over the last axis."""
    return np.sqrt((values**2).mean(axis=-1))


def select(frame: pd.DataFrame, **setting: Any) -> pd.DataFrame:
    """Return the rows whose columns have these values."""
    return frame[np.logical_and.reduce([frame[column] == value for column, value in setting.items()])]


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the mean of independent values with Student's interval, which is infinite for one value."""
    values = np.asarray(values, dtype=float)
    n = len(values)
    half = student.ppf((1 + confidence) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n) if n > 1 else np.inf
    return Interval(float(values.mean()), float(values.mean() - half), float(values.mean() + half))


def by_seed(summary: pd.DataFrame, column: str, setting: Setting) -> pd.Series:
    """Return a column of the runs of a setting; ValueError unless there is one run per seed."""
    values = select(summary, **setting).set_index("seed")[column].sort_index()
    if values.empty or values.index.has_duplicates:
        raise ValueError(f"{dict(setting)} selects {len(values)} runs of {values.index.nunique()} seeds")
    return values


def paired_change(
    summary: pd.DataFrame, column: str, treated: Setting, baseline: Setting, relative: bool = True
) -> Interval:
    """Return the mean over seeds, each of the same requests, of `treated / baseline - 1`, or of the difference."""
    after, before = (by_seed(summary, column, setting) for setting in (treated, baseline))
    return mean_interval((after / before - 1 if relative else after - before).dropna())


def changes(
    summary: pd.DataFrame, baseline: Setting, settings: Mapping[str, Setting], columns: Sequence[str]
) -> pd.DataFrame:
    """Return `paired_change` of each setting, by name, and column: one row each with `change`, `low` and `high`."""
    rows = []
    for (name, setting), column in product(settings.items(), columns):
        change = paired_change(summary, column, setting, baseline)
        rows.append((name, column, change.estimate, change.low, change.high))
    return pd.DataFrame(rows, columns=["setting", "column", "change", "low", "high"])


def behind_best(values: pd.DataFrame, larger_is_better: bool = False) -> pd.Series:
    """Return `differences_at_once` from the column with the best mean, the best first; 0 or less is as good as it."""
    costs = -values if larger_is_better else values
    costs = costs[costs.mean().sort_values(kind="stable").index]
    return differences_at_once(costs, costs.iloc[:, 0])


def differences_at_once(values: pd.DataFrame, reference: pd.Series) -> pd.Series:
    """Return each column's mean difference over seeds from a reference; all intervals hold at once (Bonferroni)."""
    confidence = 1 - 0.05 / max(1, len(values.columns) - 1)
    differences = values.sub(reference, axis=0)
    return pd.Series([mean_interval(differences[column].dropna(), confidence) for column in values], values.columns)


def share_of_gap(summary: pd.DataFrame, column: str, setting: Setting, baseline: Setting, bound: Setting) -> Interval:
    """Return how much of the mean difference between `baseline` and `bound` a setting closes; see `by_seed`."""
    base, middle, best = (by_seed(summary, column, side).to_numpy() for side in (baseline, setting, bound))
    return over_seeds(lambda weights: (weights @ (base - middle)) / (weights @ (base - best)), len(base), 2000)


def over_seeds(statistic: Statistic, seeds: int, resamples: int = 1000, method: str = "linear") -> Interval:
    """Return a statistic with its 95% bootstrap over seeds.

    The statistic takes one row per resample, with how often each seed was drawn, and returns one value per row.  Where
    that can be infinite, numpy's method for quantiles must be `nearest`.
    """
    draws = np.random.default_rng(0).integers(0, seeds, (resamples, seeds))
    values = statistic(np.vstack([np.ones(seeds), *(np.bincount(draw, minlength=seeds) for draw in draws)]))
    return Interval(float(values[0]), *map(float, np.quantile(values[1:], [0.025, 0.975], method=method)))


def bootstrap(
    frame: pd.DataFrame,
    column: str,
    statistic: Statistic,
    settings: Sequence[Setting],
    contrast: Callable[..., np.ndarray] = lambda values: values,
    **options: Any,
) -> Interval:
    """Return a contrast of the statistic under several settings, paired by `seed` and `request_id`; see `intervals`.

    Raises ValueError if no request is there under all settings.
    """
    sides = [select(frame, **setting).set_index(["seed", "request_id"])[column] for setting in settings]
    paired = pd.concat(sides, axis=1, join="inner", keys=range(len(sides))).astype(float)
    if paired.empty:
        raise ValueError(f"no request was completed under all of {[dict(setting) for setting in settings]}")
    runs = []
    for _, requests in paired.groupby(level="seed"):
        order = requests.index.get_level_values("request_id").astype(int).argsort()
        runs.append(requests.to_numpy()[order].T)
    [interval] = intervals(runs, lambda values: statistic(values)[None], contrast, **options)
    return interval


def relative_change(
    frame: pd.DataFrame, column: str, statistic: Statistic, treated: Setting, baseline: Setting, **options: Any
) -> Interval:
    """Return `statistic(treated) / statistic(baseline) - 1`; see `bootstrap`."""
    return bootstrap(frame, column, statistic, (treated, baseline), lambda t, b: t / b - 1, **options)


def intervals(
    runs: Sequence[np.ndarray],
    statistics: Statistic,
    contrast: Callable[..., np.ndarray],
    resamples: int = 1000,
    block: int = 50,
    confidence: float = 0.95,
) -> list[Interval]:
    """Return contrasts of several statistics of the same requests under several settings, as means over seeds.

    `MIN_SEEDS` seeds give Student's interval.  Fewer are resampled on two levels: seeds, and within a seed the same
    blocks of consecutive requests for all settings, because neighbours share a queue (Künsch, 1989).

    Parameters:
        runs: one array per seed, settings x requests, in order of arrival.
        statistics: reduces the last axis of its argument; the first axis of its result holds the statistics.
        contrast: from one array of statistics per setting to the array that is compared.
        block: requests per block, at most a tenth of a run.
    """
    estimates = [contrast(*(statistics(side) for side in values)) for values in runs]
    if len(runs) >= MIN_SEEDS:
        return [mean_interval(seeds, confidence) for seeds in np.transpose(estimates)]
    rng, resampled = np.random.default_rng(0), []
    for values in runs:
        n = values.shape[1]
        length = max(1, min(block, n // 10))
        starts = rng.integers(0, n - length + 1, (resamples, -(-n // length)))
        rows = (starts[..., None] + np.arange(length)).reshape(resamples, -1)[:, :n]
        resampled.append(contrast(*(statistics(side[rows]) for side in values)))
    seeds, draws = (rng.integers(0, top, (resamples, len(runs))) for top in (len(runs), resamples))
    means = np.moveaxis(resampled, 1, -1)[seeds, draws].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return [Interval(*map(float, ends)) for ends in zip(np.mean(estimates, axis=0), low, high, strict=True)]
