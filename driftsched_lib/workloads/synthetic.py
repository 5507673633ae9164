"""Loads: seeded streams of requests, the same whatever the policy that serves them."""

import os
import warnings
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import repeat
from operator import add
from zlib import crc32

import numpy as np
import pandas as pd
from numpy.random import Generator

from driftsched_lib.errors import ParamsError
from driftsched_lib.requests import TIERS, Request, Tiers
from driftsched_lib.validation import in_project
from driftsched_lib.workloads.drift import drifted
from driftsched_lib.workloads.length_mix import LENGTHS, LengthMix
from driftsched_lib.workloads.params import Phase, TraceParams, WorkloadParams
from driftsched_lib.workloads.prompts import TEMPLATES_PER_CATEGORY, TOPICS, build_prompt, category_of, label_prefix
from driftsched_lib.workloads.traces import Faults, read_trace

TraceRows = tuple[pd.DataFrame, Faults]
length_mix = cache(lambda path: LengthMix.load(in_project(path)))  # that a phase names


@dataclass(frozen=True)
class PhaseLoad:
    """The requests of one phase, in order of arrival; times count from the start of the phase."""

    name: str
    pause_s: float
    requests: list[Request]


def make_load(
    workload: WorkloadParams,
    requests: int,
    seed: int,
    capacity_tokens_per_s: float,
    rate: float = 1.0,
    window: int = 0,
    tiers: Tiers = TIERS,
) -> list[PhaseLoad]:
    """Return the load of one run, phase by phase; a trace is one phase.

    Parameters:
        requests: of all phases together.
        capacity_tokens_per_s: output tokens per second that a `load_factor` refers to; unused without one.
        rate: requests arrive this many times as fast.
        window: which stretch of `requests` rows of a trace is served, counted from 0.
        tiers: those that a trace may name.

    Raises ParamsError if a file that the workload names cannot be used, or a trace is too short.
    """
    if workload.trace is not None:
        phases, ends = [Phase(name="trace")], [requests]
        rows, _ = trace_window(workload.trace, requests, window, tiers)
        served = _trace_requests(workload, rows, seed, capacity_tokens_per_s, rate)
    else:
        phases, served = workload.phases, []
        ends = np.rint(np.cumsum([phase.share for phase in phases]) * requests).astype(int).tolist()
        for phase, end, rng in zip(phases, ends, np.random.default_rng(seed).spawn(len(ends)), strict=True):
            gap_s = mean_gap_s(workload, phase, capacity_tokens_per_s) / rate
            served += _phase_requests(workload, phase, range(len(served), end), gap_s, rng)
    if workload.drift is not None:
        form = "natural" if workload.output_length == "natural" else "lengths"
        served = drifted(served, workload.drift, seed, workload.max_tokens, form, tiers=tiers)
    if workload.recorded_lengths is not None:
        path, known = workload.recorded_lengths, recorded_lengths(workload.recorded_lengths).get(seed, {})
        for request in served:
            length, digest = known.get(request.request_id, (0, None))
            if digest != prompt_digest(request) or not 1 <= length <= request.max_tokens:
                raise ParamsError(f"{path}: holds no output for request {request.request_id} of seed {seed}")
            request.fixed_output_tokens = length
    if workload.queue_timeout_s is not None:
        for request in served:
            request.deadline_s = request.arrival_s + workload.queue_timeout_s
    slices = map(slice, [0, *ends], ends)
    return [PhaseLoad(phase.name, phase.pause_s, served[part]) for phase, part in zip(phases, slices, strict=True)]


def check_load(workload: WorkloadParams, requests: int, windows: int, tiers: Tiers = TIERS) -> None:
    """Read the files that a workload names, and warn of bad rows of a trace: before an engine is loaded.

    Raises ParamsError if a file cannot be used, or a trace does not hold so many `windows` of `requests` rows.
    """
    for path in {phase.lengths for phase in workload.phases} - {None}:
        length_mix(path)
    if workload.recorded_lengths is not None:
        recorded_lengths(workload.recorded_lengths)
    if workload.trace is not None:
        _, faults = trace_window(workload.trace, requests, windows - 1, tiers)
        if str(faults):
            warnings.warn(f"{workload.trace.file}: {faults}", stacklevel=3)


def mean_gap_s(workload: WorkloadParams, phase: Phase, capacity_tokens_per_s: float) -> float:
    """Return the mean seconds between arrivals of a phase at rate 1."""
    if phase.load_factor is None:
        return sum(phase.gap_s) / 2
    tokens = sum(share * workload.max_tokens[category] for category, share in phase.mix.items())
    if phase.lengths is not None:
        tokens = length_mix(phase.lengths).mean_output_tokens * workload.length_scale
    return tokens / (capacity_tokens_per_s * phase.load_factor)


def prompt_digest(request: Request) -> int:
    """Return the CRC-32 of a prompt: it tells whether a recorded length belongs to it."""
    return crc32(request.prompt.encode())


@cache
def recorded_lengths(path: str) -> dict[int, dict[str, tuple[int, int]]]:
    """Return, by seed and request id, a natural output's length (tokens) and the digest of its prompt.

    Raises ParamsError unless the file is a table of whole `seed`, `request_id`, `output_tokens` and `prompt_digest`.
    """
    try:
        table = pd.read_parquet(in_project(path))[["seed", "request_id", "output_tokens", "prompt_digest"]].astype(int)
    except (OSError, ValueError, KeyError) as error:
        raise ParamsError(f"workload.recorded_lengths: {path}: cannot be read: {error}") from None
    by_seed: dict[int, dict[str, tuple[int, int]]] = {}
    for seed, request_id, tokens, digest in table.itertuples(index=False, name=None):
        by_seed.setdefault(seed, {})[str(request_id)] = tokens, digest
    return by_seed


