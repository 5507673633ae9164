"""Loads: seeded streams of requests, the same whatever the policy that serves them."""

from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from zlib import crc32

import numpy as np
import pandas as pd

from driftsched_lib.errors import ParamsError
from driftsched_lib.requests import TIERS, Request, Tiers
from driftsched_lib.validation import in_project
from driftsched_lib.workloads.drift import drifted
from driftsched_lib.workloads.length_mix import LengthMix
from driftsched_lib.workloads.params import Phase, WorkloadParams
from driftsched_lib.workloads.prompts import TEMPLATES, TOPICS, build_prompt, category_of, label_prefix
from driftsched_lib.workloads.replay import check_trace, trace_requests

WORDS_PER_PROMPT = len(build_prompt("technical", "DNS", 0).split())


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

    Tenants are drawn by their shares, categories by the phase's mix, topics and templates uniformly.

    Parameters:
        requests: of all phases together.
        capacity_tokens_per_s: output tokens per second that a `load_factor` refers to; unused without one.
        rate: requests arrive this many times as fast.
        window: which stretch of `requests` rows of a trace is served, counted from 0.
        tiers: those that a trace may name.

    Raises:
        ParamsError: a file that the workload names cannot be used, or a trace is too short.
    """
    if workload.trace is not None:
        served = trace_requests(workload, requests, seed, capacity_tokens_per_s, rate, window, tiers)
        return [PhaseLoad("trace", 0.0, served)]
    ends = np.rint(np.cumsum([phase.share for phase in workload.phases]) * requests).astype(int).tolist()
    generators, loads, start = np.random.default_rng(seed).spawn(len(ends)), [], 0
    for phase, end, rng in zip(workload.phases, ends, generators, strict=True):
        gap_s = mean_gap_s(workload, phase, capacity_tokens_per_s) / rate
        loads.append(PhaseLoad(phase.name, phase.pause_s, _requests(workload, phase, range(start, end), gap_s, rng)))
        start = end
    if workload.drift is not None:
        form = "natural" if workload.output_length == "natural" else "lengths"
        served = [request for load in loads for request in load.requests]
        changed = iter(drifted(served, workload.drift, seed, workload.max_tokens, form, tiers=tiers))
        loads = [replace(load, requests=list(islice(changed, len(load.requests)))) for load in loads]
    if workload.recorded_lengths is not None:
        _fix_recorded_lengths(workload.recorded_lengths, seed, loads)
    return loads


def check_load(workload: WorkloadParams, requests: int, windows: int, tiers: Tiers = TIERS) -> None:
    """Read the files that a workload names, and warn of bad rows of a trace: before an engine is loaded.

    Parameters:
        windows: how many stretches of `requests` rows a trace must hold.

    Raises:
        ParamsError: a file cannot be used.
    """
    for phase in workload.phases:
        if phase.lengths is not None:
            length_mix(phase.lengths)
    if workload.recorded_lengths is not None:
        recorded_lengths(workload.recorded_lengths)
    if workload.trace is not None:
        check_trace(workload.trace, requests, windows, tiers)


def mean_gap_s(workload: WorkloadParams, phase: Phase, capacity_tokens_per_s: float) -> float:
    """Return the mean seconds between arrivals of a phase at rate 1."""
    if phase.load_factor is None:
        return sum(phase.gap_s) / 2
    if phase.lengths is not None:
        tokens = length_mix(phase.lengths).mean_output_tokens * workload.length_scale
    else:
        tokens = sum(share * workload.max_tokens[category] for category, share in phase.mix.items())
    return tokens / (capacity_tokens_per_s * phase.load_factor)


@cache
def length_mix(path: str) -> LengthMix:
    """Return the length mix that a phase names; ParamsError if the file cannot be used."""
    try:
        return LengthMix.load(in_project(path))
    except ParamsError as error:
        raise ParamsError(f"workload.phases.lengths: {error}") from None


def prompt_digest(request: Request) -> int:
    """Return the CRC-32 of a prompt: it tells whether a recorded length belongs to it."""
    return crc32(request.prompt.encode())


@cache
def recorded_lengths(path: str) -> dict[int, dict[str, tuple[int, int]]]:
    """Return, by seed and request id, a natural output's length (tokens) and the digest of its prompt.

    Raises:
        ParamsError: the file cannot be read, or is no table with whole numbers `seed`, `request_id`, `output_tokens`
            and `prompt_digest`.
    """
    try:
        table = pd.read_parquet(in_project(path))[["seed", "request_id", "output_tokens", "prompt_digest"]].astype(int)
    except (OSError, ValueError, KeyError) as error:
        raise ParamsError(f"workload.recorded_lengths: {path}: cannot be read: {error}") from None
    by_seed: dict[int, dict[str, tuple[int, int]]] = {}
    for seed, request_id, tokens, digest in table.itertuples(index=False, name=None):
        by_seed.setdefault(seed, {})[str(request_id)] = tokens, digest
    return by_seed


def _fix_recorded_lengths(path: str, seed: int, loads: list[PhaseLoad]) -> None:
    known = recorded_lengths(path).get(seed, {})
    for request in (request for load in loads for request in load.requests):
        length, digest = known.get(request.request_id, (0, None))
        if digest != prompt_digest(request) or not 1 <= length <= request.max_tokens:
            raise ParamsError(f"{path}: holds no output for request {request.request_id} of seed {seed} of this load")
        request.fixed_output_tokens = length


def _requests(
    workload: WorkloadParams, phase: Phase, ids: range, gap_s: float, rng: np.random.Generator
) -> list[Request]:
    n, limits, timeout_s = len(ids), workload.max_tokens, workload.queue_timeout_s
    if phase.arrival_cv is None:
        gaps = rng.uniform(*phase.gap_s, n) / (sum(phase.gap_s) / 2)
    else:
        variance = phase.arrival_cv**2
        gaps = rng.gamma(1 / variance, variance, n)
    arrivals_s = (np.cumsum(gaps) * gap_s).tolist()
    tenants = rng.choice(list(workload.tenants), n, p=workload.tenant_shares).tolist()
    categories = rng.choice(list(phase.mix), n, p=list(phase.mix.values())).tolist()
    topics, templates = rng.choice(TOPICS, n).tolist(), rng.random(n).tolist()
    if phase.lengths is None:
        fillers, lengths = [""] * n, _lengths(workload, [limits[category] for category in categories], rng)
    else:
        drawn = length_mix(phase.lengths).draw(n, rng)
        prompts, lengths = (np.rint(x * workload.length_scale).clip(min=1).astype(int).tolist() for x in drawn)
        categories = [category_of(length, limits) for length in lengths]
        fillers = ["the " * max(0, tokens - WORDS_PER_PROMPT) for tokens in prompts]
    requests = []
    for i, arrival_s, tenant, category, topic, template, filler, length in zip(
        ids, arrivals_s, tenants, categories, topics, templates, fillers, lengths, strict=True
    ):
        prompt = filler + build_prompt(category, topic, int(template * len(TEMPLATES[category])))
        if workload.label_prefix:
            prompt = label_prefix(i, tenant, category) + prompt
        tier, limit = workload.tenants[tenant], max(limits[category], length or 0)
        request = Request(str(i), arrival_s, prompt, tenant, tier, limit, category, phase.name, length)
        request.deadline_s = None if timeout_s is None else arrival_s + timeout_s
        requests.append(request)
    return requests


def _lengths(workload: WorkloadParams, limits: list[int], rng: np.random.Generator) -> list[int] | list[None]:
    """Return the fixed output lengths in tokens; None for outputs that end by themselves."""
    if workload.output_length == "natural":
        return [None] * len(limits)
    if workload.output_length == "limit":
        return limits
    variance = np.log1p(workload.spread.cv**2)
    shares = workload.spread.mean_share * rng.lognormal(-variance / 2, np.sqrt(variance), len(limits))
    return np.clip(np.rint(shares * limits), 1, limits).astype(int).tolist()
