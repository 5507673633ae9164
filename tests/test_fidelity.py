"""The committed real runs: the committed profiles come from them, and a replay serves what reality served."""

from itertools import product

import pandas as pd
import pytest
from simulation import PAPER_L4, SMALL

from driftsched_lib.__main__ import main
from driftsched_lib.engines.profile import Profile
from driftsched_lib.experiments import results
from driftsched_lib.experiments.grid import run_grid
from driftsched_lib.experiments.params import Params
from driftsched_lib.experiments.profiling import profile_of_run
from driftsched_lib.studies import fidelity
from driftsched_lib.validation import PROJECT, in_project

RUNS = PROJECT / "data" / "fidelity_runs"
PROFILES = {"tiny": "driftsched-tiny-cpu", "llama-130m": "llama-130m-shape-cpu"}
PROFILES |= {"qwen-1.8b": "h100-qwen1.5-1.8b-shape"}


@pytest.fixture(scope="module", params=fidelity.ENGINES)
def fitted(request):
    """An engine, the run that its profile is fitted to, and the fit."""
    [run] = results.runs(RUNS / f"{request.param}-fit")
    return request.param, run, profile_of_run(RUNS / f"{request.param}-fit" / run.name)


def test_the_committed_profile_is_the_fit_of_the_committed_run(fitted):
    engine, run, fit = fitted
    committed, table = Profile.load(PROJECT / f"data/profiles/{PROFILES[engine]}.json"), {"decode_s"}
    assert committed.step.model_dump(exclude=table) == pytest.approx(fit.step.model_dump(exclude=table), rel=1e-6)
    assert committed.step.decode_s == pytest.approx(fit.step.decode_s, rel=1e-6)
    assert committed.limits == fit.limits and committed.provenance.hardware == fit.provenance.hardware
    assert fidelity.slowness(run, committed) == pytest.approx(1.0)


def test_what_a_run_is_expected_to_take_is_told_by_the_three_before_it_and_not_by_itself(fitted):
    engine, run, profile = fitted
    runs, speeds = fidelity.stored(RUNS, engine), fidelity.speeds(RUNS, engine, profile)
    assert speeds.index[0] == f"fit/{run.name}" and speeds.index.is_unique
    started = [runs[name].manifest["started"] for name in speeds.index]
    assert started == sorted(started) and len(started) == sum(map(len, map(results.runs, RUNS.glob(f"{engine}-*"))))
    for i, name in enumerate(speeds.index):
        assert speeds.slowness[name] == fidelity.slowness(runs[name], profile)
        assert speeds.expected[name] == pytest.approx(speeds.slowness.iloc[max(0, i - 3) : i].mean() if i else 1.0)


def test_a_replay_serves_what_reality_served(fitted):
    _, run, profile = fitted
    tables = (run.table("requests"), fidelity.replay(run, profile))
    real, replayed = (table.set_index("request_id").sort_index() for table in tables)
    same = ["tenant", "category", "outcome", "prompt_tokens", "output_tokens"]
    assert (replayed[same] == real[same]).all().all()
    gaps = replayed.arrival_s - real.arrival_s  # phases begin when the one before has drained
    assert gaps.groupby(real.phase).std().max() < 1e-5


def test_what_is_served_again_meets_the_same_arrivals(fitted):
    runs = fidelity.stored(RUNS, fitted[0])
    for name in (name for name in runs if "-again/" in name):
        assert runs[name].speed == runs[name.replace("-again/", "/")].speed == fitted[1].speed


def test_a_simulated_run_replayed_by_its_own_profile_is_itself(tmp_path):
    params = Params.load(PAPER_L4, SMALL)
    run_grid(params, tmp_path, jobs=1)
    for run in results.runs(tmp_path):
        replayed = fidelity.measures(fidelity.replay(run, Profile.load(in_project(params.engine.profile))))
        assert dict(replayed) == pytest.approx(dict(fidelity.measures(run.table("requests"))), rel=1e-5, abs=1e-5)
    assert fidelity.by_policy(tmp_path)["E2E P50"].groupby("batching").idxmin().tolist() == [("continuous", "sjf")]


def test_errors_larger_than_the_noise_tell_the_simulator_from_reality_and_smaller_ones_do_not():
    noise = [0.01, -0.02, 0.03, -0.04, 0.05, -0.06, 0.07, -0.08]
    sizes = {"reality again": 1.0, "worse": -2.0, "better": 0.5}
    rows = [
        {"engine": engine, "run": f"run {i}", "source": source} | dict.fromkeys(fidelity.GOALS, sizes[source] * error)
        for engine, source, (i, error) in product(("tiny", "llama-130m"), sizes, enumerate(noise))
    ]
    errors = pd.DataFrame([*rows, rows[-1] | {"run": "served once"}]).assign(measurement="policies")
    worse, better = (fidelity.told_apart(errors, source) for source in ("worse", "better"))
    assert len(better) == 2 * len(fidelity.GOALS)
    assert set(worse.p) == {1 / 2**8} and set(better.p) == {1.0}
    assert set(worse.nearer) == {0.0} and set(better.nearer) == {1.0}
    assert better["median"].to_numpy() == pytest.approx(0.0225) and better.again.to_numpy() == pytest.approx(0.045)


def test_an_engine_that_there_is_not_is_named(tmp_path, capsys):
    assert main(["fidelity", "--engines", "tiny", "gpt", "--out", str(tmp_path / "out")]) == 2
    assert "gpt" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("engine", fidelity.ENGINES)
def test_every_measurement_has_valid_parameters(engine):
    file = PROJECT / "params" / "fidelity.yaml"
    for grid in ("fit", *fidelity.MEASUREMENTS):
        params = fidelity.grid_of(file, engine, grid)
        assert params.runs() and (params.engine == Params.load(file).engine) == (engine == "tiny")
        assert grid != "fit" or len(params.workload.phases) == 16