def _phase_requests(workload: WorkloadParams, phase: Phase, ids: range, gap_s: float, rng: Generator) -> list[Request]:
    """Draw tenants by their shares, categories by the mix, topics uniformly.  Phases with `lengths` share one limit."""
    n, limits = len(ids), workload.max_tokens
    if phase.arrival_cv is None:
        gaps = rng.uniform(*phase.gap_s, n) / (sum(phase.gap_s) / 2)
    else:
        gaps = rng.gamma(1 / phase.arrival_cv**2, phase.arrival_cv**2, n)
    arrivals_s = (np.cumsum(gaps) * gap_s).tolist()
    tenants = rng.choice(list(workload.tenants), n, p=workload.tenant_shares).tolist()
    categories = rng.choice(list(phase.mix), n, p=list(phase.mix.values())).tolist()
    topics, templates = rng.choice(TOPICS, n).tolist(), (rng.random(n) * TEMPLATES_PER_CATEGORY).astype(int)
    bases = maxima = [limits[category] for category in categories]
    labels, prompt_tokens = repeat(""), repeat(None)
    lengths = bases if workload.output_length == "limit" else repeat(None)
    if phase.lengths is not None:
        prompt_tokens, lengths = (list(map(workload.tokens, drawn)) for drawn in length_mix(phase.lengths).draw(n, rng))
        longest = [length_mix(one.lengths).output_tokens[-1] for one in workload.phases if one.lengths is not None]
        maxima = repeat(max(*limits.values(), *map(workload.tokens, longest)))
        categories, labels = [category_of(length, limits) for length in lengths], map("{}. ".format, ids)
    elif workload.output_length == "spread":
        variance = np.log1p(workload.spread.cv**2)
        shares = workload.spread.mean_share * rng.lognormal(-variance / 2, np.sqrt(variance), n)
        lengths = np.clip(np.rint(shares * bases), 1, bases).astype(int).tolist()
    if workload.label_prefix:
        labels = map(label_prefix, ids, tenants, categories)
    prompts = map(add, labels, map(build_prompt, categories, topics, templates))
    tiers = [workload.tenants[tenant] for tenant in tenants]
    columns = arrivals_s, prompts, tenants, tiers, maxima, categories, repeat(phase.name), lengths, prompt_tokens
    return list(map(Request, map(str, ids), *columns))


def trace_window(trace: TraceParams, requests: int, window: int = 0, tiers: Tiers = TIERS) -> TraceRows:
    """Return the rows of a stretch, and the bad rows left out; ParamsError if the trace is unreadable or too short."""
    path, begin = in_project(trace.file), trace.skip + window * requests
    mtime = os.path.getmtime(path) if os.path.exists(path) else 0.0
    return _rows(trace.model_dump_json(), path, mtime, begin, begin + requests, tuple(tiers))


@lru_cache(maxsize=32)  # by the file's mtime as well, so that a changed one is read again
def _rows(trace_json: str, path: str, mtime: float, begin: int, end: int, tiers: tuple[str, ...]) -> TraceRows:
    trace, faults, parts, n = TraceParams.model_validate_json(trace_json), Faults(), [], 0
    for chunk in read_trace(path, trace.format, trace.columns, trace.on_bad_row, faults, tiers, trace.time_unit):
        parts.append(chunk[max(0, begin - n) : end - n])
        n += len(chunk)
        if n >= end:
            return pd.concat(parts), faults
    raise ParamsError(f"{path}: a run serves the good rows {begin + 1:,} to {end:,}, and there are {n:,}")


def _trace_requests(
    workload: WorkloadParams, rows: pd.DataFrame, seed: int, capacity_tokens_per_s: float, rate: float
) -> list[Request]:
    """Return the requests of a trace's rows, at its `speedup` or `load_factor` and the workload's `length_scale`.

    An estimator must not see the length that it is to guess.  So all rows share one limit, which holds the longest
    output, and all rows without a category share one, chosen by their median output.  A row without a tenant is given
    one of the workload's by the seed; a row without a tier has its tenant's, or the trace's default.  A prompt begins
    with its row's number, so that a prefix cache holds no part of it.
    """
    trace, limits, n, rng = workload.trace, workload.max_tokens, len(rows), np.random.default_rng(seed)
    drawn = rng.choice(list(workload.tenants), n, p=workload.tenant_shares).tolist()
    topics, templates = (rng.random((n, 2)) * [len(TOPICS), TEMPLATES_PER_CATEGORY]).astype(int).T
    times_s, factor = rows.arrival_s - rows.arrival_s.iloc[0], 1 / trace.speedup
    prompt_tokens, outputs = (list(map(workload.tokens, rows[name])) for name in LENGTHS)
    if trace.load_factor is not None and times_s.iloc[-1] > 0:
        factor = sum(outputs) / (trace.load_factor * capacity_tokens_per_s) / times_s.iloc[-1]
    unnamed = category_of(round(np.median(outputs)), limits)
    categories = [category or unnamed for category in rows.category]
    tenants = [tenant or other for tenant, other in zip(rows.tenant, drawn, strict=True)]
    tier_of = workload.tenants
    tiers = [tier or tier_of.get(tenant, trace.default_tier) for tier, tenant in zip(rows.tier, tenants, strict=True)]
    texts = map(build_prompt, categories, np.take(TOPICS, topics), templates)
    prompts = [f"{i}. {text}" for i, text in enumerate(texts)]
    arrivals_s, limit = (times_s * (factor / rate)).tolist(), max(*limits.values(), *outputs)
    columns = prompts, tenants, tiers, repeat(limit), categories, repeat("trace"), outputs, prompt_tokens
    return list(map(Request, map(str, range(n)), arrivals_s, *columns))
