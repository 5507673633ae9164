"""A trace as the load of an experiment."""

import os
import warnings
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from statistics import median

import numpy as np

from driftsched_lib.errors import DriftSchedError, ParamsError
from driftsched_lib.requests import TIERS, Request, Tiers
from driftsched_lib.validation import in_project
from driftsched_lib.workloads.params import TraceParams, WorkloadParams
from driftsched_lib.workloads.prompts import TEMPLATES, TOPICS, build_prompt, category_of, filled_up
from driftsched_lib.workloads.traces import Faults, TraceRow, read_trace


def trace_window(trace: TraceParams, requests: int, window: int = 0, tiers: Tiers = TIERS) -> list[TraceRow]:
    """Return the rows of the `window`-th stretch of so many requests, counted from 0.

    Each run serves a stretch of its own, so runs share no request, and their spread is the trace's own.

    Raises:
        ParamsError: the trace cannot be read, or ends before.
    """
    return _window(trace, requests, window, tiers)[0]


def check_trace(trace: TraceParams, requests: int, windows: int, tiers: Tiers = TIERS) -> None:
    """Read the trace to the end of its last window, and warn of the bad rows that are left out.

    Raises:
        ParamsError: the trace cannot be read, or is too short.
    """
    for window in range(windows):
        _, faults = _window(trace, requests, window, tiers)
    if faults.count:
        warnings.warn(f"{trace.file}: {faults}", stacklevel=3)


def _window(trace: TraceParams, requests: int, window: int, tiers: Tiers) -> tuple[list[TraceRow], Faults]:
    begin = trace.skip + window * requests
    path, changed = in_project(trace.file), 0.0
    with suppress(OSError):  # the reader says why it cannot be read
        changed = os.stat(path).st_mtime
    columns = tuple((trace.columns or {}).items())
    source = path, changed, trace.format, columns, trace.on_bad_row, tuple(tiers)
    try:
        rows, faults = _rows(*source, begin, begin + requests)
    except DriftSchedError as error:
        raise ParamsError(f"workload.trace: {error}") from None
    if len(rows) < requests:
        raise ParamsError(
            f"{trace.file}: run {window + 1} serves the good rows {begin + 1:,} to {begin + requests:,}, and there are "
            "fewer: take fewer requests or seeds"
        )
    return rows, faults


@lru_cache(maxsize=32)
def _rows(
    path: str, changed: float, format: str, columns: tuple, on_bad_row: str, tiers: tuple, begin: int, end: int
) -> tuple[list[TraceRow], Faults]:
    faults = Faults()
    return list(islice(read_trace(path, format, dict(columns), on_bad_row, faults, tiers), begin, end)), faults


def trace_requests(
    workload: WorkloadParams,
    requests: int,
    seed: int,
    capacity_tokens_per_s: float,
    rate: float,
    window: int,
    tiers: Tiers = TIERS,
) -> list[Request]:
    """Requests as the trace has them: when, how long, from whom.

    Times are divided by the trace's `speedup`, or stretched until the window offers `load_factor` times the engine's
    capacity in output tokens, and then by `rate`.  Lengths are times `length_scale`, and outputs are pinned there.  A
    prompt is one of the project's, filled up to its length.

    What an estimator sees must not tell what it is to guess.  So a row whose category the trace does not name has the
    one that all such rows have, the first whose base holds their median output; and all rows have one limit, which
    holds the longest.  A row without a tenant is given one of the workload's by the seed; one without a tier has its
    tenant's, or is standard.
    """
    rows, rng = trace_window(workload.trace, requests, window, tiers), np.random.default_rng(seed)
    tenants = rng.choice(list(workload.tenants), len(rows), p=workload.tenant_shares)
    draws = rng.random((len(rows), 2))
    factor = _time_factor(workload, rows, capacity_tokens_per_s) / rate
    outputs = [max(1, round(row.output_tokens * workload.length_scale)) for row in rows]
    limit = max(*workload.max_tokens.values(), *outputs)
    unnamed = category_of(round(median(outputs)), workload.max_tokens)
    served = []
    for i, (row, drawn, (topic, template)) in enumerate(zip(rows, tenants, draws, strict=True)):
        category = row.category or unnamed
        tenant = row.tenant or str(drawn)
        prompt = build_prompt(category, TOPICS[int(topic * len(TOPICS))], int(template * len(TEMPLATES[category])))
        arrival_s = (row.arrival_s - rows[0].arrival_s) * factor
        served.append(
            Request(
                request_id=str(i),
                arrival_s=arrival_s,
                prompt=filled_up(prompt, round(row.prompt_tokens * workload.length_scale)),
                tenant=tenant,
                tier=row.tier or workload.tenants.get(tenant, workload.trace.default_tier),
                max_tokens=limit,
                job_type=category,
                phase="trace",
                fixed_output_tokens=outputs[i],
                deadline_s=None if workload.queue_timeout_s is None else arrival_s + workload.queue_timeout_s,
            )
        )
    return served


def _time_factor(workload: WorkloadParams, rows: list[TraceRow], capacity_tokens_per_s: float) -> float:
    """What the trace's times are multiplied by."""
    trace, span_s = workload.trace, rows[-1].arrival_s - rows[0].arrival_s
    if trace.load_factor is None or span_s == 0:
        return 1 / trace.speedup
    tokens = sum(row.output_tokens for row in rows) * workload.length_scale
    return tokens / (trace.load_factor * capacity_tokens_per_s) / span_s
