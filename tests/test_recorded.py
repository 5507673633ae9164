"""Lengths that real vLLM's outputs came to, pinned on another engine or replayed through estimators."""

import numpy as np
import pandas as pd
import pytest

from driftsched_lib.errors import DriftSchedError, ParamsError
from driftsched_lib.estimators import Kalman, Oracle, RunningQuantiles
from driftsched_lib.experiments import results
from driftsched_lib.experiments.grid import run_grid
from driftsched_lib.experiments.params import Params
from driftsched_lib.requests import Request
from driftsched_lib.studies.recorded import (
    known_from_the_prompt,
    natural_loads,
    paper_protocol,
    prompt_means,
    record_lengths,
    recorded_load,
    served_with,
    warmed,
)
from driftsched_lib.validation import PROJECT
from driftsched_lib.workloads.drift import HOT
from driftsched_lib.workloads.synthetic import prompt_digest, recorded_lengths

NATURAL = PROJECT / "params" / "smoke-natural.yaml"
LENGTHS = "data/natural_lengths/smoke/stationary.parquet"
PROFILE = "data/profiles/driftsched-tiny-cpu.json"


def pinned(**changes):
    natural = Params.load(NATURAL).model_dump()
    natural["workload"]["drift"] = "stationary"
    simulated = {"engine": "simulated", "profile": PROFILE, "engine_args": {}, "recorded_lengths": LENGTHS}
    return Params.parse(natural | simulated | changes, "test")


def test_recorded_lengths_are_what_the_simulator_generates(tmp_path):
    params = pinned(estimators=["oracle"], calibration=[False])
    run_grid(params, tmp_path)
    served = results.load(tmp_path)
    assert len(served) == len(params.seeds) * params.requests
    for row in served.itertuples():
        assert row.output_tokens == row.estimated_tokens == recorded_lengths(LENGTHS)[row.seed][row.request_id][0]
    with pytest.raises(DriftSchedError, match="end by themselves"):
        record_lengths(tmp_path)


@pytest.mark.parametrize("changes", [{"seeds": [3]}, {"requests": 50}, {"length_scale": 0.25}])
def test_lengths_of_another_load_are_refused(changes, tmp_path):
    with pytest.raises(
        ParamsError, match=rf"{LENGTHS}: holds no output of request \d+ of seed {changes.get('seeds', [1])[0]}"
    ):
        run_grid(pinned(**changes), tmp_path, jobs=1)


def test_files_that_are_none_are_named(tmp_path):
    (tmp_path / "text.parquet").write_text("no parquet")
    pd.DataFrame({"seed": ["one"]}).to_parquet(tmp_path / "columns.parquet")
    for name in ("text", "columns", "missing"):
        path = str(tmp_path / f"{name}.parquet")
        with pytest.raises(ParamsError, match=f"recorded_lengths: .*{name}.parquet: cannot be read"):
            run_grid(pinned(recorded_lengths=path), tmp_path / "out", jobs=1)
    with pytest.raises(ParamsError, match="recorded_lengths: they are of natural outputs"):
        pinned(output_length="limit")


def test_recorded_runs_can_be_replayed():
    records = pd.DataFrame(
        {
            "request_id": ["10", "2", "3"],
            "outcome": ["completed", "completed", "failed"],
            "category": "short_qa",
            "input_tokens": 4,
            "actual_tokens": pd.array([20, 10, None], dtype="Int64"),
        }
    )
    offered = {
        name: Request(name, 0.0, f"What is {name}?", "tenant", "batch", max_tokens=64) for name in ("2", "3", "10")
    }
    requests, actual = recorded_load(records, offered)
    assert [request.prompt for request in requests] == ["What is 2?", "What is 10?"] and actual == [10, 20]


def test_the_reference_runs_are_replayed_as_they_were(tmp_path):
    """The paper's estimator, replayed with no delay on a run of one request at a time, would be the run's own; here the
    requests and what they came to are."""
    folder = PROJECT / "data" / "reference_runs"
    replays = paper_protocol(folder, {"kalman": Kalman}, delay=0, most_runs=1)
    run = results.read_table(folder / replays.run[0], "requests")
    assert replays.actual_tokens.sum() == run.actual_tokens.sum() and len(replays) == (run.outcome == "completed").sum()
    assert replays.category.value_counts().to_dict() == run.category.value_counts().to_dict()


def test_what_is_known_from_the_prompt_leaves_the_output_itself_out():
    lengths = pd.DataFrame({"prompt_digest": [1, 1, 1, 2, 2, 3], "output_tokens": [10, 20, 30, 5, 5, 99]})
    floor = known_from_the_prompt(lengths)
    assert floor.mae_tokens == pytest.approx((15 + 0 + 15 + 0 + 0) / 5)
    actual = np.array([10, 20, 30, 5, 5])
    assert floor.variance_explained == pytest.approx(1 - (15**2 * 2 / 5) / actual.var())


def test_shortest_first_on_what_parameters_cannot_name_serves_the_same_requests(tmp_path):
    params = pinned(estimators=["oracle"], calibration=[False], policies=["sjf"])
    summary = run_grid(params, tmp_path, jobs=1)
    speed = results.load_speed(tmp_path)
    for name, estimator_of in (
        ("prompt mean", prompt_means(params)),
        ("warm", warmed(params, Kalman)),
        ("oracle", lambda seed, count_tokens: Oracle(base_tokens=params.max_tokens)),
    ):
        runs = served_with(params, speed, name, estimator_of)
        assert runs.seed.tolist() == params.seeds and (runs.completed == 1).all() and (runs.p50_e2e_s > 0).all()
    assert runs.p50_e2e_s.tolist() == pytest.approx(summary.p50_e2e_s.tolist(), rel=1e-5)  # of the oracle


def test_what_is_warm_has_learnt_from_all_other_seeds_and_not_from_its_own():
    params = pinned()
    lengths = pd.read_parquet(PROJECT / params.recorded_lengths)
    estimator = warmed(params, RunningQuantiles)(1, len)
    seen = sum(map(len, estimator.state_.categories.values()))
    assert seen == (lengths.seed != 1).sum()


def test_a_hotter_load_is_the_one_that_was_recorded():
    lengths = pd.read_parquet(PROJECT / "data" / "natural_lengths" / "smoke" / "hotter.parquet")
    for seed, requests in zip((1, 2), natural_loads(NATURAL, "hotter", (1, 2)), strict=True):
        own = lengths[lengths.seed == seed].set_index("request_id")
        assert [prompt_digest(request) for request in requests] == own.prompt_digest[range(len(requests))].tolist()
        assert {request.temperature for request in requests} == {None, HOT}
