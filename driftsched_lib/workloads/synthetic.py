"""Loads: seeded streams of requests, the same whatever the policy that serves them."""

from dataclasses import dataclass, replace
from functools import cache
from itertools import islice, product
from zlib import crc32

import numpy as np
import pandas as pd

from driftsched_lib.classify import KeywordClassifier
from driftsched_lib.errors import ParamsError
from driftsched_lib.experiments.params import Params, Phase
from driftsched_lib.requests import CATEGORIES, Request
from driftsched_lib.validation import in_project
from driftsched_lib.workloads.drift import drifted
from driftsched_lib.workloads.length_mix import LengthMix
from driftsched_lib.workloads.prompts import TEMPLATES, TOPICS, build_prompt, category_of, label_prefix
from driftsched_lib.workloads.replay import trace_requests


@dataclass(frozen=True)
class PhaseLoad:
    """The requests of one phase, in order of arrival; times count from the start of the phase."""

    name: str
    pause_s: float
    requests: list[Request]


def paper_load(params: Params, seed: int, capacity_tokens_per_s: float, rate: float = 1.0) -> list[PhaseLoad]:
    """The paper's load: tenants drawn by their shares, categories by the phase's mix, topics and templates uniformly.

    Or, where there is one, the trace's, as one phase.

    Parameters:
        capacity_tokens_per_s: what a phase's `load_factor` refers to; not used by phases without one.
        rate: how many times as fast as the phases say requests arrive.
    """
    if params.workload.trace is not None:
        return [PhaseLoad("trace", 0.0, trace_requests(params, seed, capacity_tokens_per_s, rate))]
    counts = _counts([phase.share for phase in params.workload.phases], params.requests)
    generators = np.random.default_rng(seed).spawn(len(counts))
    first = np.cumsum([0, *counts[:-1]])
    loads = [
        PhaseLoad(
            phase.name,
            phase.pause_s,
            _phase(params, phase, int(start), n, rng, mean_gap_s(params, phase, capacity_tokens_per_s) / rate),
        )
        for phase, start, n, rng in zip(params.workload.phases, first, counts, generators, strict=True)
    ]
    if params.workload.drift is not None:
        loads = _drifted(params, seed, loads)
    return loads if params.recorded_lengths is None else _pinned(params.recorded_lengths, seed, loads)


@cache
def length_mix(path: str) -> LengthMix:
    """A length mix by its file, looked for in the project first."""
    try:
        return LengthMix.load(in_project(path))
    except ParamsError as error:
        raise ParamsError(f"workload.phases.lengths: {error}") from None


def prompt_digest(request: Request) -> int:
    """What tells whether a recorded length is of this prompt."""
    return crc32(request.prompt.encode())


@cache
def recorded_lengths(path: str) -> dict[int, dict[str, tuple[int, int]]]:
    """By seed and request id, a natural output's length (tokens) and the digest of its prompt.

    Raises:
        ParamsError: the file cannot be read, or is no table of `seed`, `request_id`, `output_tokens` and
            `prompt_digest`, whole numbers all.
    """
    try:
        table = pd.read_parquet(in_project(path))[["seed", "request_id", "output_tokens", "prompt_digest"]].astype(int)
    except (OSError, ValueError, KeyError) as error:
        raise ParamsError(f"recorded_lengths: {path}: cannot be read: {error}") from None
    by_seed: dict[int, dict[str, tuple[int, int]]] = {}
    for seed, request_id, tokens, digest in table.itertuples(index=False, name=None):
        by_seed.setdefault(seed, {})[str(request_id)] = tokens, digest
    return by_seed


def _pinned(path: str, seed: int, loads: list[PhaseLoad]) -> list[PhaseLoad]:
    known = recorded_lengths(path).get(seed, {})
    for load in loads:
        for request in load.requests:
            length, digest = known.get(request.request_id, (0, None))
            if digest != prompt_digest(request) or not 1 <= length <= request.max_tokens:
                raise ParamsError(
                    f"{path}: holds no output of request {request.request_id} of seed {seed}, as this load has it"
                )
            request.fixed_output_tokens = length
    return loads


def mean_gap_s(params: Params, phase: Phase, capacity_tokens_per_s: float) -> float:
    """Mean seconds between arrivals of a phase."""
    if phase.load_factor is None:
        return sum(phase.gap_s) / 2
    if phase.lengths is not None:
        tokens = length_mix(phase.lengths).mean_output_tokens * params.length_scale
    else:
        tokens = sum(share * params.max_tokens[category] for category, share in phase.mix.items())
    return tokens / (capacity_tokens_per_s * phase.load_factor)


