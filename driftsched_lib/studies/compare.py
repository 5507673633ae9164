"""The statistics of all studies: estimates with intervals, changes paired by seed or by request.

Intervals over two or more seeds, which are independent, are Student's.  That of one run says so: it is a bootstrap.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import comb, stdtrit

MAX_STRETCHES, MIN_STRETCH = 8, 100  # parts of a run that are resampled each by itself; requests of one
Statistic = Callable[[np.ndarray], np.ndarray]
Setting = Mapping[str, Any]  # values of columns, which together select rows
Settings, Names, Contrast = Mapping[str, Setting], Collection[str], Callable[..., np.ndarray]


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval; see `notes`."""

    estimate: float
    low: float
    high: float
    one_run: bool = False  # it is conditional on one run, so it says little of other seeds
    left_out: float = 0.0  # share of the requests, as they were not completed under all settings

    def __format__(self, spec: str) -> str:
        text = f"{self.estimate:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"
        return f"{text} ({note})" if (note := notes([self])) else text


def notes(intervals: Collection[Interval]) -> str:
    """Return what a reader of some intervals has to know: the run they are conditional on, the requests left out."""
    left_out, most = max((each.left_out for each in intervals), default=0.0), "up to " * (len(intervals) > 1)
    said = ["conditional on one run"] * any(each.one_run for each in intervals)
    said += [f"{most}{left_out:.1%} of requests left out: not completed on all sides"] * (left_out > 0)
    return "; ".join(said)


def quantile(q: float) -> Statistic:
    """Return a statistic over the last axis: the q-quantile."""
    return lambda values: np.quantile(values, q, axis=-1)


def mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over the last axis."""
    return values.mean(axis=-1)


def rms(values: np.ndarray) -> np.ndarray:
    """Return the root of the mean square over the last axis."""
    return np.sqrt(mean(values**2))


def select(frame: pd.DataFrame, **setting: Any) -> pd.DataFrame:
    """Return the rows whose columns have these values."""
    return frame[np.logical_and.reduce([frame[column] == value for column, value in setting.items()])]


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the mean of independent values with Student's interval, which is infinite for one value."""
    values, n = np.asarray(values, dtype=float), len(values)
    middle = float(values.mean()) if n else np.nan
    half = float(stdtrit(n - 1, (1 + confidence) / 2) * values.std(ddof=1) / np.sqrt(n)) if n > 1 else np.inf
    return Interval(middle, middle - half, middle + half)


def by_seed(summary: pd.DataFrame, column: str, setting: Setting) -> pd.Series:
    """Return a column of the runs of a setting; ValueError unless there is one run per seed."""
    values = select(summary, **setting).set_index("seed")[column].sort_index()
    if values.empty or values.index.has_duplicates:
        raise ValueError(f"{dict(setting)} selects {len(values)} runs of {values.index.nunique()} seeds")
    return values


def paired_change(runs: pd.DataFrame, column: str, treated: Setting, baseline: Setting, relative=True) -> Interval:
    """Return the mean over seeds, each of the same requests, of `treated / baseline - 1`, or of the difference."""
    after, before = (by_seed(runs, column, setting) for setting in (treated, baseline))
    return mean_interval((after / before - 1 if relative else after - before).dropna())


def changes(runs: pd.DataFrame, baseline: Setting, settings: Settings, columns: Names, relative: Names | None = None):
    """Return `paired_change` of each named setting and column, a row each; by ratio the columns in `relative` (all)."""
    rows = []
    for (name, setting), column in product(settings.items(), columns):
        change = paired_change(runs, column, setting, baseline, relative is None or column in relative)
        rows.append((name, column, change.estimate, change.low, change.high))
    return pd.DataFrame(rows, columns=["setting", "column", "change", "low", "high"])


def behind_best(values: pd.DataFrame, larger_is_better: bool = False) -> pd.Series:
    """Return differences from the column of the best mean, best first; values choose it, so all pairs hold at once."""
    costs = -values if larger_is_better else values
    costs = costs[costs.mean().sort_values(kind="stable").index]
    return differences_at_once(costs, costs.iloc[:, 0], comparisons=comb(len(costs.columns), 2))


def differences_at_once(values: pd.DataFrame, reference: pd.Series, comparisons: float | None = None) -> pd.Series:
    """Return each column's mean difference over seeds from a reference, one of them; all hold at once (Bonferroni)."""
    confidence = 1 - 0.05 / max(1, comparisons or len(values.columns) - 1)
    differences = values.sub(reference, axis=0)
    return pd.Series([mean_interval(differences[column].dropna(), confidence) for column in values], values.columns)


