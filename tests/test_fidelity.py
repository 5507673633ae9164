"""The committed real runs: the committed profiles come from them, and a replay serves what reality served."""

import pandas as pd
import pytest
from simulation import PAPER_L4, SMALL

from driftsched_lib.__main__ import main
from driftsched_lib.engines.fit import profile_of_run
from driftsched_lib.engines.profile import Profile
from driftsched_lib.experiments import results
from driftsched_lib.experiments.grid import run_grid
from driftsched_lib.experiments.params import Params
from driftsched_lib.studies import fidelity
from driftsched_lib.validation import PROJECT, in_project

RUNS = PROJECT / "data" / "fidelity_runs"
PROFILES = {
    "tiny": "driftsched-tiny-cpu.json",
    "llama-130m": "llama-130m-shape-cpu.json",
    "qwen-1.8b": "h100-qwen1.5-1.8b-shape.json",
}


def fitted_run(engine):
    [folder] = results.run_folders(RUNS / f"{engine}-fit")
    return folder


@pytest.mark.parametrize("engine", fidelity.ENGINES)
def test_the_committed_profile_is_the_fit_of_the_committed_run(engine):
    committed = Profile.load(PROJECT / "data" / "profiles" / PROFILES[engine])
    fitted = profile_of_run(fitted_run(engine))
    table = {"decode_s"}
    assert committed.step.model_dump(exclude=table) == pytest.approx(fitted.step.model_dump(exclude=table), rel=1e-6)
    assert committed.step.decode_s == pytest.approx(fitted.step.decode_s, rel=1e-6)
    assert committed.limits == fitted.limits and committed.provenance.hardware == fitted.provenance.hardware
    assert fidelity.slowness(fitted_run(engine), committed) == pytest.approx(1.0)


@pytest.mark.parametrize("engine", fidelity.ENGINES)
def test_what_a_run_is_expected_to_take_is_told_by_the_three_before_it_and_not_by_itself(engine):
    profile = profile_of_run(fitted_run(engine))
    speeds = fidelity.speeds(RUNS, engine, profile)
    assert speeds.index[0] == fitted_run(engine) and speeds.index.is_unique
    started = [results.load_manifest(folder)["started"] for folder in speeds.index]
    assert started == sorted(started) and len(started) == sum(1 for _ in RUNS.glob(f"{engine}-*/*/manifest.json"))
    for i, folder in enumerate(speeds.index):
        assert speeds.slowness[folder] == fidelity.slowness(folder, profile)
        assert speeds.expected[folder] == pytest.approx(speeds.slowness.iloc[max(0, i - 3) : i].mean() if i else 1.0)


@pytest.mark.parametrize("engine", fidelity.ENGINES)
def test_a_replay_serves_what_reality_served(engine):
    folder = fitted_run(engine)
    real = pd.read_parquet(folder / "requests.parquet").set_index("request_id").sort_index()
    replayed = fidelity.replay(folder, profile_of_run(folder)).set_index("request_id").sort_index()
    for column in ("arrival_s", "tenant", "category", "outcome", "prompt_tokens", "output_tokens"):
        assert (replayed[column] == real[column]).all() or column == "arrival_s"
    gaps = replayed.arrival_s - real.arrival_s  # phases begin when the one before has drained
    assert gaps.groupby(real.phase).std().max() < 1e-5


@pytest.mark.parametrize("engine", fidelity.ENGINES)
def test_what_is_served_again_meets_the_same_arrivals(engine):
    for folder in RUNS.glob(f"{engine}-*-again"):
        name = folder.name.removeprefix(f"{engine}-").removesuffix("-again")
        speeds = {results.load_speed(RUNS / f"{engine}-{suffix}") for suffix in ("fit", name, f"{name}-again")}
        assert len(speeds) == 1


def test_a_simulated_run_replayed_by_its_own_profile_is_itself(tmp_path):
    params = Params.load(PAPER_L4, SMALL)
    run_grid(params, tmp_path, jobs=1)
    for folder in results.run_folders(tmp_path):
        replayed = fidelity.replay(folder, Profile.load(in_project(params.profile)))
        assert fidelity.measures(replayed).to_dict() == pytest.approx(
            fidelity.measures(pd.read_parquet(folder / "requests.parquet")).to_dict(), rel=1e-5, abs=1e-5
        )
    assert fidelity.by_policy(tmp_path)["E2E P50"].groupby("batching").idxmin().tolist() == [("continuous", "sjf")]


def test_only_an_order_that_reality_repeats_must_be_simulated():
    real, again, simulated = (pd.Series(values, ["a", "b", "c"]) for values in ([1, 2, 3], [2, 1, 3], [1, 4, 3]))
    kept = fidelity.order_kept(real, again, simulated)
    assert kept == {"pairs": 3, "repeat": 2, "simulated alike": 1, "turned": "b before c"}


def test_errors_larger_than_the_noise_tell_the_simulator_from_reality_and_smaller_ones_do_not():
    noise = [0.01, -0.02, 0.03, -0.04, 0.05, -0.06, 0.07, -0.08]
    sizes = {"reality again": 1.0, "worse": -2.0, "better": 0.5}
    rows = [
        {"engine": engine, "measurement": "policies", "run": f"run {i}", "source": source}
        | dict.fromkeys(fidelity.GOALS, size * error)
        for engine in ("tiny", "llama-130m")
        for source, size in sizes.items()
        for i, error in enumerate(noise)
    ]
    once = rows[-1] | {"run": "served once"}
    errors = pd.DataFrame([*rows, once])
    worse, better = (fidelity.told_apart(errors, source) for source in ("worse", "better"))
    assert len(better) == 2 * len(fidelity.GOALS)
    assert set(worse.p) == {1 / 2**8} and set(better.p) == {1.0}
    assert set(worse.nearer) == {0.0} and set(better.nearer) == {1.0}
    assert better["median"].to_numpy() == pytest.approx(0.0225) and better.again.to_numpy() == pytest.approx(0.045)


def test_an_engine_that_there_is_not_is_named(tmp_path, capsys):
    assert main(["fidelity", "--engines", "tiny", "gpt", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "--engines: gpt; there are tiny, llama-130m, qwen-1.8b\n"
    assert not (tmp_path / "out").exists()


def test_every_measurement_has_valid_parameters():
    grids = {"fit": fidelity.FIT} | fidelity.MEASUREMENTS
    for changes in fidelity.ENGINES.values():
        for difference in grids.values():
            assert Params.load(PROJECT / "params" / "fidelity.yaml", changes | difference).runs()
