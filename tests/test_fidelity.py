"""The committed real runs: the committed profiles come from them, and a replay serves what reality served."""

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
SIMULATED = ("simulated", "at its speed")


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


def test_a_run_is_compared_with_its_repetition_and_with_its_simulation_at_either_speed(tmp_path):
    for name in ("rates", "rates-again"):
        (tmp_path / f"llama-130m-{name}.parquet").symlink_to(RUNS / "llama-130m-rates.parquet")
    profile, measured = Profile.load(PROJECT / f"data/profiles/{PROFILES['llama-130m']}.json"), list(fidelity.GOALS)
    table = fidelity.compare(tmp_path, "llama-130m", profile.slowed(1.5)).set_index("source")
    assert len(table) == 4 * len(results.runs(RUNS / "llama-130m-rates")) and set(table.measurement) == {"rates"}
    assert (table.loc["real", measured].to_numpy() == table.loc["real again", measured].to_numpy()).all()
    far, near = ((table.loc[side, "E2E mean"] / table.loc["real", "E2E mean"].to_numpy()) for side in SIMULATED)
    assert far.min() > 1.3 and near.between(0.9, 1.1).all()


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
