"""A grid of runs: params in, a results folder out; finished runs are never repeated."""

import json
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from math import nan
from pathlib import Path
from traceback import clear_frames
from typing import Any, Literal

import pandas as pd
import yaml
from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError
from tqdm.auto import tqdm

from driftsched_lib.engines.load import load_engine
from driftsched_lib.errors import DriftSchedError, ParamsError, RunError
from driftsched_lib.experiments import results
from driftsched_lib.experiments.interrupts import remembered
from driftsched_lib.experiments.params import Params, Run
from driftsched_lib.experiments.provenance import provenance
from driftsched_lib.experiments.run import serve_run
from driftsched_lib.experiments.speed import measure_speed, warm_up
from driftsched_lib.validation import in_one_move
from driftsched_lib.workloads.synthetic import check_load

Backend = Literal["loky", "ray"]
warnings.filterwarnings("ignore", "A worker stopped while some jobs")  # loky renews one that grew; no task is lost


def run_grid(
    params: Params, out: str | Path, runs: list[Run] | None = None, jobs: int | None = None, backend: Backend = "loky"
) -> pd.DataFrame:
    """Serve the runs that `out` does not hold yet; return the summary, one row per run, in the order of the grid.

    Parameters:
        runs: a part of `params.runs()`; None for all.
        jobs: runs in virtual time at a time; None for one per core.  Runs in wall time share no cores.
        backend: processes of this machine, or the Ray cluster that RAY_ADDRESS names (extra `ray`).

    Raises ParamsError for several jobs or a cluster in wall time, or an engine or load that cannot be made;
    DriftSchedError if `out` has other parameters or writers, or cannot be read or written; RunError if an engine fails.
    """
    out = Path(out)
    if jobs is not None and jobs < 1 and jobs != -1:
        raise ParamsError(f"jobs: it is {jobs}, it must be at least 1, or -1 for one per core")
    if params.engine.profile is None and (jobs not in (None, 1) or backend != "loky"):
        raise ParamsError("jobs: runs in wall time would share this machine's cores: they are served one at a time")
    check_load(params.workload, params.requests, len(params.seeds), params.tiers)
    with results.alone_in(out):
        _claim(out, params)
        try:
            _serve_missing(params, out, params.runs() if runs is None else runs, jobs, backend)
        except BaseException as error:
            released, chained = [], error
            while chained is not None and chained not in released:  # a notebook keeps the frames, and so an engine
                clear_frames(chained.__traceback__)
                released.append(chained)  # contexts can form a circle
                chained = chained.__cause__ or chained.__context__
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(f"finished runs are kept in {out}: run the same again to go on") from None
            raise
        return write_summary(params, out)


def finish_all(function: Callable, tasks: Sequence[tuple], jobs: int = -1, backend: Backend = "loky") -> Iterator[Any]:
    """Yield `function(*task)` for each task, as they finish; RunError if a worker dies or Ray is not installed."""
    options, at_once = {"return_as": "generator_unordered"}, max(1, len(tasks))
    # Idle workers stay for the next call, unless a user's modules have come to lie elsewhere since.
    folders = [os.path.abspath(folder) for folder in sys.path]
    placement: dict[str, Any] = {"initializer": setattr, "initargs": (sys, "path", folders)}
    if backend == "ray":
        try:
            from ray.util.joblib import register_ray

            register_ray()
        except ImportError as error:
            raise RunError(f"backend: Ray is not installed; it is in the extra driftsched[ray] ({error})") from None
        # It returns a list when all is done, so it gets a part at a time; workers that ask for no CPU may share a node.
        options, placement, at_once = {}, {"ray_remote_args": {"scheduling_strategy": "SPREAD", "num_cpus": 0.01}}, 64
    try:
        with parallel_config(backend, n_jobs=jobs, **placement), Parallel(batch_size=1, **options) as workers:
            for first in range(0, len(tasks), at_once):
                yield from workers(delayed(function)(*task) for task in tasks[first : first + at_once])
    except TerminatedWorkerError as error:
        raise RunError(f"a worker died: is memory short? Run the same again to go on ({error})") from error


