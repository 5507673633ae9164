"""Measures of one run: latency, throughput, objectives, fairness, estimation error, job classes.

Times in seconds, lengths in tokens; a frame has the columns of `requests.parquet`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from driftsched_lib.requests import Outcome, Tiers
from driftsched_lib.validation import positive

JOB_CLASSES = ("short", "medium", "long")
Weights = Mapping[str, float] | None  # by tier; None for equal ones
KINDS: dict[str, type] = dict.fromkeys(("phase", "tenant", "tier", "category", "outcome"), object)
KINDS |= dict.fromkeys(("arrival_s", "dispatch_s", "first_token_s", "finish_s", "longest_itl_s"), float)
KINDS |= dict.fromkeys(("prompt_tokens", "output_tokens", "max_tokens", "input_tokens", "actual_tokens"), float)
KINDS |= dict.fromkeys(("estimated_tokens", "estimated_total_tokens", "engine_first_token_s"), float)


def plain(requests: pd.DataFrame) -> pd.DataFrame:
    """Return the columns that measures read, as plain floats and objects: pandas is several times as fast on these."""
    return requests.assign(engine_first_token_s=_engine_first_token_s).reindex(columns=list(KINDS)).astype(KINDS)


def _engine_first_token_s(requests: pd.DataFrame) -> pd.Series:
    """Return when the engine made the first tokens; without this column, clients got them as they were made."""
    return requests.get("engine_first_token_s", requests.first_token_s)


def latencies(requests: pd.DataFrame, idle_ttft_s: float, idle_tpot_s: float) -> pd.DataFrame:
    """Return the completed requests with `queue_wait_s`, `ttft_s`, `e2e_s`, `tpot_s` and `slowdown`.

    The first three count from arrival to dispatch, first token and finish, as the client sees them; `tpot_s` is per
    output token after the engine's first.  `slowdown` is E2E over the E2E of the same request on an idle engine, which
    takes `idle_ttft_s` for its first token and `idle_tpot_s` for each later one.
    """
    done = requests[requests.outcome == "completed"]
    later, e2e_s = done.output_tokens - 1, done.finish_s - done.arrival_s
    return done.assign(
        queue_wait_s=done.dispatch_s - done.arrival_s,
        ttft_s=done.first_token_s - done.arrival_s,
        e2e_s=e2e_s,
        tpot_s=(done.finish_s - _engine_first_token_s(done)) / later.clip(lower=1),
        slowdown=e2e_s / (idle_ttft_s + later * idle_tpot_s),
    )


def latency_table(done: pd.DataFrame, by: Sequence[str] = ("batching", "policy")) -> pd.DataFrame:
    """Return P50, P95 and P99 of `latencies`, one row per group, as means over seeds; NaN if a seed completed none."""
    columns = {"e2e_s": "E2E (s)", "ttft_s": "TTFT (s)", "queue_wait_s": "queue wait (s)", "slowdown": "slowdown"}
    quantiles = done.groupby([*by, "seed"], sort=False)[list(columns)].quantile([0.50, 0.95, 0.99])
    seeds = quantiles.groupby(level=[*by, -1], sort=False)
    table = seeds.mean().where(seeds.count() == done.seed.nunique()).unstack()
    return table.rename(columns=columns | {0.50: "P50", 0.95: "P95", 0.99: "P99"})


def tails(requests: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return `p99_e2e_s`, NaN if none is completed, and `longest_wait_s` of all, one row per run and group of `by`."""
    e2e_s = (requests.finish_s - requests.arrival_s).where(requests.outcome == "completed")
    times = requests.assign(p99_e2e_s=e2e_s, longest_wait_s=queue_waits(requests))
    groups = times.groupby(["batching", "policy", "estimator", "rate", "seed", *by], sort=False)
    worst = {"p99_e2e_s": lambda values: values.quantile(0.99), "longest_wait_s": "max"}
    return groups[list(worst)].agg(worst).astype(float).reset_index()


def queue_waits(requests: pd.DataFrame) -> pd.Series:
    """Return the time from arrival to dispatch, or to the end of a request that was never dispatched."""
    return (requests.dispatch_s.astype(float).fillna(requests.finish_s) - requests.arrival_s).astype(float)


