"""A grid of runs: params in, a results folder out; finished runs are never repeated."""

import gc
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from math import inf
from pathlib import Path
from traceback import clear_frames
from typing import Any

import pandas as pd
import yaml
from pydantic import ValidationError
from tqdm.auto import tqdm

from driftsched_lib import results
from driftsched_lib.admission import Check, admission_check
from driftsched_lib.classify import KeywordClassifier
from driftsched_lib.engines import STEP_COLUMNS
from driftsched_lib.engines.replicated import ROUTERS, ReplicatedEngine
from driftsched_lib.engines.simulated import SimulatedEngine
from driftsched_lib.engines.vllm_server import VllmServer
from driftsched_lib.estimators import ESTIMATORS, Estimator
from driftsched_lib.metrics import summarize
from driftsched_lib.parallel import Backend, finish_all
from driftsched_lib.params import Params, Run, can_calibrate
from driftsched_lib.policies import POLICIES
from driftsched_lib.profiles import Profile, ProfileError
from driftsched_lib.provenance import provenance
from driftsched_lib.requests import TIERS, Record
from driftsched_lib.results import EngineSpeed, ResultsError, RunError
from driftsched_lib.scheduler import Scheduler
from driftsched_lib.serving import ContinuousBatching, QueueDepth, StaticBatching, serve
from driftsched_lib.telemetry import Telemetry
from driftsched_lib.text_classifier import TextClassifier
from driftsched_lib.tokens import TokenizerCounter, WhitespaceCounter
from driftsched_lib.trace_load import check_trace
from driftsched_lib.validation import Component, ParamsError, in_project
from driftsched_lib.workloads import length_mix, paper_load, recorded_lengths


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
        LengthMixError: a length mix that cannot be read.
        ResultsError: `out` holds runs of other parameters, or what is damaged, or cannot be written.
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
    while error is not None:
        clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _serve_missing(params: Params, out: Path, runs: Sequence[Run], jobs: int | None, backend: Backend) -> None:
    todo = [run for run in runs if not results.is_complete(out / run.name)]
    if todo:
        with tqdm(total=len(todo) * params.requests, unit="request", leave=False, smoothing=0) as progress:
            if params.engine == "simulated":
                one = params.model_copy(update={"replicas": 1})
                speed = _engine_speed(params, load_engine(one, log_steps=True), out)
                tasks = [(params, run, speed) for run in todo]
                for run, tables, manifest in finish_all(_simulate, tasks, -1 if jobs is None else jobs, backend):
                    results.write_run(out / run.name, tables, manifest)
                    progress.update(params.requests)
            else:
                _serve_one_by_one(params, todo, out, progress)


def _simulate(params: Params, run: Run, speed: EngineSpeed) -> tuple[Run, dict[str, pd.DataFrame], dict[str, Any]]:
    return run, *serve_run(params, run, load_engine(params), speed)


def _serve_one_by_one(params: Params, runs: Sequence[Run], out: Path, progress: tqdm) -> None:
    engine = load_engine(params)
    warm_up(params, engine)
    speed = _engine_speed(params, engine, out)
    for i, run in enumerate(runs, start=1):
        progress.set_description(f"run {i} of {len(runs)}: {run.batching} {run.policy} seed {run.seed}")
        _serve_and_keep(params, run, engine, speed, out, progress)
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
        results.write_run(out / run.name, *serve_run(params, run, engine, speed, note))
        with results.writing(failed):
            failed.unlink(missing_ok=True)
    except RunError:
        results.write_table(failed, results.requests_table(records))
        raise


def write_summary(params: Params, out: Path) -> pd.DataFrame:
    """Write `summary.csv`: a row for each finished run, in the order of the grid."""
    bounds = params.job_class_bounds
    rows = []
    for run in params.runs():
        if results.is_complete(out / run.name):
            manifest = results.load_manifest(out / run.name)
            requests = results.read_table(out / run.name, "requests")
            speed = EngineSpeed(**manifest["engine_speed"])
            rows.append(
                {"run": run.name} | manifest["run"] | summarize(requests, speed.idle_ttft_s, speed.idle_tpot_s, bounds)
            )
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
            raise ResultsError(f"{out} holds runs with another {', '.join(changed)}: give another folder, or delete it")
    results.write_text(path, yaml.safe_dump(mine, sort_keys=False))


