"""The statistics of all studies: estimates with intervals, changes paired by seed or by request.

Intervals over seeds, which are independent, are Student's from two seeds on.  One run alone is resampled, from a fixed
generator, and its interval says so.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

MAX_STRETCHES, MIN_STRETCH = 8, 100  # parts of a run that are resampled each by itself; requests of one
Statistic = Callable[[np.ndarray], np.ndarray]
Setting = Mapping[str, Any]  # values of columns, which together select rows


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval.

    Attributes:
        one_run: the interval is conditional on one run, so it says little of other seeds.
        left_out: share of the requests that are in no comparison, as they were not completed under all settings.
    """

    estimate: float
    low: float
    high: float
    one_run: bool = False
    left_out: float = 0.0

    def __format__(self, spec: str) -> str:
        text = f"{self.estimate:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"
        return f"{text} ({note})" if (note := notes([self])) else text


def notes(intervals: Collection[Interval]) -> str:
    """Return what a reader of some intervals has to know: the run they are conditional on, the requests left out."""
    said = ["conditional on one run"] if any(interval.one_run for interval in intervals) else []
    if left_out := max((interval.left_out for interval in intervals), default=0.0):
        most = "up to " if len(intervals) > 1 else ""
        said.append(f"{most}{left_out:.1%} of requests left out: not completed on all sides")
    return "; ".join(said)


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
    half = stdtrit(n - 1, (1 + confidence) / 2) * values.std(ddof=1) / np.sqrt(n) if n > 1 else np.inf
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
    """Return `differences_at_once` from the column with the best mean, the best first; 0 or less is as good as it.

    The values choose that column, so the intervals hold at once for all pairs of columns.
    """
    costs = -values if larger_is_better else values
    costs = costs[costs.mean().sort_values(kind="stable").index]
    return differences_at_once(costs, costs.iloc[:, 0], comparisons=len(costs.columns) * (len(costs.columns) - 1) // 2)


def differences_at_once(values: pd.DataFrame, reference: pd.Series, comparisons: int | None = None) -> pd.Series:
    """Return each column's mean difference over seeds from a reference; all intervals hold at once (Bonferroni).

    Of one column the reference is a copy, which needs no comparison.
    """
    confidence = 1 - 0.05 / max(1, len(values.columns) - 1 if comparisons is None else comparisons)
    differences = values.sub(reference, axis=0)
    return pd.Series([mean_interval(differences[column].dropna(), confidence) for column in values], values.columns)


def share_of_gap(summary: pd.DataFrame, column: str, setting: Setting, baseline: Setting, bound: Setting) -> Interval:
    """Return how much of the mean difference between `baseline` and `bound` a setting closes; see `by_seed`.

    The interval is Fieller's (1954): all shares at which Student's test cannot tell the mean over seeds of what is
    closed, less the share of the gap, from 0.  So it holds for few seeds and small gaps, where the delta method's does
    not, and it is infinite where the gap itself cannot be told from 0.
    """
    base, middle, best = (by_seed(summary, column, side) for side in (baseline, setting, bound))
    pairs = pd.concat([base - middle, base - best], axis=1).dropna().to_numpy().T
    (closed, gap), n, half, centre = pairs.mean(axis=1), pairs.shape[1], np.inf, 0.0
    if n > 1:
        ends = np.outer((closed, gap), (closed, gap)) - stdtrit(n - 1, 0.975) ** 2 / n * np.cov(pairs)
        if ends[1, 1] > 0:
            centre = ends[0, 1] / ends[1, 1]
            half = np.sqrt(max(0.0, centre**2 - ends[0, 0] / ends[1, 1]))
    return Interval(float(closed / gap), float(centre - half), float(centre + half))


def bootstrap(
    frame: pd.DataFrame,
    column: str,
    statistic: Statistic,
    settings: Sequence[Setting],
    contrast: Callable[..., np.ndarray] = lambda values: values,
    **options: Any,
) -> Interval:
    """Return a contrast of the statistic under several settings, paired by `seed` and `request_id`; see `intervals`.

    A column `completed_share`, of the requests that a row's run was offered in its phase, tells how many are left out.
    Raises ValueError if no request is there under all settings, or a seed has several runs under one.
    """
    sides = [select(frame, **setting).set_index(["seed", "request_id"]) for setting in settings]
    if any(side.index.has_duplicates for side in sides):
        raise ValueError(f"some of {[dict(setting) for setting in settings]} selects several runs of a seed")
    paired = pd.concat([side[column] for side in sides], axis=1, join="inner", keys=range(len(sides))).astype(float)
    if paired.empty:
        raise ValueError(f"no request was completed under all of {[dict(setting) for setting in settings]}")
    offered = max(round((1 / side.get("completed_share", side[column] * 0 + 1)).sum()) for side in sides)
    runs = []
    for _, requests in paired.groupby(level="seed"):
        order = requests.index.get_level_values("request_id").astype(int).argsort()
        runs.append(requests.to_numpy()[order].T)
    [interval] = intervals(runs, lambda values: statistic(values)[None], contrast, **options)
    return replace(interval, left_out=1 - len(paired) / offered)


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

    Two seeds or more give Student's interval.  One gives a percentile bootstrap of `resampled_rows`, the same rows for
    all settings, which is conditional on that run.

    Parameters:
        runs: one array per seed, settings x requests, in order of arrival.
        statistics: reduces the last axis of its argument; the first axis of its result holds the statistics.
        contrast: from one array of statistics per setting to the array that is compared.
    """
    estimates = [contrast(*(statistics(side) for side in values)) for values in runs]
    if len(runs) > 1:
        return [mean_interval(seeds, confidence) for seeds in np.transpose(estimates)]
    rows = resampled_rows(runs[0].shape[1], resamples, block)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
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
