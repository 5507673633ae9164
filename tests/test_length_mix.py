"""Length mixes: what a trace was, what is drawn, and what is wrong with a file."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from driftsched_lib.__main__ import main
from driftsched_lib.errors import ParamsError
from driftsched_lib.validation import PROJECT
from driftsched_lib.workloads.length_mix import LengthMix
from driftsched_lib.workloads.params import WorkloadParams
from driftsched_lib.workloads.synthetic import make_load
from driftsched_lib.workloads.traces import read_trace

TRACES = PROJECT.parent / "shared" / "traces"
AZURE = PROJECT / "data" / "traces" / "azure-conv-2023.json"
SHIPPED = sorted(AZURE.parent.glob("*.json"))
GIVEN = ("prompt_tokens", "fixed_output_tokens")


@pytest.fixture(scope="module")
def trace():
    rng = np.random.default_rng(1)
    prompts = rng.lognormal(6, 1, 20_000)
    outputs = prompts**0.3 * rng.lognormal(3, 0.5, 20_000)
    return rows(prompts.round() + 1, outputs.round() + 1, rng.exponential(1, 20_000).cumsum())


def rows(prompt_tokens, output_tokens, arrival_s):
    """A trace as `read_trace` gives it."""
    columns = {"arrival_s": arrival_s, "prompt_tokens": prompt_tokens, "output_tokens": output_tokens}
    return pd.DataFrame(columns).astype({"prompt_tokens": int, "output_tokens": int})


def chunks(trace, size=700):
    return (trace[i : i + size] for i in range(0, len(trace), size))


def test_what_is_drawn_is_like_the_trace(trace):
    mix = LengthMix.of_trace(chunks(trace), "made up")
    prompts, outputs = mix.draw(20_000, np.random.default_rng(2))
    assert mix.arrival_cv == pytest.approx(1.0, abs=0.05)
    for drawn, real in ((prompts, trace.prompt_tokens), (outputs, trace.output_tokens)):
        levels = [0.1, 0.25, 0.5, 0.75, 0.9, 0.99]
        assert np.quantile(drawn, levels) == pytest.approx(real.quantile(levels), rel=0.1)
    assert pd.Series(prompts).corr(pd.Series(outputs), "spearman") == pytest.approx(mix.spearman, abs=0.03)
    assert outputs.mean() == pytest.approx(mix.mean_output_tokens, rel=0.03)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_load_has_the_mixs_lengths_at_its_scale_and_a_category_by_output(path):
    phase = {"name": "mix", "lengths": str(path), "load_factor": 1.0}
    workload = WorkloadParams.parse({"length_scale": 0.5, "label_prefix": False, "phases": [phase]}, "test")
    [load] = make_load(workload, 3000, 1, 1000.0)
    mix, limits = LengthMix.load(path), workload.max_tokens
    assert re.search(r"(CC-BY 4.0|Apache-2.0).*, (ISCA|FAST) 20\d\d", mix.source)
    prompts, outputs = (np.array([getattr(one, name) for one in load.requests]) for name in GIVEN)
    for lengths, quantiles in ((prompts, mix.prompt_tokens), (outputs, mix.output_tokens)):
        assert np.median(lengths) == pytest.approx(np.interp(0.5, mix.levels, quantiles) / 2, rel=0.1)
        assert round(quantiles[0] / 2) <= lengths.min() and lengths.max() <= round(quantiles[-1] / 2)
    assert outputs.sum() / load.requests[-1].arrival_s == pytest.approx(1000.0, rel=0.1)
    for request in load.requests:
        shorter = [limit for limit in limits.values() if limit < limits[request.job_type]]
        assert request.fixed_output_tokens > max(shorter, default=0)
    with pytest.raises(ParamsError, match="a phase's lengths fix the outputs, .* drift null"):
        WorkloadParams.parse({"phases": [phase], "drift": "abrupt"}, "test")


def test_of_a_long_trace_a_sample_stands_for_the_lengths(trace):
    steady = trace.assign(arrival_s=np.arange(20_000.0))
    whole, sampled = (LengthMix.of_trace(chunks(steady), "made up", sample) for sample in (20_000, 4000))
    assert (sampled.requests, sampled.rate_per_s, sampled.arrival_cv) == (20_000, 1.0, 0.0)
    assert sampled.prompt_tokens[4:-4] == pytest.approx(whole.prompt_tokens[4:-4], rel=0.1)
    assert sampled.spearman == pytest.approx(whole.spearman, abs=0.05)
    # the sample of a trace that drifts is of all of it
    drifts = LengthMix.of_trace(chunks(rows(np.arange(10_000) + 1, 1, np.arange(10_000.0))), "drifts", 1000)
    quartiles = np.interp([0.25, 0.5, 0.75], drifts.levels, drifts.prompt_tokens)
    assert quartiles == pytest.approx([2500, 5000, 7500], abs=600) and drifts.spearman == 0.0


def test_rate_and_cv_are_those_of_the_gaps():
    gaps = np.random.default_rng(3).gamma(0.25, 4.0, 5000)
    mix = LengthMix.of_trace(chunks(rows(5, 5, np.concatenate([[7.0], 7.0 + gaps.cumsum()]))), "made up")
    assert mix.arrival_cv == pytest.approx(pd.Series(gaps).std() / gaps.mean(), abs=1e-4)
    assert mix.rate_per_s == pytest.approx(1 / gaps.mean(), abs=1e-4)
    for arrivals_s in ([], [0.0], [0.0] * 3):
        with pytest.raises(ParamsError, match="^made up: a mix needs at least two requests"):
            LengthMix.of_trace(chunks(rows(1, 1, arrivals_s)), "made up")


@pytest.mark.skipif(not TRACES.exists(), reason="the Azure traces are not at hand")
@pytest.mark.parametrize("name", ["code", "conv"])
def test_the_shipped_mixes_are_those_of_the_public_traces(name):
    shipped = LengthMix.load(AZURE.with_name(f"azure-{name}-2023.json"))
    trace = read_trace(TRACES / f"AzureLLMInferenceTrace_{name}.csv", "azure")
    assert LengthMix.of_trace(trace, shipped.source) == shipped


def test_the_command_keeps_the_shape_of_a_trace_and_shows_its_bad_rows(tmp_path, capsys):
    path, out = tmp_path / "mine.csv", tmp_path / "mix.json"
    path.write_text("when,prompt_tokens,output_tokens\n0,5,6\n1,x,6\n2,7,8\n4,7,9\n")
    arguments = ["trace", str(path), "--format", "csv", "--column", "arrival=when", "--out", str(out)]
    assert main(arguments) == 2 and "line 3: prompt_tokens is 'x'" in capsys.readouterr().err and not out.exists()
    assert main([*arguments, "--skip-bad-rows", "--source", "mine"]) == 0
    text, faults = capsys.readouterr()
    assert "mine: 3 requests, 0.5 per second" in text and "1 of 4 rows are bad and were left out\n  line 3" in faults
    assert LengthMix.load(out).source == "mine"
    assert main([*arguments[:-1], str(tmp_path / "missing" / "mix.json"), "--skip-bad-rows"]) == 2
    assert "missing/mix.json cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": [0.0, 0.5]}, "levels must be 2 rising|must be"),
        ({"spearman": 2}, "spearman: "),
        ({"output_tokens": None}, "output_tokens: "),
        ({"extra": 1}, "extra: unknown key"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, change, message):
    path = tmp_path / "mix.json"
    path.write_text(json.dumps(json.loads(AZURE.read_text()) | change))
    with pytest.raises(ParamsError, match=f"^{path}: .*({message})"):
        LengthMix.load(path)
    with pytest.raises(ParamsError, match="cannot be read"):
        LengthMix.load(tmp_path / "nowhere.json")
