"""Where the gains of a policy come from: paired differences over seeds, from the summaries of many runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from driftsched_lib.studies.compare import Interval, mean_interval, select


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


def tails(requests: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """P99 E2E and longest wait in the queue (s), a row a run and group: `p99_e2e_s`, `longest_wait_s`.

    Parameters:
        requests: of `results.load`.
        by: columns, as `category` and `tier`.
    """
    done = requests[requests.outcome == "completed"]
    times = done.assign(p99_e2e_s=done.finish_s - done.arrival_s, longest_wait_s=done.dispatch_s - done.arrival_s)
    groups = times.groupby(["batching", "policy", "estimator", "rate", "seed", *by], sort=False)
    worst = {"p99_e2e_s": lambda values: values.quantile(0.99), "longest_wait_s": "max"}
    return groups[list(worst)].agg(worst).astype(float).reset_index()


def changes_by(
    groups: pd.DataFrame,
    by: Sequence[str],
    treated: Mapping[str, Any],
    baseline: Mapping[str, Any],
    columns: Sequence[str],
) -> pd.DataFrame:
    """`paired_change` as text in each group, a row a group and a column a measure.

    Parameters:
        groups: of `tails`.
    """
    texts = {
        key: {column: f"{paired_change(group, column, treated, baseline):+.0%}" for column in columns}
        for key, group in groups.groupby(list(by), sort=False)
    }
    return pd.DataFrame.from_dict(texts, orient="index").rename_axis(list(by))
