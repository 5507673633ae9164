"""From records to what is compared: latency, throughput, fairness, estimation error, job classes.

Times in seconds, lengths in tokens; a frame has the columns of `requests.parquet`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

JOB_CLASSES = ("short", "medium", "long")
NAMES = ("phase", "tenant", "tier", "category", "outcome")
NUMBERS = ("arrival_s", "dispatch_s", "first_token_s", "finish_s", "prompt_tokens", "output_tokens", "max_tokens")
NUMBERS += ("longest_itl_s", "input_tokens", "actual_tokens", "estimated_tokens", "estimated_total_tokens")


def plain(requests: pd.DataFrame) -> pd.DataFrame:
    """The columns that measures are of, as plain floats and objects, in which pandas is several times as fast."""
    return pd.concat([_block(requests, NAMES, object), _block(requests, NUMBERS, float)], axis=1)


def _block(requests: pd.DataFrame, names: Sequence[str], kind: type) -> pd.DataFrame:
    missing = np.full(len(requests), np.nan)  # of older results, some lack a column
    columns = [requests[name].to_numpy(kind) if name in requests else missing for name in names]
    return pd.DataFrame(np.column_stack(columns), requests.index, list(names), dtype=kind)


def latencies(requests: pd.DataFrame, idle_ttft_s: float, idle_tpot_s: float) -> pd.DataFrame:
    """The completed requests, with what each waited and took.

    Adds `queue_wait_s` (arrival to dispatch), `ttft_s` (arrival to the engine's first token), `e2e_s` (arrival to
    finish), `tpot_s` (per output token after the first) and `slowdown` (E2E over that of the same request on an idle
    engine, which takes `idle_ttft_s` for its first token and `idle_tpot_s` for each one after).
    """
    done = requests[requests.outcome == "completed"]
    idle_e2e_s = idle_ttft_s + (done.output_tokens - 1) * idle_tpot_s
    e2e_s = done.finish_s - done.arrival_s
    return done.assign(
        queue_wait_s=done.dispatch_s - done.arrival_s,
        ttft_s=done.first_token_s - done.arrival_s,
        e2e_s=e2e_s,
        tpot_s=(done.finish_s - done.first_token_s) / (done.output_tokens - 1).clip(lower=1),
        slowdown=e2e_s / idle_e2e_s,
    )


def latency_table(done: pd.DataFrame, by: Sequence[str] = ("batching", "policy")) -> pd.DataFrame:
    """P50, P95 and P99 of E2E, TTFT, queue wait (s) and slowdown, a row a group; the mean over seeds.

    Parameters:
        done: from `latencies`, with `seed` and the columns `by`.
    """
    columns = {"e2e_s": "E2E (s)", "ttft_s": "TTFT (s)", "queue_wait_s": "queue wait (s)", "slowdown": "slowdown"}
    quantiles = done.groupby([*by, "seed"], sort=False)[list(columns)].quantile([0.50, 0.95, 0.99])
    levels = [*range(len(by)), len(by) + 1]  # all but the seed
    table = quantiles.groupby(level=levels, sort=False).mean().unstack()
    return table.rename(columns=columns | {0.50: "P50", 0.95: "P95", 0.99: "P99"})


def jain_index(values: Sequence[float]) -> float:
    """Jain's fairness index, 1 for equal shares, 1 / n for one that has all (Jain, Chiu and Hawe, 1984)."""
    x = np.asarray(values, dtype=float)
    return float(x.sum() ** 2 / (len(x) * (x**2).sum()))


def tenant_fairness(requests: pd.DataFrame, weights: Mapping[str, float] | None = None) -> float:
    """Jain index over tenants of the output tokens served by the last arrival, over each one's fair share of them.

    A run that drains gives every tenant all it asked for, so what was served while requests still came tells policies
    apart.  The fair shares are max-min: equal per weight, but to none more than it asked for, which is a request's
    limit where it was not completed (Jain, Chiu and Hawe's index of allocations over fair allocations).  Taken phase
    by phase and averaged with what was served as weights.

    Parameters:
        weights: by tier; None for the same for all.
    """
    indices, sizes = [], []
    for _, phase in requests.groupby("phase"):
        tenant, _ = pd.factorize(phase.tenant)
        first, finish = phase.first_token_s.to_numpy(float), phase.finish_s.to_numpy(float)
        done = np.clip((phase.arrival_s.max() - first) / np.maximum(finish - first, 1e-9), 0, 1)
        asked = phase.output_tokens.astype(float).fillna(phase.max_tokens.astype(float)).to_numpy()
        served = np.bincount(tenant, np.where(phase.outcome == "completed", asked * done, 0.0))
        weight = np.ones(len(phase)) if weights is None else phase.tier.map(weights).to_numpy(float)
        if served.sum() > 0:
            mean_weight = np.bincount(tenant, weight) / np.bincount(tenant)
            fair = max_min_shares(served.sum(), np.bincount(tenant, asked), mean_weight)
            indices.append(jain_index(served / fair))
            sizes.append(served.sum())
    return float(np.average(indices, weights=sizes)) if indices else float("nan")


