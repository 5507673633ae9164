"""One run: its load served by an engine under a scheduler, as tables and a manifest."""

import gc
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from math import isnan
from typing import Any

import pandas as pd

from driftsched_lib.admission import Check, admission_check
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
from driftsched_lib.requests import Record
from driftsched_lib.scheduler import Scheduler
from driftsched_lib.serving import Batching, ContinuousBatching, QueueDepth, StaticBatching, serve
from driftsched_lib.tokens import TokenizerCounter, WhitespaceCounter
from driftsched_lib.workloads.synthetic import make_load


def serve_run(
    params: Params,
    run: Run,
    engine,
    speed: EngineSpeed,
    on_record: Callable[[Record], None] = lambda record: None,
    watch: Callable[[float, Scheduler], None] = lambda now, scheduler: None,
    estimator: Estimator | None = None,
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Serve one run; return its tables by name, and its manifest.

    Parameters:
        on_record: called with each request's record when it has ended.
        watch: called once per engine iteration.
        estimator: in place of the run's, for one that parameters cannot name.

    Raises:
        RunError: the engine failed.
    """
    records: list[Record] = []
    depth = QueueDepth(params.measure.queue_depth_interval_s)

    def note(record: Record) -> None:
        records.append(record)
        on_record(record)

    def monitor(now: float, scheduler: Scheduler) -> None:
        depth(now, scheduler)
        watch(now, scheduler)

    scheduler = make_scheduler(params, run, engine, note, _admission(params, speed), estimator)
    window = params.seeds.index(run.seed) if run.seed in params.seeds else 0
    load = make_load(
        params.workload, params.requests, run.seed, speed.capacity_tokens_per_s, run.rate, window, params.tiers
    )
    real = params.engine.kind != "simulated"
    if real:
        gc.collect()  # not while its time is measured
    started, spans = datetime.now(UTC), []
    engine.restart_clock()
    in_process = params.engine.kind == "vllm"
    with Telemetry(params.measure.telemetry_interval_s) if in_process else nullcontext() as telemetry:
        for phase in load:
            start_s, batching = engine.now() + phase.pause_s, _batching(params, run)
            serve_or_fail(f"run {run.name}", phase.requests, scheduler, engine, batching, start_s, monitor=monitor)
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


def make_scheduler(
    params: Params,
    run: Run,
    engine,
    on_record: Callable[[Record], None],
    admission: Check | None = None,
    estimator: Estimator | None = None,
) -> Scheduler:
    """Return the scheduler of a run, empty; `on_record` and `estimator` are those of `serve_run`."""
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


def _batching(params: Params, run: Run) -> Batching:
    if run.batching == "static":
        return StaticBatching(params.scheduler.batch_size, params.scheduler.batch_wait_s)
    return ContinuousBatching()


def _admission(params: Params, speed: EngineSpeed) -> Check | None:
    rules = params.scheduler.admission
    if rules is None:
        return None
    budgets = None if rules.tokens_per_s is None else (rules.tokens_per_s, rules.burst_tokens)
    return admission_check(speed.capacity_tokens_per_s, budgets, rules.max_wait_s)


def serve_or_fail(
    what: str, *arguments, monitor: Callable[[float, Scheduler], None] = lambda now, scheduler: None
) -> None:
    """Serve; a RunError says `what` failed, and Ctrl-C takes effect between two iterations."""
    try:
        with remembered(at_once=False) as check:

            def watch(now: float, scheduler: Scheduler) -> None:
                monitor(now, scheduler)
                check()

            serve(*arguments, monitor=watch)
    except Exception as error:
        raise RunError(
            f"{what}: the engine failed ({type(error).__name__}: {error}).  Finished runs are kept: run the same again "
            "to go on from there"
        ) from error