def load_engine(params: Params, log_steps: bool = False):
    """The engine of these parameters; a model's folder and a profile's file are looked for in the project first.

    Parameters:
        log_steps: let a simulated engine keep its steps; a real one does.

    Raises:
        ParamsError: it cannot be loaded with these arguments.
    """
    if params.engine == "simulated":
        return _simulated_engine(params, log_steps)
    if params.server is not None:
        server = params.server
        key = None if server.api_key_env is None else os.environ.get(server.api_key_env)
        if server.api_key_env is not None and key is None:
            raise ParamsError(f"server.api_key_env: the environment holds no {server.api_key_env}")
        options = server.model_dump(exclude={"api_key_env"})
        return VllmServer(model=params.model, temperature=params.temperature, api_key=key, **options)
    from driftsched_lib.engines.vllm_local import VllmEngine

    try:
        engine_args = {
            name: in_project(value) if name == "tokenizer" else value for name, value in params.engine_args.items()
        }
        return VllmEngine(in_project(params.model), engine_args, params.temperature)
    except (ValueError, OSError) as error:
        raise ParamsError(f"model {params.model!r} with these engine_args cannot be loaded: {error}") from error


def _simulated_engine(params: Params, log_steps: bool) -> SimulatedEngine | ReplicatedEngine:
    try:
        profile = Profile.load(in_project(params.profile)).with_limits(**params.engine_args)
    except ProfileError as error:
        raise ParamsError(f"profile: {error}") from None
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise ParamsError(f"engine_args: they replace the profile's limits: {faults}") from None
    if profile.words_per_output_token is None and "whitespace" in params.token_counter:
        raise ParamsError(
            f"token_counter: {params.profile} has no words_per_output_token, so it may be tokenizer alone"
        )
    replicas = [SimulatedEngine(profile, log_steps=log_steps) for _ in range(params.replicas)]
    if params.replicas == 1:
        return replicas[0]
    return ReplicatedEngine(replicas, ROUTERS[params.router], params.max_outstanding)


def _engine_speed(params: Params, engine, out: Path) -> EngineSpeed:
    """Measured once for a results folder, so that a run taken up later meets the same load."""
    if not (out / results.SPEED).exists():
        results.write_json(out / results.SPEED, asdict(measure_speed(params, engine)))
    return results.load_speed(out)


def measure_speed(params: Params, engine) -> EngineSpeed:
    """Serve the last phase's mix, all at once and then one by one.

    Parameters:
        engine: one replica; the capacity is that of all.

    Raises:
        RunError: the requests never fill the engine, so that there is no capacity to measure.
    """
    crowd = _serve_at_once(params, engine, 6 * engine.max_num_seqs)
    if params.engine == "server":
        capacity = _streamed_tokens_per_s(crowd, engine.max_num_seqs)
    else:
        steps = pd.DataFrame(engine.steps, columns=STEP_COLUMNS)
        seconds = steps.time_s.diff()  # the first iteration's are not known
        full = seconds[steps.running == engine.max_num_seqs]
        if full.empty:  # KV blocks run out before slots do, or outputs end as soon as they begin
            full = seconds[steps.waiting > 0] if (steps.waiting > 0).any() else seconds
        full = full.dropna()
        tokens = (steps.prompt_requests + steps.output_requests)[full.index].sum()
        capacity = params.replicas * tokens / full.sum() if tokens else 0.0
    if not 0 < capacity < inf:
        reasons = "; ".join(crowd.reason[crowd.reason != ""].unique()[:3])
        engine_is = params.profile if params.engine == "simulated" else params.model
        raise RunError(
            f"the engine's speed cannot be measured: {engine_is} finished none of {len(crowd)} requests ({reasons})"
        )
    alone = pd.concat([_serve_at_once(params, engine, 1) for _ in range(5)]).query("output_tokens > 1")
    return EngineSpeed(
        capacity_tokens_per_s=float(capacity),
        idle_ttft_s=float((alone.first_token_s - alone.arrival_s).median()),
        idle_tpot_s=float(((alone.finish_s - alone.first_token_s) / (alone.output_tokens - 1)).median()),
    )


def _streamed_tokens_per_s(done: pd.DataFrame, slots: int) -> float:
    """Output tokens a second while all slots were taken: each request's come evenly while it has its slot.

    Not from its first to its last, for a server may send them all at once.
    """
    begin, end = done.dispatch_s.sort_values().iloc[[slots - 1, -1]]
    started, finished = done.dispatch_s.clip(begin, end), done.finish_s.clip(begin, end)
    share = (finished - started) / (done.finish_s - done.dispatch_s)
    return float((share * done.output_tokens).sum() / (end - begin))


def warm_up(params: Params, engine) -> None:
    """Serve as many requests as run at once: the first of an engine are slow."""
    _serve_at_once(params, engine, engine.max_num_seqs)