def met_slos(requests: pd.DataFrame, tiers: Tiers) -> pd.Series:
    """Return whether each request was completed within both objectives of its tier."""
    met = requests.outcome == "completed"
    for end, slo in (("first_token_s", "ttft_slo_s"), ("finish_s", "e2e_slo_s")):
        slos = {name: getattr(tier, slo) for name, tier in tiers.items()}
        met &= requests[end] - requests.arrival_s <= requests.tier.map(slos)
    return met


def jain_index(values: Sequence[float]) -> float:
    """Return Jain's fairness index: 1 for equal shares, 1 / n if one has all (Jain, Chiu and Hawe, 1984)."""
    x = np.asarray(values, dtype=float)
    return float(x.sum() ** 2 / (len(x) * (x**2).sum()))


def tenant_fairness(requests: pd.DataFrame, weights: Weights = None) -> float:
    """Return Jain's index over tenants of their output tokens by the last arrival over their fair shares of them.

    Only what is served while requests still arrive tells policies apart: a run that drains gives every tenant all that
    it asked for.  Fair shares are max-min per weight; a request that was not completed asked for its limit.  Phases are
    averaged with their served tokens as weights.
    """
    indices, sizes = [], []
    for _, phase in requests.groupby("phase"):
        tenant, _ = pd.factorize(phase.tenant)
        first, finish = _engine_first_token_s(phase).to_numpy(float), phase.finish_s.to_numpy(float)
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
    """Return max-min fair shares of a total: equal per weight, but none above its demand."""
    shares, left = np.empty(len(demands)), weights.sum()
    for i in np.argsort(demands / weights, kind="stable"):
        shares[i] = min(demands[i], total * weights[i] / left)
        total, left = total - shares[i], left - weights[i]
    return shares


def service_over_time(requests: pd.DataFrame, times_s: Sequence[float], weights: Weights = None) -> pd.DataFrame:
    """Return each tenant's service up to each time in VTC's priced tokens, over weights: a column per tenant.

    The input of a completed request counts once, at the engine's first token; the output twice, evenly from there on.
    """
    times, completed = np.asarray(times_s, dtype=float), (requests.outcome == "completed").to_numpy()
    first, finish = _engine_first_token_s(requests).to_numpy(float), requests.finish_s.to_numpy(float)
    weight = 1.0 if weights is None else requests.tier.map(weights).to_numpy(float)
    prompts = requests.prompt_tokens.to_numpy(float) / weight
    outputs = 2.0 * requests.output_tokens.to_numpy(float) / weight
    service = {}
    for tenant, rows in sorted(requests.groupby("tenant").indices.items()):
        rows = rows[completed[rows]]
        begun = (times[:, None] >= first[rows]) * prompts[rows]
        share = np.clip((times[:, None] - first[rows]) / np.maximum(finish[rows] - first[rows], 1e-9), 0.0, 1.0)
        service[tenant] = (begun + share * outputs[rows]).sum(axis=1)
    return pd.DataFrame(service, index=pd.Index(times, name="time_s"))


def service_difference(requests: pd.DataFrame, interval_s: float, weights: Weights = None) -> pd.DataFrame:
    """Return VTC's measure of unfairness: how far apart the service of backlogged tenants lies, per interval.

    `backlogged` counts the tenants that had a request queued all through the interval; `difference` is the largest less
    the smallest service among them, NaN for fewer than two.  Raises ValueError if the interval is not above 0.
    """
    positive("interval_s", interval_s)
    times = np.arange(requests.arrival_s.min(), requests.finish_s.max() + interval_s, interval_s)
    gained = service_over_time(requests, times, weights).diff().iloc[1:]
    waits = np.stack([requests.arrival_s, requests.dispatch_s.astype(float).fillna(requests.finish_s)]).astype(float)
    rows = requests.groupby("tenant").indices
    queued = {tenant: _queued_throughout(*waits[:, rows[tenant]], times) for tenant in gained}
    backlogged = pd.DataFrame(queued, index=gained.index)
    gained, count = gained.where(backlogged), backlogged.sum(axis=1)
    difference = (gained.max(axis=1) - gained.min(axis=1)).where(count >= 2)
    return pd.DataFrame({"difference": difference, "backlogged": count})


