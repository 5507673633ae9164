"""A grid of runs: params in, a results folder out; finished runs are never repeated."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from math import isnan, nan
from pathlib import Path
from traceback import clear_frames
from typing import Any

import pandas as pd
import yaml
from tqdm.auto import tqdm

from driftsched_lib.errors import DriftSchedError, ParamsError, RunError
from driftsched_lib.experiments import results
from driftsched_lib.experiments.engine import load_engine, measure_speed, warm_up
from driftsched_lib.experiments.interrupts import remembered
from driftsched_lib.experiments.metrics import summarize
from driftsched_lib.experiments.parallel import Backend, finish_all
from driftsched_lib.experiments.params import Params, Run
from driftsched_lib.experiments.results import EngineSpeed
from driftsched_lib.experiments.run import serve_run
from driftsched_lib.requests import Record
from driftsched_lib.workloads.replay import check_trace
from driftsched_lib.workloads.synthetic import length_mix, recorded_lengths

COMPILED_FROM = 100_000
"""Requests of a grid in all: a process takes as long to load the compiled loop as to serve some 30,000 without."""


def run_grid(
    params: Params,
    out: str | Path,
    runs: Sequence[Run] | None = None,
    jobs: int | None = None,
    backend: Backend = "loky",
) -> pd.DataFrame:
    """Serve the runs that `out` does not hold yet, and return the summary, a row a run, in the order of the grid.

    Parameters:
        runs: a part of `params.runs()`; None for all.
        jobs: simulated runs at a time; None for one a core.  Real ones are served one by one, for they would share the
            cores whose speed they measure.
        backend: see `parallel.finish_all`.

    Raises:
        ParamsError: several jobs, or a cluster, for a real engine; an engine that cannot be loaded.
        ParamsError: a length mix that cannot be read.
        DriftSchedError: `out` holds runs of other parameters, or what is damaged, or cannot be written.
        RunError: an engine failed.
        KeyboardInterrupt: ... with a message, that finished runs are kept.
    """
    out = Path(out)
    if jobs is not None and jobs < 1 and jobs != -1:
        raise ParamsError(f"jobs: it is {jobs}, it must be at least 1, or -1 for one a core")
    simulated = params.engine == "simulated"
    if not simulated and (jobs not in (None, 1) or backend != "loky"):
        raise ParamsError("jobs: runs on real vLLM would share this machine's cores: they are served one at a time")
    for phase in params.workload.phases:
        if phase.lengths is not None:
            length_mix(phase.lengths)  # one that is wrong is named before an engine is loaded
    if params.recorded_lengths is not None:
        recorded_lengths(params.recorded_lengths)
    if params.workload.trace is not None:
        check_trace(params)
    _claim(out, params)
    try:
        _serve_missing(params, out, params.runs() if runs is None else runs, jobs, backend)
    except BaseException as error:
        _release(error)
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"finished runs are kept in {out}: run the same again to go on") from None
        raise
    return write_summary(params, out)


def _release(error: BaseException | None) -> None:
    """Let go of what lives in the frames of a traceback: a notebook keeps it, and with it an engine and its memory."""
    released: list[BaseException] = []  # contexts can form a circle
    while error is not None and error not in released:
        clear_frames(error.__traceback__)
        released.append(error)
        error = error.__cause__ or error.__context__


def _serve_missing(params: Params, out: Path, runs: Sequence[Run], jobs: int | None, backend: Backend) -> None:
    todo = [run for run in runs if not results.is_complete(out / run.name)]
    if todo:
        with (
            remembered(at_once=True) as check,
            tqdm(total=len(todo) * params.requests, unit="request", leave=False, smoothing=0) as progress,
        ):
            if params.engine == "simulated":
                one = params.model_copy(update={"replicas": 1})
                speed = _engine_speed(params, load_engine(one, log_steps=True), out)
                compiled = len(todo) * params.requests >= COMPILED_FROM
                tasks = [(params, run, speed, compiled) for run in todo]
                for run, tables, manifest in finish_all(_simulate, tasks, -1 if jobs is None else jobs, backend):
                    results.write_run(out / run.name, tables, manifest)
                    progress.update(params.requests)
                    check()
            else:
                _serve_one_by_one(params, todo, out, progress, check)


def _simulate(
    params: Params, run: Run, speed: EngineSpeed, compiled: bool
) -> tuple[Run, dict[str, pd.DataFrame], dict[str, Any]]:
    return run, *_serve(params, run, load_engine(params), speed, compiled=compiled)


def _serve(params: Params, run: Run, engine, speed: EngineSpeed, **options) -> tuple[dict, dict[str, Any]]:
    """`serve_run`, with the run's row of the summary in its manifest: whoever served it has its tables at hand."""
    tables, manifest = serve_run(params, run, engine, speed, **options)
    row = _summary(params, tables["requests"], speed)
    return tables, manifest | {"summary": {name: None if isnan(value) else value for name, value in row.items()}}