def _serve_at_once(params: Params, engine, n: int) -> pd.DataFrame:
    """Records of `n` requests of the last phase's mix, every output at its limit, that all arrive at once."""
    phase = params.workload.phases[-1].model_copy(update={"share": 1.0})
    changes = {"requests": n, "output_length": "limit", "recorded_lengths": None, "queue_timeout_s": None}
    probe = params.model_copy(
        update=changes | {"workload": params.workload.model_copy(update={"phases": [phase], "trace": None})}
    )
    requests = paper_load(probe, 0, 1.0)[0].requests
    for request in requests:
        request.arrival_s = 0.0
    records: list[Record] = []
    engine.restart_clock()
    fifo = replace(params.runs()[0], policy=Component("fifo"))
    scheduler = _scheduler(probe, fifo, engine, records.append)
    _serve("measuring the engine's speed", requests, scheduler, engine, ContinuousBatching())
    return pd.DataFrame(records)


def _serve(what: str, *arguments) -> None:
    """`serve`, with a RunError that says `what` failed."""
    try:
        serve(*arguments)
    except Exception as error:
        raise RunError(
            f"{what}: the engine failed ({type(error).__name__}: {error}).  Finished runs are kept: run the same again "
            "to go on from there"
        ) from error


def _scheduler(
    params: Params,
    run: Run,
    engine,
    on_record: Callable[[Record], None],
    admission: Check | None = None,
    estimator: Estimator | None = None,
) -> Scheduler:
    options = dict(run.estimator.options)
    if can_calibrate(run.estimator):
        options["calibrate"] = run.calibration
    return Scheduler(
        policy=POLICIES[run.policy.name](**run.policy.options),
        estimator=estimator or ESTIMATORS[run.estimator.name](base_tokens=params.max_tokens, **options),
        counter=WhitespaceCounter() if run.token_counter == "whitespace" else TokenizerCounter(engine.count_tokens),
        classifier=KeywordClassifier() if params.classifier == "keywords" else TextClassifier(),
        on_record=on_record,
        capacity=params.queue_capacity,
        admission=admission,
    )


def _admission(params: Params, speed: EngineSpeed) -> Check | None:
    rules = params.admission
    if rules is None:
        return None
    budgets = None if rules.tokens_per_s is None else (rules.tokens_per_s, rules.burst_tokens)
    return admission_check(speed.capacity_tokens_per_s, budgets, rules.longest_wait_s)


def serve_run(
    params: Params,
    run: Run,
    engine,
    speed: EngineSpeed,
    on_record: Callable[[Record], None] = lambda record: None,
    watch: Callable[[float, Scheduler], None] = lambda now, scheduler: None,
    estimator: Estimator | None = None,
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Serve one run; its tables by file name, and its manifest.

    Parameters:
        on_record: called with each request's record when it has ended.
        watch: called once an engine iteration.
        estimator: in the place of the run's, for one that parameters cannot name.

    Raises:
        RunError: the engine failed.
    """
    records: list[Record] = []

    def note(record: Record) -> None:
        records.append(record)
        on_record(record)

    def monitor(now: float, scheduler: Scheduler) -> None:
        depth(now, scheduler)
        watch(now, scheduler)

    scheduler = _scheduler(params, run, engine, note, _admission(params, speed), estimator)
    depth = QueueDepth(params.queue_depth_interval_s)
    load = paper_load(params, run.seed, speed.capacity_tokens_per_s, run.rate)
    if params.engine != "simulated":
        gc.collect()  # not while its time is measured
    started = datetime.now(UTC)
    engine.restart_clock()
    phases = []
    with Telemetry(params.telemetry_interval_s) if params.engine == "vllm" else nullcontext() as telemetry:
        for phase in load:
            start_s = engine.now() + phase.pause_s
            batching = (
                StaticBatching(params.batch_size, params.batch_wait_s)
                if run.batching == "static"
                else ContinuousBatching()
            )
            _serve(f"run {run.name}", phase.requests, scheduler, engine, batching, start_s, monitor)
            phases.append({"name": phase.name, "start_s": start_s, "end_s": engine.now()})
    tables = {
        "requests": results.requests_table(records),
        "queue_depth": pd.DataFrame(depth.rows, columns=["time_s", *TIERS]),
        "steps": pd.DataFrame(engine.steps, columns=list(STEP_COLUMNS)),
    }
    if telemetry is not None:
        tables["telemetry"] = pd.DataFrame(telemetry.rows, columns=list(telemetry.columns))
    return tables, {
        "run": {
            "engine": params.engine,
            "model": params.model,
            "batching": run.batching,
            "policy": str(run.policy),
            "estimator": str(run.estimator),
            "calibration": run.calibration,
            "token_counter": run.token_counter,
            "rate": run.rate,
            "seed": run.seed,
        },
        "params": params.model_dump(),
        "engine_limits": engine.limits and engine.limits.model_dump(),
        "engine_speed": asdict(speed),
        "phases": phases,
        "started": started.isoformat(),
        "finished": datetime.now(UTC).isoformat(),
        **provenance(),
    }
