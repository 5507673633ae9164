"""A trace as the load of an experiment."""

import os
import warnings
from functools import lru_cache
from statistics import median

import numpy as np
import pandas as pd

from driftsched_lib.errors import ParamsError
from driftsched_lib.requests import TIERS, Request, Tiers
from driftsched_lib.validation import in_project
from driftsched_lib.workloads.params import TraceParams, WorkloadParams
from driftsched_lib.workloads.prompts import TEMPLATES, TOPICS, build_prompt, category_of, filled_up
from driftsched_lib.workloads.traces import Faults, read_trace


def trace_window(trace: TraceParams, requests: int, window: int = 0, tiers: Tiers = TIERS) -> pd.DataFrame:
    """Return the rows of the `window`-th stretch of so many requests, counted from 0, as `read_trace` gives them.

    Each run serves a stretch of its own: runs share no request, and their spread is the trace's own.

    Raises:
        ParamsError: the trace cannot be read, or ends before.
    """
    return _window(trace, requests, window, tiers)[0]


def check_trace(trace: TraceParams, requests: int, windows: int, tiers: Tiers = TIERS) -> None:
    """Read the trace to the end of its last window, and warn of bad rows that are left out.

    Raises:
        ParamsError: the trace cannot be read, or ends before.
    """
    _, faults = _window(trace, requests, windows - 1, tiers)
    if faults.count:
        warnings.warn(f"{trace.file}: {faults}", stacklevel=3)


def _window(trace: TraceParams, requests: int, window: int, tiers: Tiers) -> tuple[pd.DataFrame, Faults]:
    path, begin = in_project(trace.file), trace.skip + window * requests
    changed_s = os.path.getmtime(path) if os.path.exists(path) else 0.0
    return _rows(trace.model_dump_json(), path, changed_s, begin, begin + requests, tuple(tiers))


@lru_cache(maxsize=32)
def _rows(
    trace_json: str, path: str, changed_s: float, begin: int, end: int, tiers: tuple[str, ...]
) -> tuple[pd.DataFrame, Faults]:
    """Return the good rows `begin` to `end`; `changed_s` makes the cache read a changed file again."""
    trace, faults, parts, n = TraceParams.model_validate_json(trace_json), Faults(), [], 0
    try:
        for chunk in read_trace(path, trace.format, trace.columns, trace.on_bad_row, faults, tiers):
            parts.append(chunk[max(0, begin - n) : end - n])
            n += len(chunk)
            if n >= end:
                return pd.concat(parts), faults
    except ParamsError as error:
        raise ParamsError(f"workload.trace: {error}") from None
    raise ParamsError(
        f"workload.trace: {path}: a run serves the good rows {begin + 1:,} to {end:,}, and there are {n:,}: take fewer "
        "requests or seeds"
    )


def trace_requests(
    workload: WorkloadParams,
    requests: int,
    seed: int,
    capacity_tokens_per_s: float,
    rate: float = 1.0,
    window: int = 0,
    tiers: Tiers = TIERS,
) -> list[Request]:
    """Return the requests of a trace's window: when they arrive, how long they are, and who sends them.

    Times are divided by the trace's `speedup`, or stretched to its `load_factor`, and divided by `rate`.  Lengths are
    multiplied by `length_scale`, and outputs are fixed.  A prompt is one of the project's, filled up to its length.

    An estimator must not see the length that it is to guess.  So all rows share one limit, which holds the longest
    output, and all rows without a category share one, chosen by their median output.  A row without a tenant is given
    one of the workload's by the seed; a row without a tier has its tenant's, or the trace's default.
    """
    trace, limits, timeout_s = workload.trace, workload.max_tokens, workload.queue_timeout_s
    rows, rng = trace_window(trace, requests, window, tiers), np.random.default_rng(seed)
    tenants = rng.choice(list(workload.tenants), len(rows), p=workload.tenant_shares)
    draws = rng.random((len(rows), 2))
    factor = _time_factor(workload, rows, capacity_tokens_per_s) / rate
    outputs = [workload.tokens(tokens) for tokens in rows.output_tokens.tolist()]
    limit = max(*limits.values(), *outputs)
    unnamed = category_of(round(median(outputs)), limits)
    begin_s, served = rows.arrival_s.iloc[0], []
    for i, row in enumerate(rows.itertuples()):
        category, tenant = row.category or unnamed, row.tenant or str(tenants[i])
        topic, template = int(draws[i, 0] * len(TOPICS)), int(draws[i, 1] * len(TEMPLATES[category]))
        prompt = build_prompt(category, TOPICS[topic], template)
        arrival_s = float((row.arrival_s - begin_s) * factor)
        prompt = filled_up(prompt, round(row.prompt_tokens * workload.length_scale))
        tier = row.tier or workload.tenants.get(tenant, trace.default_tier)
        request = Request(str(i), arrival_s, prompt, tenant, tier, limit, category, "trace", outputs[i])
        request.deadline_s = None if timeout_s is None else arrival_s + timeout_s
        served.append(request)
    return served


def _time_factor(workload: WorkloadParams, rows: pd.DataFrame, capacity_tokens_per_s: float) -> float:
    trace, span_s = workload.trace, float(rows.arrival_s.iloc[-1] - rows.arrival_s.iloc[0])
    if trace.load_factor is None or span_s == 0:
        return 1 / trace.speedup
    tokens = int(rows.output_tokens.sum()) * workload.length_scale
    return tokens / (trace.load_factor * capacity_tokens_per_s) / span_s
