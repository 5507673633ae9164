"""Loads: seeded streams of requests, the same whatever the policy that serves them."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd

from driftsched_lib.classify import KeywordClassifier
from driftsched_lib.params import Params, Phase
from driftsched_lib.prompts import CATEGORIES, TEMPLATES, TOPICS, build_prompt, label_prefix
from driftsched_lib.requests import Request


@dataclass(frozen=True)
class PhaseLoad:
    """The requests of one phase, in order of arrival; times count from the start of the phase."""

    name: str
    pause_s: float
    requests: list[Request]


def paper_load(params: Params, seed: int, capacity_tokens_per_s: float) -> list[PhaseLoad]:
    """The paper's load: tenants drawn uniformly, categories by the phase's mix, topics and templates uniformly.

    Parameters:
        capacity_tokens_per_s: what a phase's `load_factor` refers to; not used by phases without one.
    """
    counts = _counts([phase.share for phase in params.workload.phases], params.requests)
    generators = np.random.default_rng(seed).spawn(len(counts))
    first = np.cumsum([0, *counts[:-1]])
    return [
        PhaseLoad(phase.name, phase.pause_s, _phase(params, phase, int(start), n, rng, capacity_tokens_per_s))
        for phase, start, n, rng in zip(params.workload.phases, first, counts, generators, strict=True)
    ]


def mean_gap_s(params: Params, phase: Phase, capacity_tokens_per_s: float) -> float:
    """Mean seconds between arrivals of a phase."""
    if phase.load_factor is None:
        return sum(phase.gap_s) / 2
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


def _phase(
    params: Params, phase: Phase, first_id: int, n: int, rng: np.random.Generator, capacity_tokens_per_s: float
) -> list[Request]:
    stretch = mean_gap_s(params, phase, capacity_tokens_per_s) / (sum(phase.gap_s) / 2)
    arrivals = np.cumsum(rng.uniform(*phase.gap_s, n) * stretch)
    tenants = rng.choice(list(params.workload.tenants), n)
    categories = rng.choice(list(phase.mix), n, p=list(phase.mix.values()))
    topics = rng.choice(TOPICS, n)
    templates = rng.random(n)
    requests = []
    for i in range(n):
        tenant, category = str(tenants[i]), str(categories[i])
        template = int(templates[i] * len(TEMPLATES[category]))
        prompt = build_prompt(category, str(topics[i]), template)
        if params.workload.label_prefix:
            prompt = label_prefix(first_id + i, tenant, category) + prompt
        arrival, limit = float(arrivals[i]), params.max_tokens[category]
        requests.append(
            Request(
                request_id=str(first_id + i),
                arrival_s=arrival,
                prompt=prompt,
                tenant=tenant,
                tier=params.workload.tenants[tenant],
                max_tokens=limit,
                job_type=category,
                phase=phase.name,
                pinned_tokens=limit if params.output_length == "limit" else None,
                deadline_s=None if params.queue_timeout_s is None else arrival + params.queue_timeout_s,
            )
        )
    return requests


def _counts(shares: list[float], total: int) -> list[int]:
    """Whole numbers in proportion to the shares that sum to `total`."""
    ends = np.rint(np.cumsum(shares) * total).astype(int)
    return np.diff(ends, prepend=0).tolist()
