"""Lengths that real vLLM's outputs came to, pinned on another engine or replayed through estimators."""

import numpy as np
import pandas as pd
import pytest

from driftsched_lib.errors import ParamsError
from driftsched_lib.estimators import Kalman, Oracle, RunningQuantiles
from driftsched_lib.experiments import results
from driftsched_lib.experiments.grid import run_grid
from driftsched_lib.experiments.params import Params
from driftsched_lib.studies import recorded
from driftsched_lib.validation import PROJECT
from driftsched_lib.workloads.drift import HOT
from driftsched_lib.workloads.synthetic import prompt_digest, recorded_lengths

NATURAL = PROJECT / "params" / "smoke-natural.yaml"
LENGTHS = "data/natural_lengths/smoke/stationary.parquet"
PROFILE = "data/profiles/driftsched-tiny-cpu.json"
ORACLE = {"scheduler__estimators": ["oracle"], "scheduler__calibration": [False]}


def pinned(**changes):
    engine = {"engine.kind": "simulated", "engine.profile": PROFILE, "engine.args": {}}
    workload = {"workload.recorded_lengths": LENGTHS, "workload.drift": "stationary"}
    return Params.load(NATURAL, engine | workload | {name.replace("__", "."): new for name, new in changes.items()})


def test_recorded_lengths_are_what_the_simulator_generates(tmp_path):
    params = pinned(**ORACLE)
    run_grid(params, tmp_path)
    served = results.load(tmp_path)
    assert len(served) == len(params.seeds) * params.requests
    for row in served.itertuples():
        assert row.output_tokens == row.estimated_tokens == recorded_lengths(LENGTHS)[row.seed][row.request_id][0]
    with pytest.raises(ParamsError, match="end by themselves"):
        recorded.record_lengths(tmp_path)


@pytest.mark.parametrize("changes", [{"seeds": [3]}, {"requests": 50}, {"workload__length_scale": 0.25}])
def test_lengths_of_another_load_are_refused(changes, tmp_path):
    seed = changes.get("seeds", [1])[0]
    with pytest.raises(ParamsError, match=rf"{LENGTHS}: holds no output for request \d+ of seed {seed}"):
        run_grid(pinned(**changes), tmp_path, jobs=1)


def test_files_that_are_none_are_named(tmp_path):
    (tmp_path / "text.parquet").write_text("no parquet")
    pd.DataFrame({"seed": ["one"]}).to_parquet(tmp_path / "columns.parquet")
    for path in (tmp_path / f"{name}.parquet" for name in ("text", "columns", "missing")):
        with pytest.raises(ParamsError, match=f"recorded_lengths: .*{path.name}: cannot be read"):
            run_grid(pinned(workload__recorded_lengths=str(path)), tmp_path / "out", jobs=1)
    with pytest.raises(ParamsError, match="recorded_lengths are of natural outputs"):
        pinned(workload__output_length="limit")


def test_the_reference_runs_are_replayed_as_they_were():
    study = PROJECT / "data" / "reference_runs"
    replays = recorded.paper_protocol(study, {"kalman": Kalman}, delay=0, max_runs=1)
    run = results.load_run(study / replays.run[0]).table("requests").query("outcome == 'completed'")
    run = run.iloc[run.request_id.astype(int).argsort()]
    for column in ("actual_tokens", "category", "tenant"):
        assert replays[column].tolist() == run[column].tolist()


def test_what_is_known_from_the_prompt_leaves_the_output_itself_out():
    lengths = pd.DataFrame({"prompt_digest": [1, 1, 1, 2, 2, 3], "output_tokens": [10, 20, 30, 5, 5, 99]})
    floor = recorded.known_from_the_prompt(lengths)
    assert floor.mae_tokens == pytest.approx((15 + 0 + 15 + 0 + 0) / 5)
    assert floor.variance_explained == pytest.approx(1 - (15**2 * 2 / 5) / np.var([10, 20, 30, 5, 5]))


def test_a_warm_estimator_serves_the_same_requests(tmp_path):
    params = pinned(**ORACLE, scheduler__policies=["sjf"])
    summary = run_grid(params, tmp_path, jobs=1)
    runs = recorded.served_warm(params, results.load_speed(tmp_path), Oracle)
    assert runs.seed.tolist() == params.seeds and (runs.completed == 1).all()
    assert runs.p50_e2e_s.tolist() == pytest.approx(summary.p50_e2e_s.tolist(), rel=1e-5)


def test_worth_is_what_runs_measured_with_how_their_estimates_were(tmp_path):
    params = pinned(scheduler__policies=["sjf"], scheduler__estimators=["pooled", "oracle"])
    runs = recorded.worth(params.changed(scheduler__vary_estimates_for=["sjf"]), tmp_path).set_index("estimator")
    assert list(runs.groupby("estimator").seed.agg(list)) == [params.seeds] * 3
    assert runs.mae_tokens["oracle"].max() == 0 and (runs.p50_e2e_s > 0).all()
    late = results.load(tmp_path).query("estimator == 'pooled' and seed == 1 and request_id.astype('int') >= 15")
    error = (late.estimated_tokens - late.actual_tokens).abs().mean()
    assert runs[runs.seed == 1].mae_tokens["pooled"] == pytest.approx(error)
    assert runs.mae_tokens["regression, warm"].mean() < runs.mae_tokens["pooled"].mean()


def test_a_warm_estimator_has_learnt_from_all_other_seeds_and_not_from_its_own():
    lengths, made = pd.read_parquet(PROJECT / LENGTHS), []

    class Watched(RunningQuantiles):
        def __init__(self, base_tokens):
            super().__init__(base_tokens=base_tokens)
            made.append([])

        def observe(self, request, output_tokens):
            made[-1].append(output_tokens)
            super().observe(request, output_tokens)

    params = pinned(scheduler__policies=["sjf"])
    recorded.served_warm(params, results.EngineSpeed(100.0, 0.1, 0.1), Watched)
    for seed, seen in zip(params.seeds, made, strict=True):
        own, others = (lengths.output_tokens[lengths.seed.eq(seed) == mine].tolist() for mine in (True, False))
        assert sorted(seen[: len(others)]) == sorted(others) and sorted(seen[len(others) :]) == sorted(own)


def test_a_hotter_load_is_the_one_that_was_recorded():
    lengths = pd.read_parquet(PROJECT / "data" / "natural_lengths" / "smoke" / "hotter.parquet")
    params = Params.load(NATURAL, {"workload.drift": "hotter"})
    for seed in params.seeds:
        requests, own = recorded.requests_of(params, seed), lengths[lengths.seed == seed].set_index("request_id")
        assert [prompt_digest(request) for request in requests] == own.prompt_digest[range(len(requests))].tolist()
        assert {request.temperature for request in requests} == {None, HOT}