def _serve_missing(params: Params, out: Path, runs: Sequence[Run], jobs: int | None, backend: Backend) -> None:
    todo = [run for run in runs if not results.is_complete(out / run.name)]
    if not todo:
        return
    simulated, machine = params.engine.kind == "simulated", provenance()["hardware"]
    cores = min(machine["cores"], max(1, machine["memory_gib"] // 3))  # an engine takes 2 GiB
    jobs = jobs or (-1 if simulated else 1 if params.engine.profile is None or "gpu" in machine else cores)
    speed = results.load_speed(out) if (out / results.SPEED).exists() else None
    bar = tqdm(total=len(todo) * params.requests, unit="request", leave=False, smoothing=0)
    with remembered(at_once=True) as check, bar as progress:
        if simulated:
            engine = load_engine(params.engine.model_copy(update={"replicas": 1}), log_steps=True)
            if engine.profile.words_per_output_token is None and "whitespace" in params.scheduler.token_counter:
                raise ParamsError("scheduler.token_counter: the profile has no words, so it may be tokenizer alone")
            speed = speed or measure_speed(params, engine)
        if simulated or jobs != 1:
            tasks = [(params, run, speed) for run in todo]
            for run, tables, manifest in finish_all(_serve_in_worker, tasks, jobs, backend):
                _keep(out, run, tables, manifest)
                progress.update(params.requests)
                check()
            if not simulated:
                get_reusable_executor().shutdown(kill_workers=True)  # each holds an engine
            return
        with closing(load_engine(params.engine, length_scale=params.workload.length_scale)) as engine:
            warm_up(params, engine)
            speed = speed or measure_speed(params, engine)
            for i, run in enumerate(todo, start=1):
                progress.set_description(f"run {i} of {len(todo)}: {run.batching} {run.policy} seed {run.seed}")
                _serve_and_keep(params, run, engine, speed, out, progress)
                check()
                if i < len(todo) and params.engine.profile is None:
                    time.sleep(params.measure.cooling_s)


_kept: dict[str, tuple[Any, results.EngineSpeed]] = {}  # a worker's vLLM and its speed: loading takes long


def _serve_in_worker(params: Params, run: Run, speed: results.EngineSpeed | None):
    if params.engine.kind == "simulated":
        return run, *serve_run(params, run, load_engine(params.engine), speed)
    if (key := json.dumps(params.model_dump())) not in _kept:
        for engine, _ in _kept.values():
            engine.close()
        _kept.clear()
        engine = load_engine(params.engine, length_scale=params.workload.length_scale)
        _kept[key] = engine, speed or measure_speed(params, engine)
    return run, *serve_run(params, run, *_kept[key])


def _serve_and_keep(params: Params, run: Run, engine, speed: results.EngineSpeed, out: Path, progress: tqdm) -> None:
    """Write one run's folder or, where the engine fails, the records until then, each with how it ended."""
    records, failed = [], out / f"{run.name}.failed.parquet"
    try:
        served = serve_run(params, run, engine, speed, lambda record: (records.append(record), progress.update()))
        _keep(out, run, *served)
        with results.writing(failed):
            failed.unlink(missing_ok=True)
    except RunError:
        with results.writing(failed), in_one_move(failed) as half:
            results.requests_table(records).to_parquet(half, index=False)
        raise


def write_summary(params: Params, out: Path) -> pd.DataFrame:
    """Write `summary.csv`: one row per finished run, in the order of the grid; warn if requests failed."""
    finished = [results.load_run(out / run.name) for run in params.runs() if results.is_complete(out / run.name)]
    rows = [{"run": run.name} | run.manifest["run"] | run.manifest["summary"] for run in finished]
    summary = pd.DataFrame(rows).replace({None: nan}).infer_objects()
    results.write_text(out / "summary.csv", summary.to_csv(index=False))
    tables = [run.table("requests") for run in finished if run.manifest["summary"]["failed"]]
    if failed := [reason for table in tables for reason in table.reason[table.outcome == "failed"]]:
        kinds = pd.Series(failed).groupby([re.sub(r"(?<!HTTP )\b\d+", "", reason) for reason in failed])
        commonest = kinds.agg(["size", "first"]).nlargest(5, "size")
        why = "; ".join(f"{reason} ({n} times)" for n, reason in commonest.itertuples(index=False))
        warnings.warn(f"{len(failed)} of {summary.requests.sum()} requests failed: {why}", stacklevel=3)
    return summary


def _claim(out: Path, params: Params) -> None:
    """Make the folder this experiment's, or refuse where it is another's."""
    path = out / results.PARAMS
    if path.exists():  # compared as text, since the order of tenants and of a mix decides what is drawn
        both = [asked.model_dump() for asked in (params, results.load_params(out))]
        mine, theirs = (pd.json_normalize(each, max_level=1).iloc[0].map(repr) for each in both)
        if changed := ", ".join(mine.index[mine != theirs]):
            raise DriftSchedError(f"{out} holds runs with another {changed}: give another folder, or delete it")
    results.write_text(path, yaml.safe_dump(params.model_dump(), sort_keys=False))


def _keep(out: Path, run: Run, tables: Mapping[str, pd.DataFrame], manifest: Mapping[str, Any]) -> None:
    """Write a run and, with the first, the engine's speed, so that a run taken up later meets the same load."""
    if not (out / results.SPEED).exists():
        results.write_text(out / results.SPEED, json.dumps(manifest["engine_speed"], indent=2) + "\n")
    results.write_run(out / run.name, tables, manifest)
