"""Grids on simulated engines: the same to the byte however they are run, and refused where they cannot be."""

import os
import sys
from operator import index

import pytest
from simulation import COSTS, PAPER_L4, SMALL, contents, make_profile
from tqdm.auto import tqdm

from driftsched_lib import Params, results
from driftsched_lib.__main__ import main
from driftsched_lib.engines.load import load_engine
from driftsched_lib.errors import DriftSchedError, ParamsError, RunError
from driftsched_lib.experiments import grid as experiment
from driftsched_lib.experiments.grid import finish_all, run_grid
from driftsched_lib.experiments.profiling import profile_of_run
from driftsched_lib.experiments.speed import measure_speed
from driftsched_lib.validation import PROJECT


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A small grid run by two processes: its parameters, folder and summary."""
    out, params = tmp_path_factory.mktemp("grid"), Params.load(PAPER_L4, SMALL)
    return params, out, run_grid(params, out, jobs=2)


def test_a_grid_is_whole_not_run_again_and_the_same_to_the_byte_by_one_process(grid, tmp_path):
    params, out, summary = grid
    assert summary.run.tolist() == [run.name for run in params.runs()]
    assert (summary.completed == 60).all()
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/requests.parquet")}
    assert run_grid(params, out).equals(summary)
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/requests.parquet")} == before
    run_grid(params, tmp_path, jobs=1)
    assert contents(tmp_path) == contents(out)


def test_the_oracle_runs_once_without_error_and_lengths_are_the_same_whatever_the_policy(grid):
    _, out, summary = grid
    known = summary[(summary.estimator == "oracle") & (summary.token_counter == "tokenizer")]
    assert known.policy.tolist() == ["sjf"] * 2 and (known.mae_tokens == 0).all()
    lengths = results.load(out).groupby(["seed", "request_id"])[["prompt_tokens", "output_tokens"]].nunique()
    assert (lengths == 1).all().all()


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        (None, {"jobs": 2}, "served one at a time"),
        (None, {"backend": "ray"}, "served one at a time"),
        (PAPER_L4, {"jobs": 0}, "jobs: it is 0"),
        (PAPER_L4, {"jobs": -2}, "jobs: it is -2"),
    ],
)
def test_real_engines_share_no_machine_and_no_jobs_are_refused(tmp_path, file, options, message):
    with pytest.raises(ParamsError, match=message):
        run_grid(Params.load(file, SMALL) if file else Params(), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


REPLACED = "engine.args: they replace the profile's limits: "


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine.profile": "nowhere.json"}, "profile: .*nowhere.json: cannot be read"),
        ({"engine.args": {"max_num_seqs": 0}}, f"{REPLACED}max_num_seqs"),
        ({"engine.args": {"dtype": "float16"}}, f"{REPLACED}dtype"),
    ],
)
def test_an_engine_that_cannot_be_is_named_before_any_run(changes, message):
    with pytest.raises(ParamsError, match=message):
        load_engine(Params.load(PAPER_L4, changes).engine)


@pytest.mark.parametrize("changes", [{"engine.args.kv_blocks": 50}, {"workload.length_scale": 0.001}])
def test_an_engine_whose_slots_are_never_all_taken_has_a_capacity(changes):
    params = Params.load(PAPER_L4, SMALL | changes)
    assert 0 < measure_speed(params, load_engine(params.engine, log_steps=True)).capacity_tokens_per_s < 1e6


@pytest.mark.parametrize("limits", [{"max_model_len": 8}, {"kv_blocks": 2}])
def test_an_engine_that_can_serve_nothing_has_no_capacity(tmp_path, limits):
    with pytest.raises(RunError, match="speed cannot be measured: .* finished none of 192 requests .*tokens"):
        run_grid(Params.load(PAPER_L4, SMALL | {"engine.args": limits}), tmp_path, jobs=1)


def test_replicas_serve_as_one_engine(tmp_path):
    small, by_router = SMALL | {"seeds": [1], "engine.replicas": 3, "engine.args.max_num_seqs": 4}, {}
    for router in ("round_robin", "least_requests", "least_estimated_tokens"):
        params = Params.load(PAPER_L4, small | {"engine.router": router})
        assert load_engine(params.engine).max_num_seqs == 12
        summary = run_grid(params, tmp_path / router, jobs=1)
        assert (summary.completed == 60).all()
        by_router[router] = summary.mean_e2e_s.tolist()
    assert len(set(map(tuple, by_router.values()))) > 1


def test_progress_counts_the_requests_of_finished_runs(tmp_path, monkeypatch):
    seen = []

    class Progress(tqdm):
        def close(self):
            seen.append((self.n, self.total))
            super().close()

    monkeypatch.setattr(experiment, "tqdm", Progress)
    params = Params.load(PAPER_L4, SMALL | {"seeds": [1], "scheduler.policies": ["fifo"]})
    run_grid(params, tmp_path, jobs=1)
    assert seen[0] == (60, 60)


def test_a_profile_needs_a_finished_run_with_steps_and_a_file_that_can_be_written(grid, tmp_path, capsys):
    _, out, _ = grid
    study = PROJECT / "data" / "fidelity_runs" / "tiny-fit"
    for run, file, message in (
        (tmp_path, "profile.json", "holds no finished run, it has no manifest.json"),
        (out / results.runs(out)[0].name, "profile.json", "no profile can be fitted: the run kept no steps"),
        (study / results.runs(study)[0].name, "missing/profile.json", "missing/profile.json cannot be written"),
    ):
        assert main(["profile", str(run), "--out", str(tmp_path / file)]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / file).exists()
    with pytest.raises(ParamsError):
        profile_of_run(tmp_path)


@pytest.mark.parametrize(("grid_of", "ratio"), [("tiny-fit", 1.489), ("tiny-azure", 1.45)])
def test_a_profile_knows_tokens_per_word_from_texts_alone(grid_of, ratio):
    run = results.runs(PROJECT / "data" / "fidelity_runs" / grid_of)[0]
    assert profile_of_run(run).tokens_per_prompt_word == pytest.approx(ratio, abs=1e-3)


def test_slower_is_every_cost_times_as_high():
    profile = make_profile()
    slowed = {name: 2 * cost for name, cost in COSTS.items() if name != "decode_s"}
    slowed["decode_s"] = {n: 2 * cost for n, cost in COSTS["decode_s"].items()}
    assert profile.slowed(2.0).step.model_dump() == slowed
    assert profile.slowed(2.0).limits == profile.limits


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_task_is_done_once(jobs):
    assert sorted(finish_all(index, [(i,) for i in range(20)], jobs)) == list(range(20))
    assert list(finish_all(index, [], jobs)) == []


def test_a_dead_worker_what_a_task_raises_and_a_missing_ray_are_told(monkeypatch):
    with pytest.raises(RunError, match="a worker died.*Run the same again to go on"):
        list(finish_all(os._exit, [(1,), (2,)], 2))
    with pytest.raises(KeyError):
        list(finish_all({}.__getitem__, [(1,)], 2))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DriftSchedError, match="backend: Ray is not installed"):
        list(finish_all(index, [(1,)], 1, "ray"))
