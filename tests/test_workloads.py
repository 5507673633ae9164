"""The paper's load: seeded, shaped as the paper says, and stretched to a load factor without losing its shape."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from driftsched_lib.experiments.params import Params
from driftsched_lib.requests import CATEGORIES, TIERS
from driftsched_lib.workloads.prompts import TEMPLATES, TOPICS, build_prompt
from driftsched_lib.workloads.synthetic import mean_gap_s, paper_load

PAPER = Params()


def test_phases_are_the_papers():
    learning, stress = paper_load(PAPER, 1, 1.0)
    assert (len(learning.requests), len(stress.requests)) == (1000, 2000)
    assert (learning.pause_s, stress.pause_s) == (0.0, 15.0)
    assert [request.request_id for request in learning.requests + stress.requests] == [str(i) for i in range(3000)]


@pytest.mark.parametrize("index", [0, 1])
def test_gaps_categories_and_tenants_have_their_distributions(index):
    phase, load = PAPER.workload.phases[index], paper_load(PAPER, 7, 1.0)[index]
    gaps = np.diff([0.0, *(request.arrival_s for request in load.requests)])
    low, high = phase.gap_s
    assert stats.kstest(gaps, stats.uniform(low, high - low).cdf).pvalue > 0.001
    job_types = [request.job_type for request in load.requests]
    observed = [job_types.count(category) for category in phase.mix]
    assert stats.chisquare(observed, np.array(list(phase.mix.values())) * len(job_types)).pvalue > 0.001
    tiers = [request.tier for request in load.requests]
    assert stats.chisquare([tiers.count(tier) for tier in TIERS]).pvalue > 0.001


def test_topics_and_templates_are_uniform():
    params = PAPER.model_copy(update={"workload": PAPER.workload.model_copy(update={"label_prefix": False})})
    prompts = Counter(request.prompt for phase in paper_load(params, 5, 1.0) for request in phase.requests)
    for category in CATEGORIES:
        counts = [
            [prompts[build_prompt(category, topic, template)] for template in range(len(TEMPLATES[category]))]
            for topic in TOPICS
        ]
        assert stats.chisquare(np.sum(counts, axis=0)).pvalue > 0.001
        assert stats.chisquare(np.sum(counts, axis=1)).pvalue > 0.001


@settings(max_examples=25)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=5), st.integers(1, 400))
def test_phases_share_all_requests_within_one(weights, total):
    shares = [weight / sum(weights) for weight in weights]
    phase = PAPER.workload.phases[0]
    phases = [phase.model_copy(update={"share": share}) for share in shares]
    workload = PAPER.workload.model_copy(update={"phases": phases})
    params = PAPER.model_copy(update={"workload": workload, "requests": total})
    counts = [len(phase.requests) for phase in paper_load(params, 1, 1.0)]
    assert sum(counts) == total
    assert np.abs(np.array(counts) - np.array(shares) * total).max() <= 1


def test_the_same_seed_gives_the_same_requests_and_another_seed_others():
    first, again, other = (
        [request for phase in paper_load(PAPER, seed, 1.0) for request in phase.requests] for seed in (3, 3, 4)
    )
    assert first == again
    assert [request.prompt for request in first] != [request.prompt for request in other]


def test_a_load_factor_stretches_the_gaps_to_that_share_of_capacity():
    phase = PAPER.workload.phases[1]
    loaded = phase.model_copy(update={"load_factor": 2.0})
    assert mean_gap_s(PAPER, phase, 1000.0) == pytest.approx(0.0175)
    tokens = 0.1 * 64 + 0.2 * 256 + 0.4 * 384 + 0.3 * 512  # 364.8 tokens a request
    assert mean_gap_s(PAPER, loaded, 1000.0) == pytest.approx(tokens / 2000.0)
    params = PAPER.model_copy(
        update={"workload": PAPER.workload.model_copy(update={"phases": [PAPER.workload.phases[0], loaded]})}
    )
    plain, stretched = (paper_load(p, 1, 1000.0)[1].requests for p in (PAPER, params))
    ratios = np.array([b.arrival_s / a.arrival_s for a, b in zip(plain, stretched, strict=True)])
    assert ratios == pytest.approx(tokens / 2000.0 / 0.0175)


def test_requests_carry_what_the_parameters_say():
    params = Params.parse(
        {"length_scale": 0.125, "output_length": "natural", "queue_timeout_s": 5.0, "requests": 30}
        | {"workload": {"label_prefix": False}},
        "test",
    )
    for phase in paper_load(params, 1, 1.0):
        for request in phase.requests:
            assert request.fixed_output_tokens is None and not request.prompt.startswith("Request ID")
            assert request.max_tokens == {"short_qa": 8, "summary": 32, "technical": 48, "report": 64}[request.job_type]
            assert request.deadline_s == pytest.approx(request.arrival_s + 5.0)
    for i, phase in zip((0, 1000), paper_load(PAPER, 1, 1.0), strict=True):
        pinned = phase.requests[0]
        assert pinned.fixed_output_tokens == pinned.max_tokens
        assert pinned.prompt.startswith(f"Request ID {i}. Tenant {pinned.tenant}. Job type {pinned.job_type}. ")


def changed(phase_changes, **workload_changes):
    """The paper's load with its first phase changed."""
    phases = [phase.model_copy(update=phase_changes) for phase in PAPER.workload.phases[:1]]
    phases = [phase.model_copy(update={"share": 1.0}) for phase in phases]
    workload = PAPER.workload.model_copy(update={"phases": phases} | workload_changes)
    return paper_load(PAPER.model_copy(update={"workload": workload}), 3, 1.0)[0].requests


@pytest.mark.parametrize("cv", [1.0, 3.0])
def test_gamma_gaps_have_the_mean_of_the_uniform_ones_and_their_own_variation(cv):
    gaps = np.diff([request.arrival_s for request in changed({"arrival_cv": cv})])
    assert gaps.mean() == pytest.approx(0.1, rel=0.2) and gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.2)
    shape = 1 / cv**2
    assert stats.kstest(gaps, stats.gamma(shape, scale=0.1 / shape).cdf).pvalue > 0.001


def test_the_first_tenants_send_most_under_zipf():
    tenants = {f"tenant-{i}": TIERS[i % 3] for i in range(30)}
    counts = Counter(request.tenant for request in changed({}, tenants=tenants, zipf=1.0))
    expected = 1 / np.arange(1, 31)
    observed = [counts[tenant] for tenant in tenants]
    assert stats.chisquare(observed, expected / expected.sum() * sum(observed)).pvalue > 0.001