def _summary(params: Params, requests: pd.DataFrame, speed: EngineSpeed) -> dict[str, float]:
    return summarize(requests, speed.idle_ttft_s, speed.idle_tpot_s, params.job_class_bounds)


def _serve_one_by_one(
    params: Params, runs: Sequence[Run], out: Path, progress: tqdm, check: Callable[[], None]
) -> None:
    with closing(load_engine(params)) as engine:
        warm_up(params, engine)
        speed = _engine_speed(params, engine, out)
        for i, run in enumerate(runs, start=1):
            progress.set_description(f"run {i} of {len(runs)}: {run.batching} {run.policy} seed {run.seed}")
            _serve_and_keep(params, run, engine, speed, out, progress)
            check()
            if i < len(runs):
                time.sleep(params.cooling_s)


def _serve_and_keep(params: Params, run: Run, engine, speed: EngineSpeed, out: Path, progress: tqdm) -> None:
    """One run's folder, or, where the engine fails, the records that there are by then, each with how it ended."""
    records: list[Record] = []
    failed = out / f"{run.name}.failed.parquet"

    def note(record: Record) -> None:
        records.append(record)
        progress.update()

    try:
        results.write_run(out / run.name, *_serve(params, run, engine, speed, on_record=note))
        with results.writing(failed):
            failed.unlink(missing_ok=True)
    except RunError:
        results.write_table(failed, results.requests_table(records))
        raise


def write_summary(params: Params, out: Path) -> pd.DataFrame:
    """Write `summary.csv`: a row for each finished run, in the order of the grid."""
    rows = []
    for run in params.runs():
        if results.is_complete(out / run.name):
            manifest = results.load_manifest(out / run.name)
            row = manifest.get("summary")
            if row is None:  # of older results
                requests = results.read_table(out / run.name, "requests")
                row = _summary(params, requests, EngineSpeed(**manifest["engine_speed"]))
            row = {name: nan if value is None else value for name, value in row.items()}
            rows.append({"run": run.name} | manifest["run"] | row)
    summary = pd.DataFrame(rows)
    results.write_text(out / "summary.csv", summary.to_csv(index=False))
    return summary


def _claim(out: Path, params: Params) -> None:
    """Make the folder this experiment's, or refuse where it is another's."""
    mine = params.model_dump()
    path = out / "params.yaml"
    with results.writing(out):
        out.mkdir(parents=True, exist_ok=True)
    if path.exists():
        theirs = Params.load(path).model_dump()
        as_text = partial(yaml.safe_dump, sort_keys=False)  # the order of tenants and of a mix decides what is drawn
        if changed := [key for key in mine if as_text(mine[key]) != as_text(theirs[key])]:
            raise DriftSchedError(
                f"{out} holds runs with another {', '.join(changed)}: give another folder, or delete it"
            )
    results.write_text(path, yaml.safe_dump(mine, sort_keys=False))


def _engine_speed(params: Params, engine, out: Path) -> EngineSpeed:
    """Measured once for a results folder, so that a run taken up later meets the same load."""
    if not (out / results.SPEED).exists():
        results.write_json(out / results.SPEED, asdict(measure_speed(params, engine)))
    return results.load_speed(out)