def classified_prompts() -> pd.DataFrame:
    """Every prompt of the load behind the paper's classifier, with and without the label prefix, a row a prompt."""
    classify = KeywordClassifier().classify
    rows = []
    for category, topic in product(CATEGORIES, TOPICS):
        for template in range(len(TEMPLATES[category])):
            prompt = build_prompt(category, topic, template)
            rows.append(("with the label prefix", category, classify(label_prefix(0, "tenant", category) + prompt)))
            rows.append(("without it", category, classify(prompt)))
    return pd.DataFrame(rows, columns=["prompts", "job_type", "category"])


def _drifted(params: Params, seed: int, loads: list[PhaseLoad]) -> list[PhaseLoad]:
    """The same phases under the scenario, which spans all of them."""
    form = "natural" if params.output_length == "natural" else "lengths"
    requests = [request for load in loads for request in load.requests]
    changed = iter(drifted(requests, params.workload.drift, seed, params.max_tokens, form))
    return [replace(load, requests=list(islice(changed, len(load.requests)))) for load in loads]


def _phase(
    params: Params, phase: Phase, first_id: int, n: int, rng: np.random.Generator, gap_s: float
) -> list[Request]:
    workload, limits = params.workload, params.max_tokens
    arrivals = np.cumsum(_gaps(phase, n, rng)) * gap_s
    tenants = rng.choice(list(workload.tenants), n, p=workload.tenant_shares)
    categories = rng.choice(list(phase.mix), n, p=list(phase.mix.values()))
    topics = rng.choice(TOPICS, n)
    templates = rng.random(n)
    if phase.lengths is None:
        lengths, fillers = _pinned_lengths(params, categories, rng), [""] * n
    else:
        lengths, categories, fillers = _mixed_lengths(params, phase.lengths, n, rng)
    requests = []
    for i in range(n):
        tenant, category = str(tenants[i]), str(categories[i])
        template = int(templates[i] * len(TEMPLATES[category]))
        prompt = fillers[i] + build_prompt(category, str(topics[i]), template)
        if workload.label_prefix:
            prompt = label_prefix(first_id + i, tenant, category) + prompt
        arrival = float(arrivals[i])
        requests.append(
            Request(
                request_id=str(first_id + i),
                arrival_s=arrival,
                prompt=prompt,
                tenant=tenant,
                tier=workload.tenants[tenant],
                max_tokens=max(limits[category], lengths[i] or 0),
                job_type=category,
                phase=phase.name,
                fixed_output_tokens=lengths[i],
                deadline_s=None if params.queue_timeout_s is None else arrival + params.queue_timeout_s,
            )
        )
    return requests


def _gaps(phase: Phase, n: int, rng: np.random.Generator) -> np.ndarray:
    """Gaps between arrivals of mean 1."""
    if phase.arrival_cv is None:
        return rng.uniform(*phase.gap_s, n) / (sum(phase.gap_s) / 2)
    variance = phase.arrival_cv**2
    return rng.gamma(1 / variance, variance, n)


def _pinned_lengths(params: Params, categories: np.ndarray, rng: np.random.Generator) -> list[int | None]:
    if params.output_length == "natural":
        return [None] * len(categories)
    by_category = params.max_tokens
    limits = np.array([by_category[category] for category in categories])
    if params.output_length == "spread":
        variance = np.log1p(params.spread.cv**2)
        shares = params.spread.mean_share * rng.lognormal(-variance / 2, np.sqrt(variance), len(limits))
        limits = np.clip(np.rint(shares * limits), 1, limits).astype(int)
    return limits.tolist()


def _mixed_lengths(
    params: Params, mix: str, n: int, rng: np.random.Generator
) -> tuple[list[int], list[str], list[str]]:
    """Output lengths drawn from the length mix, the category of each, and words that fill the prompts up."""
    prompts, outputs = (
        np.rint(lengths * params.length_scale).clip(min=1).astype(int).tolist()
        for lengths in length_mix(mix).draw(n, rng)
    )
    limits = params.max_tokens
    categories = [category_of(output, limits) for output in outputs]
    words_of_a_prompt = len(build_prompt("technical", "DNS", 0).split())
    return outputs, categories, ["the " * max(0, prompt - words_of_a_prompt) for prompt in prompts]


def _counts(shares: list[float], total: int) -> list[int]:
    """Whole numbers in proportion to the shares that sum to `total`."""
    ends = np.rint(np.cumsum(shares) * total).astype(int)
    return np.diff(ends, prepend=0).tolist()