def _queued_throughout(starts: np.ndarray, ends: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return, for each interval between two times, whether some wait lasted at every moment of it."""
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    first = np.flatnonzero(np.append(True, starts[1:] > ends[:-1]))  # of each stretch without a gap
    starts, ends = starts[first], ends[np.append(first[1:] - 1, len(ends) - 1)]
    stretch = np.searchsorted(starts, times[:-1], side="right") - 1
    return (stretch >= 0) & (times[1:] <= ends[stretch])


def busy_s(requests: pd.DataFrame) -> float:
    """Return the seconds in which at least one of the requests was in the system; NaN for none."""
    spans = requests[["arrival_s", "finish_s"]].astype(float).sort_values("arrival_s").to_numpy()
    if not len(spans):
        return float("nan")
    ends = np.maximum.accumulate(spans[:, 1])
    gaps = spans[1:, 0] - ends[:-1]
    return float(ends[-1] - spans[0, 0] - gaps[gaps > 0].sum()) or float("nan")


def throughput(requests: pd.DataFrame) -> float:
    """Return output tokens per second while anything was in the system, averaged over runs (column `run`)."""
    return float(np.mean([run.output_tokens.sum() / busy_s(run) for _, run in requests.groupby("run")]))


def barrier_waste(requests: pd.DataFrame) -> float:
    """Return the share of the slots of static batches that wait, finished, for the longest of their batch."""
    batches = requests.groupby(["run", "phase", "batch_id"]).output_tokens
    return float(1 - requests.output_tokens.sum() / (batches.size() * batches.max()).sum())


def estimation_errors(requests: pd.DataFrame) -> pd.Series:
    """Return estimated minus actual output length of the completed requests, in the run's token accounting."""
    done = requests[requests.outcome == "completed"]
    return (done.estimated_tokens - done.actual_tokens).astype(float)


def job_classes(requests: pd.DataFrame, bounds: Sequence[int]) -> pd.DataFrame:
    """Return the completed requests in order of arrival with `job_class`, `flip` and `misjudged`.

    Classes by estimated total: short <= bounds[0] < medium <= bounds[1] < long.  `flip`: the class differs from that of
    the previous request of the same category and tier.  `misjudged`: it differs from the class by the actual total.
    """
    done = requests[requests.outcome == "completed"].sort_values("arrival_s")
    totals, edges = (done.estimated_total_tokens, done.input_tokens + done.actual_tokens), [-np.inf, *bounds, np.inf]
    estimated, actual = (pd.cut(total.astype(float), edges, labels=JOB_CLASSES).astype(str) for total in totals)
    before = estimated.groupby([done.category, done.tier]).shift()
    return done.assign(job_class=estimated, flip=(estimated != before) & before.notna(), misjudged=estimated != actual)


def summarize(
    requests: pd.DataFrame, idle_ttft_s: float, idle_tpot_s: float, job_class_bounds: Sequence[int]
) -> dict[str, float]:
    """Return a run's row of `summary.csv`: times and errors of completed requests, NaN where they cannot be told."""
    requests = plain(requests)
    outcomes, errors = requests.outcome.value_counts(), estimation_errors(requests)
    done, classes = latencies(requests, idle_ttft_s, idle_tpot_s), job_classes(requests, job_class_bounds)
    p50, p95, p99 = done[["e2e_s", "ttft_s", "slowdown", "longest_itl_s"]].quantile([0.50, 0.95, 0.99]).itertuples()
    row = {"requests": len(requests)} | {name.value: int(outcomes.get(name, 0)) for name in Outcome}
    row |= {"p50_e2e_s": p50.e2e_s, "p95_e2e_s": p95.e2e_s, "p99_e2e_s": p99.e2e_s, "mean_e2e_s": done.e2e_s.mean()}
    row |= {"p50_ttft_s": p50.ttft_s, "p99_ttft_s": p99.ttft_s}
    row |= {"mean_itl_s": done.tpot_s[done.output_tokens > 1].mean(), "p99_longest_itl_s": p99.longest_itl_s}
    row |= {"mean_queue_wait_s": done.queue_wait_s.mean(), "max_queue_wait_s": done.queue_wait_s.max()}
    row |= {"p50_slowdown": p50.slowdown, "p99_slowdown": p99.slowdown}
    row |= {"output_tokens_per_s": done.output_tokens.sum() / busy_s(done), "mae_tokens": errors.abs().mean()}
    row |= {"rmse_tokens": float(np.sqrt((errors**2).mean())), "mean_error_tokens": errors.mean()}
    row |= {"job_class_flips": int(classes.flip.sum()), "job_class_misjudged": int(classes.misjudged.sum())}
    return row | {"jain_index": tenant_fairness(requests)}
