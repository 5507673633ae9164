"""Where the gains of a policy come from: paired differences over seeds, from the summaries of many runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from driftsched_lib.comparison import Interval, mean_interval, select


def paired_change(
    summary: pd.DataFrame,
    column: str,
    treated: Mapping[str, Any],
    baseline: Mapping[str, Any],
    confidence: float = 0.95,
) -> Interval:
    """Mean over seeds of `treated / baseline - 1`, with Student's interval.

    Both sides of a seed served the same requests, and seeds are independent.

    Parameters:
        summary: a row a run, with `seed`; each setting selects one run a seed.

    Raises:
        ValueError: a setting that does not select one run a seed.
    """
    sides = [select(summary, **setting).set_index("seed")[column] for setting in (treated, baseline)]
    for setting, side in zip((treated, baseline), sides, strict=True):
        if side.empty or side.index.has_duplicates:
            raise ValueError(f"{dict(setting)} selects {len(side)} runs of {side.index.nunique()} seeds")
    return mean_interval((sides[0] / sides[1] - 1).dropna(), confidence)


def changes(
    summary: pd.DataFrame,
    baseline: Mapping[str, Any],
    settings: Mapping[str, Mapping[str, Any]],
    columns: Sequence[str],
) -> pd.DataFrame:
    """`paired_change` of every setting, by name, and column: a row each, with `change`, `low` and `high`."""
    rows = []
    for name, setting in settings.items():
        for column in columns:
            change = paired_change(summary, column, setting, baseline)
            rows.append((name, column, change.estimate, change.low, change.high))
    return pd.DataFrame(rows, columns=["setting", "column", "change", "low", "high"])


def share_of_gap(
    summary: pd.DataFrame,
    column: str,
    setting: Mapping[str, Any],
    baseline: Mapping[str, Any],
    bound: Mapping[str, Any],
    confidence: float = 0.95,
) -> Interval:
    """How much of the mean difference between `baseline` and `bound` a setting makes good, with a bootstrap interval.

    Parameters:
        summary: a row a run, with `seed`; each setting selects one run a seed.
    """
    base, middle, best = (
        select(summary, **side).set_index("seed")[column].sort_index() for side in (baseline, setting, bound)
    )
    gained, gap = (base - middle).to_numpy(), (base - best).to_numpy()
    seeds = np.random.default_rng(0).integers(0, len(gap), (2000, len(gap)))
    low, high = np.quantile(
        gained[seeds].mean(axis=1) / gap[seeds].mean(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2]
    )
    return Interval(float(gained.mean() / gap.mean()), float(low), float(high))


def longest_waits(requests: pd.DataFrame) -> pd.DataFrame:
    """Longest wait in the queue (s), a row a run and category.

    Parameters:
        requests: of `results.load`.
    """
    done = requests[requests.outcome == "completed"]
    waits = (done.dispatch_s - done.arrival_s).astype(float)
    by = ["batching", "policy", "estimator", "seed", "category"]
    return waits.groupby([done[column] for column in by], sort=False).max().rename("longest_wait_s").reset_index()
