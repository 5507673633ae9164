"""What tiers and tenants got: objectives met, goodput, longest waits, and how far their service lies apart over time.

Times in seconds, lengths in tokens; a frame has the columns of `requests.parquet`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from driftsched_lib.experiments.metrics import busy_s


def slo_attainment(
    requests: pd.DataFrame,
    ttft_slo_s: Mapping[str, float],
    e2e_slo_s: Mapping[str, float],
    by: Sequence[str] = ("tier",),
) -> pd.DataFrame:
    """Shares of the requests that met their tier's objectives, a row a group.

    `ttft_met`, `e2e_met` and `met`, which is both, count every submitted request: one that was rejected, expired or
    failed met none.  `goodput_per_s` is the number that met both over the seconds in which any request was there.

    Parameters:
        ttft_slo_s, e2e_slo_s: seconds from the arrival to the first and to the last token, by tier.
        by: columns whose values make a group; none for all requests in one row.
    """
    done = requests.outcome == "completed"
    ttft_met = done & (requests.first_token_s - requests.arrival_s <= requests.tier.map(ttft_slo_s))
    e2e_met = done & (requests.finish_s - requests.arrival_s <= requests.tier.map(e2e_slo_s))
    met = pd.DataFrame({"ttft_met": ttft_met, "e2e_met": e2e_met, "met": ttft_met & e2e_met}).astype(float)
    groups = met.groupby([requests[column] for column in by] if by else np.zeros(len(requests)), sort=False)
    table = groups.mean()
    table.insert(0, "requests", groups.size())
    table["goodput_per_s"] = groups.met.sum() / busy_s(requests)
    return table


def longest_waits(requests: pd.DataFrame, by: Sequence[str] = ("tier", "tenant")) -> pd.Series:
    """Longest seconds from arrival to dispatch, or to the end of a request that was never dispatched, by group."""
    waits = (requests.dispatch_s.astype(float).fillna(requests.finish_s) - requests.arrival_s).astype(float)
    return waits.groupby([requests[column] for column in by], sort=False).max().rename("longest_wait_s")


def service_over_time(
    requests: pd.DataFrame,
    times_s: Sequence[float],
    weights: Mapping[str, float] | None = None,
    input_price: float = 1.0,
    output_price: float = 2.0,
) -> pd.DataFrame:
    """What each tenant has had up to each time, as VTC counts it: priced tokens, a column a tenant.

    The input of a completed request counts at its first token, the output evenly from there to its end.

    Parameters:
        weights: shares by tier, over which the service is divided; None for the service itself.
    """
    times = np.asarray(times_s, dtype=float)
    done = requests[requests.outcome == "completed"]
    first, finish = done.first_token_s.to_numpy(float), done.finish_s.to_numpy(float)
    weight = 1.0 if weights is None else done.tier.map(weights).to_numpy(float)
    prompts = input_price * done.prompt_tokens.to_numpy(float) / weight
    outputs = output_price * done.output_tokens.to_numpy(float) / weight
    service = {}
    for tenant, rows in sorted(done.groupby("tenant").indices.items()):
        begun = (times[:, None] >= first[rows]) * prompts[rows]
        share = np.clip((times[:, None] - first[rows]) / np.maximum(finish[rows] - first[rows], 1e-9), 0.0, 1.0)
        service[tenant] = (begun + share * outputs[rows]).sum(axis=1)
    return pd.DataFrame(service, index=pd.Index(times, name="time_s"))


def service_difference(
    requests: pd.DataFrame, interval_s: float, weights: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """How far apart the service of backlogged tenants lay, interval by interval (VTC's measure of fairness).

    Of the tenants that had a request queued all through an interval, the largest less the smallest service in it: the
    `difference`, NaN for fewer than two of these `backlogged` tenants.

    Parameters:
        weights: see `service_over_time`.

    Raises:
        ValueError: an interval that is not above 0.
    """
    if not interval_s > 0:
        raise ValueError(f"interval_s is {interval_s}, it must be above 0")
    times = np.arange(requests.arrival_s.min(), requests.finish_s.max() + interval_s, interval_s)
    gained = service_over_time(requests, times, weights).diff().iloc[1:]
    starts = requests.arrival_s.to_numpy(float)
    ends = requests.dispatch_s.astype(float).fillna(requests.finish_s).to_numpy(float)
    of_tenant = requests.groupby("tenant").indices
    queued = {
        tenant: _queued_throughout(starts[of_tenant[tenant]], ends[of_tenant[tenant]], times) for tenant in gained
    }
    backlogged = pd.DataFrame(queued, index=gained.index)
    gained = gained.where(backlogged)
    several = backlogged.sum(axis=1) >= 2
    return pd.DataFrame(
        {"difference": (gained.max(axis=1) - gained.min(axis=1)).where(several), "backlogged": backlogged.sum(axis=1)}
    )


def _queued_throughout(starts: np.ndarray, ends: np.ndarray, times: np.ndarray) -> np.ndarray:
    """For each interval between two times, whether one of the waits or another lasted at every moment."""
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    first = np.flatnonzero(np.append(True, starts[1:] > ends[:-1]))  # of each stretch without a gap
    starts, ends = starts[first], ends[np.append(first[1:] - 1, len(ends) - 1)]
    stretch = np.searchsorted(starts, times[:-1], side="right") - 1
    return (stretch >= 0) & (times[1:] <= ends[stretch])
