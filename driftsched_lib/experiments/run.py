"""One run: its load served by an engine under a scheduler, as tables and a manifest."""

import gc
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from math import isnan
from typing import Any

import pandas as pd

from driftsched_lib.admission import admission_check
from driftsched_lib.classify import KeywordClassifier, TextClassifier
from driftsched_lib.engines.base import STEP_COLUMNS
from driftsched_lib.engines.telemetry import Telemetry
from driftsched_lib.errors import RunError
from driftsched_lib.estimators import Estimator
from driftsched_lib.experiments.interrupts import remembered
from driftsched_lib.experiments.metrics import summarize
from driftsched_lib.experiments.params import Params, Run
from driftsched_lib.experiments.provenance import provenance
from driftsched_lib.experiments.results import EngineSpeed, requests_table
from driftsched_lib.requests import Record, Request
from driftsched_lib.scheduler import Scheduler
from driftsched_lib.serving import ContinuousBatching, QueueDepth, StaticBatching, serve
from driftsched_lib.tokens import TokenizerCounter, WhitespaceCounter
from driftsched_lib.workloads.synthetic import PhaseLoad, make_load

Monitor = Callable[[float, Scheduler], None]


def serve_run(
    params: Params,
    run: Run,
    engine,
    speed: EngineSpeed,
    on_record: Callable[[Record], None] = lambda record: None,
    watch: Monitor = lambda now, scheduler: None,
    estimator: Estimator | None = None,
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Serve one run; return its tables by name, and its manifest.  Raises RunError if the engine fails.

    `on_record` gets each request's record, `watch` is called once per iteration, `estimator` replaces the run's.
    """
    records, depth = [], QueueDepth(params.measure.queue_depth_interval_s)
    scheduler = make_scheduler(
        params, run, engine, lambda record: (records.append(record), on_record(record)), speed, estimator
    )
    load = load_of(params, run.seed, speed.capacity_tokens_per_s, run.rate)
    if params.engine.kind != "simulated":
        gc.collect()  # not while its time is measured
    static, monitors = (params.scheduler.batch_size, params.scheduler.batch_wait_s), (depth, watch)
    watched = params.engine.kind == "vllm" and params.engine.profile is None  # samples are in this machine's seconds
    started, spans = datetime.now(UTC), []
    engine.restart_clock()
    with Telemetry(params.measure.telemetry_interval_s) if watched else nullcontext() as telemetry:
        for phase in load:
            batching = StaticBatching(*static) if run.batching == "static" else ContinuousBatching()
            start_s = engine.now() + phase.pause_s
            serve_or_fail(f"run {run.name}", phase.requests, scheduler, engine, batching, start_s, monitors=monitors)
            spans.append({"name": phase.name, "start_s": start_s, "end_s": engine.now()})
    tables = {
        "requests": requests_table(records),
        "queue_depth": pd.DataFrame(depth.rows, columns=["time_s", *params.tiers]),
        "steps": pd.DataFrame(engine.steps, columns=list(STEP_COLUMNS)),
    }
    if telemetry is not None:
        tables["telemetry"] = pd.DataFrame(telemetry.rows, columns=list(telemetry.columns))
    summary = summarize(tables["requests"], speed.idle_ttft_s, speed.idle_tpot_s, params.job_class_bounds)
    return tables, {
        "run": {"engine": params.engine.kind, "model": params.engine.model, **run.settings},
        "summary": {name: None if isnan(value) else value for name, value in summary.items()},
        "params": params.model_dump(),
        "engine_limits": engine.limits and engine.limits.model_dump(),
        "engine_speed": asdict(speed),
        "phases": spans,
        "started": started.isoformat(),
        "finished": datetime.now(UTC).isoformat(),
        **provenance(),
    }


def load_of(params: Params, seed: int, capacity_tokens_per_s: float = 1.0, rate: float = 1.0) -> list[PhaseLoad]:
    """Return what a seed's runs serve; the seed's place says which stretch of a trace."""
    window = params.seeds.index(seed) if seed in params.seeds else 0
    return make_load(params.workload, params.requests, seed, capacity_tokens_per_s, rate, window, params.tiers)


def requests_of(params: Params, seed: int, capacity_tokens_per_s: float = 1.0, rate: float = 1.0) -> list[Request]:
    """Return the requests of a seed's runs in the order of their ids; see `load_of`."""
    return [request for load in load_of(params, seed, capacity_tokens_per_s, rate) for request in load.requests]


def make_scheduler(
    params: Params,
    run: Run,
    engine,
    on_record: Callable[[Record], None],
    speed: EngineSpeed | None = None,
    estimator: Estimator | None = None,
) -> Scheduler:
    """Return the scheduler of a run, empty; it admits every request if no speed is known."""
    rules, admission = params.scheduler.admission, None
    if rules is not None and speed is not None:
        budgets = None if rules.tokens_per_s is None else (rules.tokens_per_s, rules.burst_tokens)
        admission = admission_check(speed.capacity_tokens_per_s, budgets, rules.max_wait_s)
    shared = {"base_tokens": params.workload.max_tokens, "calibrate": run.calibration, "tiers": params.tiers}
    return Scheduler(
        policy=run.policy.build(**shared),
        estimator=estimator or run.estimator.build(**shared),
        counter=WhitespaceCounter() if run.token_counter == "whitespace" else TokenizerCounter(engine.count_tokens),
        classifier=KeywordClassifier() if params.scheduler.classifier == "keywords" else TextClassifier(),
        on_record=on_record,
        capacity=params.scheduler.queue_capacity,
        admission=admission,
        tiers=params.tiers,
    )


def serve_or_fail(what: str, *arguments, monitors: Sequence[Monitor] = ()) -> None:
    """Serve; a RunError says `what` failed, and Ctrl-C takes effect between two iterations."""
    try:
        with remembered(at_once=False) as check:

            def monitor(now: float, scheduler: Scheduler) -> None:
                for each in monitors:
                    each(now, scheduler)
                check()

            serve(*arguments, monitor=monitor)
    except Exception as error:
        why = f"the engine failed ({type(error).__name__}: {error})"
        raise RunError(f"{what}: {why}.  Finished runs are kept: run the same again to go on from there") from error
