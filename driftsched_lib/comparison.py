"""Paired differences between settings that served the same requests, with bootstrap intervals."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

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


def relative_change(
    frame: pd.DataFrame,
    column: str,
    statistic: Statistic,
    treated: Mapping[str, Any],
    baseline: Mapping[str, Any],
    resamples: int = 1000,
    block: int = 50,
    confidence: float = 0.95,
) -> Interval:
    """`statistic(treated) / statistic(baseline) - 1`, paired by seed and request, averaged over seeds.

    The interval is a percentile bootstrap on two levels: seeds, and within a seed the same blocks of consecutive
    requests on both sides, for neighbours in arrival share the queue they met (Künsch, 1989).

    Parameters:
        frame: a row a request, with `seed`, `request_id` and `column`.
        treated, baseline: column values that select the two settings.
        block: requests a block, at most a tenth of a run.

    Raises:
        ValueError: no request was completed under both settings.
    """
    rng = np.random.default_rng(0)
    changes, resampled = [], []
    sides = [select(frame, **setting).set_index(["seed", "request_id"])[column] for setting in (treated, baseline)]
    pairs = pd.concat(sides, axis=1, join="inner", keys=("treated", "baseline")).astype(float)
    if pairs.empty:
        raise ValueError(f"no request was completed both with {dict(treated)} and with {dict(baseline)}")
    for _, pair in pairs.groupby(level="seed"):
        pair = pair.iloc[pair.index.get_level_values("request_id").astype(int).argsort()]
        values = pair.to_numpy().T
        changes.append(float(np.divide(*statistic(values)) - 1))
        n = values.shape[1]
        length = max(1, min(block, n // 10))
        starts = rng.integers(0, n - length + 1, (resamples, -(-n // length)))
        rows = (starts[..., None] + np.arange(length)).reshape(resamples, -1)[:, :n]
        resampled.append(statistic(values[0][rows]) / statistic(values[1][rows]) - 1)
    seeds = rng.integers(0, len(changes), (resamples, len(changes)))
    draws = rng.integers(0, resamples, (resamples, len(changes)))
    means = np.array(resampled)[seeds, draws].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(np.mean(changes)), float(low), float(high))