def share_of_gap(summary: pd.DataFrame, column: str, setting: Setting, baseline: Setting, bound: Setting) -> Interval:
    """Return how much of the mean difference between `baseline` and `bound` a setting closes; see `by_seed`.

    The interval is Fieller's (1954): the shares for which Student's test cannot tell the closed part, less the share of
    the gap, from 0.  Unlike the delta method's it holds for small gaps; it is infinite if the gap may be 0.
    """
    base, middle, best = (by_seed(summary, column, side) for side in (baseline, setting, bound))
    pairs = pd.concat([base - middle, base - best], axis=1).dropna().to_numpy().T
    means, n = pairs.mean(axis=1), pairs.shape[1]
    told = np.outer(means, means) - (stdtrit(n - 1, 0.975) ** 2 / n * np.cov(pairs) if n > 1 else np.inf)
    if told[1, 1] <= 0:
        return Interval(float(means[0] / means[1]), -np.inf, np.inf)
    centre, half = told[0, 1] / told[1, 1], np.sqrt(max(0.0, told[0, 1] ** 2 - told[0, 0] * told[1, 1])) / told[1, 1]
    return Interval(float(means[0] / means[1]), float(centre - half), float(centre + half))


def bootstrap(
    frame: pd.DataFrame,
    column: str,
    statistic: Statistic,
    settings: Sequence[Setting],
    contrast: Contrast = lambda values: values,
    **options: Any,
) -> Interval:
    """Return a contrast of the statistic under several settings, paired by `seed` and `request_id`; see `intervals`.

    A column `completed_share`, of the requests that a row's run was offered in its phase, tells how many are left out.
    Raises ValueError if no request is there under all settings, or a seed has several runs under one.
    """
    indexed = frame.astype({"request_id": int}).set_index(["seed", "request_id"])
    sides, names = [select(indexed, **setting) for setting in settings], [*map(dict, settings)]
    if any(side.index.has_duplicates for side in sides):
        raise ValueError(f"one of {names} selects several runs of a seed")
    paired = pd.concat([side[column] for side in sides], axis=1, join="inner", keys=range(len(sides)))
    if paired.empty:
        raise ValueError(f"no request was completed under all of {names}")
    offered = max(round((1 / side.get("completed_share", pd.Series(1.0, side.index))).sum()) for side in sides)
    runs = [requests.to_numpy(float).T for _, requests in paired.sort_index().groupby(level="seed")]
    [interval] = intervals(runs, lambda values: statistic(values)[None], contrast, **options)
    return replace(interval, left_out=1 - len(paired) / offered)


def relative_change(
    frame: pd.DataFrame, column: str, statistic: Statistic, treated: Setting, baseline: Setting, **options: Any
) -> Interval:
    """Return `statistic(treated) / statistic(baseline) - 1`; see `bootstrap`."""
    return bootstrap(frame, column, statistic, (treated, baseline), lambda t, b: t / b - 1, **options)


def intervals(
    runs: Sequence[np.ndarray], statistics: Statistic, contrast: Contrast, resamples=1000, block=50, confidence=0.95
) -> list[Interval]:
    """Return contrasts of several statistics of the same requests under several settings, as means over seeds.

    Two seeds or more give Student's interval, one a percentile bootstrap of `resampled_rows`, conditional on that run.
    `runs` has one array per seed, settings x requests in order of arrival.  `statistics` reduces the last axis and puts
    the statistics first.  `contrast` takes one such array per setting and returns what is compared.
    """
    estimates = [contrast(*(statistics(side) for side in values)) for values in runs]
    if len(runs) > 1:
        return [mean_interval(seeds, confidence) for seeds in np.transpose(estimates)]
    rows, tails = resampled_rows(runs[0].shape[1], resamples, block), [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.quantile(contrast(*(statistics(side[rows]) for side in runs[0])), tails, axis=-1)
    return [Interval(*map(float, ends), one_run=True) for ends in zip(estimates[0], low, high, strict=True)]


def resampled_rows(n: int, resamples: int, block: int) -> np.ndarray:
    """Return the rows of a run drawn anew in blocks of consecutive requests, resamples x n: neighbours share a queue.

    Each stretch of the run gives its own blocks in a circle (Politis and Romano, 1992), of at most a quarter of it.  So
    requests are drawn equally often, and a queue that grows from stretch to stretch is not taken for noise.  What lasts
    longer than a block, or differs between seeds, is not seen: of the paper's 2,000 requests under stress 90% to 98% of
    the intervals of one run hold the mean over seeds; of some hundred 80% or more, at P99 63% to 77%.
    """
    rng, drawn = np.random.default_rng(0), []
    for stretch in np.array_split(np.arange(n), np.clip(n // MIN_STRETCH, 1, MAX_STRETCHES)):
        length = max(1, min(block, len(stretch) // 4))
        starts = rng.integers(0, len(stretch), (resamples, -(-len(stretch) // length)))
        places = (starts[..., None] + np.arange(length)).reshape(resamples, -1)[:, : len(stretch)]
        drawn.append(stretch[places % len(stretch)])
    return np.hstack(drawn)
