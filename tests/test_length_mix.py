"""Length mixes: what a trace was, what is drawn, and what is wrong with a file."""

import json

import numpy as np
import pandas as pd
import pytest

from driftsched_lib.length_mix import LengthMix, LengthMixError
from driftsched_lib.params import Params
from driftsched_lib.validation import PROJECT
from driftsched_lib.workloads import paper_load

AZURE = PROJECT / "data" / "traces" / "azure-conv-2023.json"


@pytest.fixture
def trace():
    rng = np.random.default_rng(1)
    prompts = rng.lognormal(6, 1, 20_000)
    return pd.DataFrame(
        {
            "prompt": prompts.round() + 1,
            "output": (prompts**0.3 * rng.lognormal(3, 0.5, 20_000)).round() + 1,
            "arrival_s": rng.exponential(1, 20_000).cumsum(),
        }
    )


def test_what_is_drawn_is_like_the_trace(trace):
    mix = LengthMix.of(trace.prompt, trace.output, trace.arrival_s, "made up")
    prompts, outputs = mix.draw(20_000, np.random.default_rng(2))
    assert mix.arrival_cv == pytest.approx(1.0, abs=0.05)
    for drawn, real in ((prompts, trace.prompt), (outputs, trace.output)):
        levels = [0.1, 0.25, 0.5, 0.75, 0.9, 0.99]
        assert np.quantile(drawn, levels) == pytest.approx(real.quantile(levels), rel=0.1)
    assert pd.Series(prompts).corr(pd.Series(outputs), "spearman") == pytest.approx(mix.spearman, abs=0.03)
    assert outputs.mean() == pytest.approx(mix.mean_output_tokens, rel=0.03)


def test_a_load_has_the_mixs_lengths_at_its_scale():
    params = Params.load(PROJECT / "params" / "fidelity.yaml", {"length_scale": 0.5, "requests": 3000})
    phases = [phase.model_copy(update={"lengths": str(AZURE)}) for phase in params.workload.phases]
    params = params.model_copy(update={"workload": params.workload.model_copy(update={"phases": phases})})
    requests = [request for phase in paper_load(params, 1, 1000.0) for request in phase.requests]
    mix = LengthMix.load(AZURE)
    outputs = np.array([request.pinned_tokens for request in requests])
    words = np.array([len(request.prompt.split()) for request in requests])
    assert np.median(outputs) == pytest.approx(mix.output_tokens[len(mix.levels) // 2] / 2, rel=0.1)
    assert np.median(words) == pytest.approx(np.interp(0.5, mix.levels, mix.prompt_tokens) / 2, rel=0.1)
    for request in requests:
        assert request.pinned_tokens <= request.max_tokens
        shorter = [limit for limit in params.max_tokens.values() if limit < params.max_tokens[request.job_type]]
        assert request.pinned_tokens > max(shorter, default=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": [0.0, 0.5]}, "levels must be 2 rising|must be"),
        ({"spearman": 2}, "spearman: "),
        ({"output_tokens": None}, "output_tokens: "),
        ({"extra": 1}, "extra: Extra inputs"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, change, message):
    path = tmp_path / "mix.json"
    path.write_text(json.dumps(json.loads(AZURE.read_text()) | change))
    with pytest.raises(LengthMixError, match=f"^{path}: .*({message})"):
        LengthMix.load(path)
    with pytest.raises(LengthMixError, match="cannot be read"):
        LengthMix.load(tmp_path / "nowhere.json")
