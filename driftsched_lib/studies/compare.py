"""Paired differences between settings that served the same requests, with bootstrap intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

ENOUGH_SEEDS = 10
"""So many independent runs give an interval of their own."""

Statistic = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval."""

    estimate: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.estimate:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def quantile(q: float) -> Statistic:
    """A statistic over the last axis: the q-quantile."""
    return lambda values: np.quantile(values, q, axis=-1)


def mean(values: np.ndarray) -> np.ndarray:
    """A statistic over the last axis: the mean."""
    return values.mean(axis=-1)


def root_mean_square(values: np.ndarray) -> np.ndarray:
    """A statistic over the last axis: the root of the mean square."""
    return np.sqrt((values**2).mean(axis=-1))


def select(frame: pd.DataFrame, **setting: Any) -> pd.DataFrame:
    """The rows whose columns have these values."""
    return frame[np.logical_and.reduce([frame[column] == value for column, value in setting.items()])]


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean of independent values, and Student's interval for it; of one value, it is infinite."""
    values = np.asarray(values, dtype=float)
    n = len(values)
    half = student.ppf((1 + confidence) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n) if n > 1 else np.inf
    return Interval(float(values.mean()), float(values.mean() - half), float(values.mean() + half))


def bootstrap(
    frame: pd.DataFrame,
    column: str,
    statistic: Statistic,
    settings: Sequence[Mapping[str, Any]],
    contrast: Callable[..., np.ndarray],
    **options: Any,
) -> Interval:
    """`contrast` of the statistic under several settings, paired by seed and request; see `intervals`.

    Parameters:
        frame: a row a request, with `seed`, `request_id` and `column`.
        settings: for each setting the column values that select it.

    Raises:
        ValueError: no request is there under all settings.
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


def intervals(
    runs: Sequence[np.ndarray],
    statistics: Statistic,
    contrast: Callable[..., np.ndarray],
    resamples: int = 1000,
    block: int = 50,
    confidence: float = 0.95,
) -> list[Interval]:
    """`contrast` of several statistics of the same requests under several settings, averaged over seeds.

    With `ENOUGH_SEEDS` the interval is Student's over seeds, which are independent.  With fewer it is a percentile
    bootstrap on two levels: seeds, and within a seed the same blocks of consecutive requests for all settings, for
    neighbours in arrival share the queue they met (Künsch, 1989).

    Parameters:
        runs: an array a seed, settings x requests, in order of arrival.
        statistics: over the last axis of what it is given; the first axis of what it returns are the statistics.
        contrast: from one array of statistics a setting to the array of what is compared.
        block: requests a block, at most a tenth of a run.
    """
    rng = np.random.default_rng(0)
    estimates, resampled = [], []
    enough = len(runs) >= ENOUGH_SEEDS
    for values in runs:
        estimates.append(contrast(*(statistics(side) for side in values)))
        if enough:
            continue
        n = values.shape[1]
        length = max(1, min(block, n // 10))
        starts = rng.integers(0, n - length + 1, (resamples, -(-n // length)))
        rows = (starts[..., None] + np.arange(length)).reshape(resamples, -1)[:, :n]
        resampled.append(contrast(*(statistics(side[rows]) for side in values)))
    if enough:
        return [mean_interval(seeds, confidence) for seeds in np.transpose(estimates)]
    seeds = rng.integers(0, len(runs), (resamples, len(runs)))
    draws = rng.integers(0, resamples, (resamples, len(runs)))
    means = np.moveaxis(resampled, 1, -1)[seeds, draws].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    middle = np.mean(estimates, axis=0)
    return [Interval(*map(float, ends)) for ends in zip(middle, low, high, strict=True)]


def relative_change(
    frame: pd.DataFrame,
    column: str,
    statistic: Statistic,
    treated: Mapping[str, Any],
    baseline: Mapping[str, Any],
    **options: Any,
) -> Interval:
    """`statistic(treated) / statistic(baseline) - 1`; see `bootstrap`."""
    return bootstrap(frame, column, statistic, (treated, baseline), lambda t, b: t / b - 1, **options)


def difference(
    frame: pd.DataFrame,
    column: str,
    statistic: Statistic,
    treated: Mapping[str, Any],
    baseline: Mapping[str, Any],
    **options: Any,
) -> Interval:
    """`statistic(treated) - statistic(baseline)`; see `bootstrap`."""
    return bootstrap(frame, column, statistic, (treated, baseline), lambda t, b: t - b, **options)


def single(
    frame: pd.DataFrame, column: str, statistic: Statistic, setting: Mapping[str, Any], **options: Any
) -> Interval:
    """`statistic` under one setting; see `bootstrap`."""
    return bootstrap(frame, column, statistic, (setting,), lambda values: values, **options)
