"""The paper's load: seeded, shaped as the paper says, and stretched to a load factor without losing its shape."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from driftsched_lib.requests import CATEGORIES, TIERS
from driftsched_lib.workloads.drift import SCENARIOS
from driftsched_lib.workloads.params import WorkloadParams
from driftsched_lib.workloads.prompts import TEMPLATES, TOPICS, build_prompt
from driftsched_lib.workloads.synthetic import make_load, mean_gap_s

PAPER = WorkloadParams()


def requests_of(workload, seed, requests=3000, capacity=1.0):
    return [request for phase in make_load(workload, requests, seed, capacity) for request in phase.requests]


def one_phase(phase=(), **workload):
    return WorkloadParams.parse({"phases": [{"name": "learning", "share": 1.0, **dict(phase)}]} | workload, "test")


def test_phases_are_the_papers_and_a_seed_gives_the_same_requests():
    learning, stress = make_load(PAPER, 3000, 1, 1.0)
    assert (len(learning.requests), len(stress.requests)) == (1000, 2000)
    assert (learning.pause_s, stress.pause_s) == (0.0, 15.0)
    assert [request.request_id for request in learning.requests + stress.requests] == [str(i) for i in range(3000)]
    first, again, other = (requests_of(PAPER, seed) for seed in (3, 3, 4))
    assert first == again
    assert [request.prompt for request in first] != [request.prompt for request in other]


@pytest.mark.parametrize("index", [0, 1])
def test_gaps_categories_and_tenants_have_their_distributions(index):
    phase, load = PAPER.phases[index], make_load(PAPER, 3000, 7, 1.0)[index]
    gaps = np.diff([0.0, *(request.arrival_s for request in load.requests)])
    low, high = phase.gap_s
    assert stats.kstest(gaps, stats.uniform(low, high - low).cdf).pvalue > 0.001
    job_types = [request.job_type for request in load.requests]
    observed = [job_types.count(category) for category in phase.mix]
    assert stats.chisquare(observed, np.array(list(phase.mix.values())) * len(job_types)).pvalue > 0.001
    tiers = [request.tier for request in load.requests]
    assert stats.chisquare([tiers.count(tier) for tier in TIERS]).pvalue > 0.001


def test_topics_and_templates_are_uniform():
    prompts = Counter(request.prompt for request in requests_of(WorkloadParams(label_prefix=False), 5))
    for category in CATEGORIES:
        numbers = range(len(TEMPLATES[category]))
        counts = [[prompts[build_prompt(category, topic, number)] for number in numbers] for topic in TOPICS]
        assert stats.chisquare(np.sum(counts, axis=0)).pvalue > 0.001
        assert stats.chisquare(np.sum(counts, axis=1)).pvalue > 0.001


@settings(max_examples=25)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=5), st.integers(1, 400))
def test_phases_share_all_requests_within_one(weights, total):
    shares = [weight / sum(weights) for weight in weights]
    phases = [PAPER.phases[0].model_copy(update={"share": share}) for share in shares]
    counts = [len(phase.requests) for phase in make_load(WorkloadParams(phases=phases), total, 1, 1.0)]
    assert sum(counts) == total
    assert np.abs(np.array(counts) - np.array(shares) * total).max() <= 1


def test_a_load_factor_stretches_the_gaps_to_that_share_of_capacity():
    phase = PAPER.phases[1]
    loaded = phase.model_copy(update={"load_factor": 2.0})
    assert mean_gap_s(PAPER, phase, 1000.0) == pytest.approx(0.0175)
    tokens = 0.1 * 64 + 0.2 * 256 + 0.4 * 384 + 0.3 * 512  # 364.8 tokens per request
    assert mean_gap_s(PAPER, loaded, 1000.0) == pytest.approx(tokens / 2000.0)
    stretched = PAPER.model_copy(update={"phases": [PAPER.phases[0], loaded]})
    ratios = [
        b.arrival_s / a.arrival_s
        for a, b in zip(*(make_load(load, 3000, 1, 1000.0)[1].requests for load in (PAPER, stretched)), strict=True)
    ]
    assert ratios == pytest.approx([tokens / 2000.0 / 0.0175] * 2000)


def test_requests_carry_what_the_parameters_say():
    natural = WorkloadParams(length_scale=0.125, output_length="natural", queue_timeout_s=5.0, label_prefix=False)
    for request in requests_of(natural, 1, requests=30):
        assert request.fixed_output_tokens is None and not request.prompt.startswith("Request ID")
        assert request.max_tokens == {"short_qa": 8, "summary": 32, "technical": 48, "report": 64}[request.job_type]
        assert request.deadline_s == pytest.approx(request.arrival_s + 5.0)
    for i, phase in zip((0, 1000), make_load(PAPER, 3000, 1, 1.0), strict=True):
        fixed = phase.requests[0]
        assert fixed.fixed_output_tokens == fixed.max_tokens and fixed.deadline_s is None
        assert fixed.prompt.startswith(f"Request ID {i}. Tenant {fixed.tenant}. Job type {fixed.job_type}. ")


MIXES = [f"data/traces/{name}.json" for name in ("azure-code-2023", "azure-conv-2023", "mooncake-conv-2025")]
MIX = {"phases": [{"name": path, "lengths": path, "share": 1 / 3} for path in MIXES]}
TRACE = {"trace": {"file": "data/traces/sample-clients.yaml", "format": "clients"}}
LOADS = {"mix": MIX, "trace": TRACE, "limit": {}, "spread": {"output_length": "spread"}}
LOADS |= {f"drift {name}": {"drift": name} for name in SCENARIOS} | {"natural": {"output_length": "natural"}}
LOWERED = {"drift low_limits", "drift health_probes", "drift limit_change"}  # some requests have one other limit


@pytest.mark.parametrize("load", LOADS)
def test_a_limit_tells_no_more_of_an_output_than_the_category(load):
    for scale in (1.0, 0.125):
        requests = requests_of(WorkloadParams.parse(LOADS[load] | {"length_scale": scale}, "test"), 1)
        limits = {(request.job_type, request.max_tokens) for request in requests}
        assert len(limits) == (1 + (load in LOWERED)) * len({request.job_type for request in requests})
        assert all((request.fixed_output_tokens or 1) <= request.max_tokens for request in requests)
        if load in ("mix", "trace"):
            assert len({request.max_tokens for request in requests}) == 1
            assert len({request.prompt[:16] for request in requests}) == len(requests)  # no prefix cache helps


def test_a_given_length_is_scaled_once_and_is_at_least_one_token(tmp_path):
    path, given = tmp_path / "trace.csv", [(500, 1), (1, 500), (12, 20), (3, 4)]
    path.write_text("arrival,prompt_tokens,output_tokens\n0,500,1\n1,1,500\n2,12,20\n3,3,4\n")
    trace = {"file": str(path), "format": "csv", "load_factor": 2.0}
    for scale, expected in ((1.0, given), (0.125, [(62, 1), (1, 62), (2, 2), (1, 1)]), (2.0, [(1000, 2), (2, 1000)])):
        requests = requests_of(WorkloadParams.parse({"trace": trace, "length_scale": scale}, "test"), 1, 4, 100.0)
        lengths = [(request.prompt_tokens, request.fixed_output_tokens) for request in requests]
        assert lengths[: len(expected)] == expected
        assert requests[-1].arrival_s == pytest.approx(sum(output for _, output in lengths) / 200)


@pytest.mark.parametrize("cv", [1.0, 3.0])
def test_gamma_gaps_have_the_mean_of_the_uniform_ones_and_their_own_variation(cv):
    gaps = np.diff([request.arrival_s for request in requests_of(one_phase({"arrival_cv": cv}), 3)])
    assert gaps.mean() == pytest.approx(0.1, rel=0.2) and gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.2)
    shape = 1 / cv**2
    assert stats.kstest(gaps, stats.gamma(shape, scale=0.1 / shape).cdf).pvalue > 0.001


def test_the_first_tenants_send_most_under_zipf():
    tenants = {f"tenant-{i}": list(TIERS)[i % 3] for i in range(30)}
    counts = Counter(request.tenant for request in requests_of(one_phase(tenants=tenants, zipf=1.0), 3))
    expected = 1 / np.arange(1, 31)
    observed = [counts[tenant] for tenant in tenants]
    assert stats.chisquare(observed, expected / expected.sum() * sum(observed)).pvalue > 0.001
