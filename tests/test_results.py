"""A results folder holds whole runs or says what is wrong with it."""

import subprocess
import sys

import pandas as pd
import pytest
from helpers import make_request, make_scheduler
from simulation import PAPER_L4, SMALL, request, simulated

from driftsched_lib import Params, results, run_grid
from driftsched_lib.errors import DriftSchedError
from driftsched_lib.experiments.provenance import provenance
from driftsched_lib.requests import Output
from driftsched_lib.serving import StaticBatching


def write(folder, started="2026-01-01", **run):
    tables = {"requests": results.requests_table([]), "steps": pd.DataFrame({"time_s": [1.0]})}
    results.write_run(folder, tables, {"run": run, "started": started})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_runs_are_read_back_with_their_settings_in_the_order_of_serving(tmp_path):
    write(tmp_path / "a", "2026-01-02", policy="sjf", seed=2)
    write(tmp_path / "b", "2026-01-01", policy="fifo", seed=1)
    steps = results.load(tmp_path, "steps")
    assert steps[["run", "policy", "seed", "time_s"]].values.tolist() == [["b", "fifo", 1, 1.0], ["a", "sjf", 2, 1.0]]


def test_a_half_written_run_is_no_run_and_a_damaged_manifest_is_named(tmp_path):
    write(tmp_path / "whole", seed=1)
    for folder in ("half", "other.partial"):
        (tmp_path / folder).mkdir()
    (tmp_path / "other.partial" / "manifest.json").write_text("{}")
    assert [run.name for run in results.runs(tmp_path)] == ["whole"]
    assert not results.is_complete(tmp_path / "half")
    (tmp_path / "whole" / "manifest.json").write_text("{")
    with pytest.raises(DriftSchedError, match="manifest.json is damaged .*delete .*whole and run again"):
        results.load(tmp_path)


@pytest.mark.parametrize("left", ["run.partial", "run"])
def test_what_is_not_finished_is_replaced_but_no_folder_of_runs(tmp_path, left):
    (tmp_path / left).mkdir()
    (tmp_path / left / "junk").write_text("half")
    write(tmp_path / "run", seed=1)
    assert names(tmp_path / "run") == ["manifest.json", "requests.parquet", "steps.parquet"]
    assert names(tmp_path) == ["run"]
    with pytest.raises(DriftSchedError, match=f"{tmp_path.name} holds folders, so it is no run's"):
        write(tmp_path, seed=2)
    assert [run.name for run in results.runs(tmp_path)] == ["run"]


def test_a_run_is_kept_where_there_is_no_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    provenance.cache_clear()
    assert provenance()["git_commit"] is None
    provenance.cache_clear()


def test_a_writer_that_dies_leaves_no_run_and_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        results.write_run(tmp_path / "run", {}, {"run": object()})
    assert not results.is_complete(tmp_path / "run") and not (tmp_path / "run").exists()
    for read in (results.runs, results.load):
        with pytest.raises(DriftSchedError, match="holds no finished run; `python -m driftsched_lib run"):
            read(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DriftSchedError, match="file/out cannot be written"):
        run_grid(Params(), tmp_path / "file" / "out")


def test_records_are_kept_with_their_types(tmp_path):
    scheduler, records = make_scheduler(capacity=1)
    scheduler.submit(make_request(1, arrival_s=0.1234567, max_tokens=64), 0.1234567)
    scheduler.submit(make_request(2), 0.5)
    scheduler.complete(Output(scheduler.next(1.0), 4, 40, 32, 2.0, 3.0))
    run = {"run": {"seed": 7}, "started": ""}
    results.write_run(tmp_path / "run", {"requests": results.requests_table(records)}, run)
    rejected, completed = results.load(tmp_path).itertuples()
    assert (rejected.outcome, rejected.reason, rejected.seed) == ("rejected", "queue full (1)", 7)
    assert pd.isna(rejected.output_tokens) and pd.isna(rejected.dispatch_s)
    assert (completed.outcome, completed.output_tokens, completed.bias_after) == ("completed", 40, 0.95)
    assert completed.arrival_s == 0.123457  # to the microsecond


def test_a_study_is_one_file_and_reads_like_its_folder(tmp_path):
    params = Params.load(PAPER_L4, SMALL)
    run_grid(params, tmp_path / "grid", jobs=1)
    results.pack(tmp_path / "grid", tmp_path / "study.parquet")
    for out in (tmp_path / "study", tmp_path / "study.parquet"):  # with or without its suffix
        for table in ("requests", "queue_depth"):
            both = (results.load(place, table).convert_dtypes() for place in (out, tmp_path / "grid"))
            pd.testing.assert_frame_equal(*both, check_dtype=False)
        assert results.load_speed(out) == results.load_speed(tmp_path / "grid")
        assert results.load_params(out) == params
    name = params.runs()[1].name
    assert results.load_run(tmp_path / "study" / name).manifest["run"]["policy"] == "sjf"
    (tmp_path / "study.parquet").write_bytes(b"PAR1")
    with pytest.raises(DriftSchedError, match="study.parquet is damaged"):
        results.runs(tmp_path / "study")


def test_a_grid_with_options_is_taken_up_again_and_one_of_other_parameters_is_refused_before_anything_runs(tmp_path):
    with_options = {"estimators": [{"paper": {"clip": [0.5, 2.0]}}], "policies": [{"aging": {"rate": 1}}]}
    params = Params.parse({"scheduler": with_options}, "test")
    for _ in range(2):
        assert run_grid(params, tmp_path, runs=[]).empty
    with pytest.raises(DriftSchedError, match="holds runs with another seeds, requests: give another folder"):
        run_grid(params.changed(requests=11, seeds=[9]), tmp_path)


HOLD = """
import sys, time
from pathlib import Path
from driftsched_lib.experiments.results import alone_in
with alone_in(Path(sys.argv[1])):
    print("holds", flush=True)
    time.sleep(600)
"""


def test_two_processes_never_write_to_one_folder_and_a_killed_one_leaves_it_free(tmp_path):
    params = Params.load(PAPER_L4, SMALL)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "holds\n"
    with pytest.raises(DriftSchedError, match=f"another run is writing to {tmp_path}: wait for it"):
        run_grid(params, tmp_path, runs=[])
    assert names(tmp_path) == [".lock"]
    holder.kill()
    holder.communicate()
    for _ in range(2):
        assert run_grid(params, tmp_path, runs=[]).empty


def test_requests_of_older_versions_are_read_as_todays(tmp_path):
    _, records = simulated([request(i, output=4 + i) for i in range(3)], batching=StaticBatching(2, 0.01))
    today = results.requests_table(list(records.values()))
    old = today.drop(columns="engine_first_token_s").assign(first_token_s=today.engine_first_token_s)
    results.write_run(tmp_path / "run", {"requests": old}, {"run": {}, "started": ""})
    read = results.load(tmp_path)[today.columns]
    assert (read.first_token_s == read.finish_s).all() and (read.engine_first_token_s < read.finish_s).all()
    pd.testing.assert_frame_equal(read, today.round(6), check_dtype=False)