def max_min_shares(total: float, demands: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What each is given of a total, equal per weight, but to none more than it asks for."""
    shares, left = np.empty(len(demands)), weights.sum()
    for i in np.argsort(demands / weights, kind="stable"):
        shares[i] = min(demands[i], total * weights[i] / left)
        total, left = total - shares[i], left - weights[i]
    return shares


def busy_s(requests: pd.DataFrame) -> float:
    """Seconds in which at least one of the requests was in the system, NaN where that is none."""
    if requests.empty:
        return float("nan")
    spans = requests[["arrival_s", "finish_s"]].astype(float).sort_values("arrival_s").to_numpy()
    ends = np.maximum.accumulate(spans[:, 1])
    gaps = spans[1:, 0] - ends[:-1]
    return float(ends[-1] - spans[0, 0] - gaps[gaps > 0].sum()) or float("nan")


def estimation_errors(requests: pd.DataFrame) -> pd.Series:
    """Estimated minus actual output length of the completed requests, in the run's token accounting."""
    done = requests[requests.outcome == "completed"]
    return (done.estimated_tokens - done.actual_tokens).astype(float)


def job_class(total_tokens: pd.Series, bounds: Sequence[int]) -> pd.Series:
    """short <= bounds[0] < medium <= bounds[1] < long."""
    return pd.cut(total_tokens.astype(float), [-np.inf, *bounds, np.inf], labels=JOB_CLASSES)


def job_classes(requests: pd.DataFrame, bounds: Sequence[int]) -> pd.DataFrame:
    """Completed requests in order of arrival with two ways in which their job class can be unsteady.

    `flip`: the class differs from that of the preceding request of the same category and tier.  `misjudged`: the class
    by the estimate differs from the class by what the request came to.
    """
    done = requests[requests.outcome == "completed"].sort_values("arrival_s")
    estimated = job_class(done.estimated_total_tokens, bounds).astype(str)
    actual = job_class(done.input_tokens + done.actual_tokens, bounds).astype(str)
    before = estimated.groupby([done.category, done.tier]).shift()
    return done.assign(
        job_class=estimated,
        flip=(estimated != before) & before.notna(),
        misjudged=estimated != actual,
    )


def summarize(
    requests: pd.DataFrame, idle_ttft_s: float, idle_tpot_s: float, job_class_bounds: Sequence[int]
) -> dict[str, float]:
    """The row of `summary.csv` that a run gives; what cannot be computed is NaN.

    Among it the mean time between two tokens and, where each token's time is known, the 99th percentile over requests
    of the longest.
    """
    requests = plain(requests)
    outcomes = requests.outcome.value_counts()
    done = latencies(requests, idle_ttft_s, idle_tpot_s)
    row: dict[str, float] = {
        "requests": len(requests),
        **{name: int(outcomes.get(name, 0)) for name in ("completed", "rejected", "expired", "cancelled", "failed")},
    }
    p50, p95, p99 = done[["e2e_s", "ttft_s", "slowdown", "longest_itl_s"]].quantile([0.50, 0.95, 0.99]).itertuples()
    row |= {"p50_e2e_s": p50.e2e_s, "p95_e2e_s": p95.e2e_s, "p99_e2e_s": p99.e2e_s, "mean_e2e_s": done.e2e_s.mean()}
    row |= {"p50_ttft_s": p50.ttft_s, "p99_ttft_s": p99.ttft_s}
    row["mean_itl_s"] = done.tpot_s[done.output_tokens > 1].mean()
    row["p99_longest_itl_s"] = p99.longest_itl_s
    row |= {"mean_queue_wait_s": done.queue_wait_s.mean(), "max_queue_wait_s": done.queue_wait_s.max()}
    row |= {"p50_slowdown": p50.slowdown, "p99_slowdown": p99.slowdown}
    row["output_tokens_per_s"] = done.output_tokens.sum() / busy_s(done)
    errors = estimation_errors(requests)
    row["mae_tokens"] = errors.abs().mean()
    row["rmse_tokens"] = float(np.sqrt((errors**2).mean()))
    row["mean_error_tokens"] = errors.mean()
    classes = job_classes(requests, job_class_bounds)
    row["job_class_flips"] = int(classes.flip.sum())
    row["job_class_misjudged"] = int(classes.misjudged.sum())
    row["jain_index"] = tenant_fairness(requests)
    return row
