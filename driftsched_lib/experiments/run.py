"""One run: its load served by an engine under a scheduler, as tables and a manifest."""

import gc
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from driftsched_lib.admission import Check, admission_check
from driftsched_lib.classify import KeywordClassifier
from driftsched_lib.engines import STEP_COLUMNS
from driftsched_lib.errors import RunError
from driftsched_lib.estimators import ESTIMATORS, Estimator
from driftsched_lib.experiments import results
from driftsched_lib.experiments.interrupts import remembered
from driftsched_lib.experiments.params import Params, Run, can_calibrate
from driftsched_lib.experiments.provenance import provenance
from driftsched_lib.experiments.results import EngineSpeed
from driftsched_lib.experiments.telemetry import Telemetry
from driftsched_lib.policies import POLICIES
from driftsched_lib.requests import TIERS, Record
from driftsched_lib.scheduler import Scheduler
from driftsched_lib.serving import Batching, ContinuousBatching, QueueDepth, StaticBatching, serve
from driftsched_lib.tokens import TokenizerCounter, WhitespaceCounter
from driftsched_lib.workloads.synthetic import paper_load
from driftsched_lib.workloads.text_classifier import TextClassifier


def serve_run(
    params: Params,
    run: Run,
    engine,
    speed: EngineSpeed,
    on_record: Callable[[Record], None] = lambda record: None,
    watch: Callable[[float, Scheduler], None] = lambda now, scheduler: None,
    estimator: Estimator | None = None,
    compiled: bool = False,
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Serve one run; its tables by file name, and its manifest.

    Parameters:
        on_record: called with each request's record when it has ended.
        watch: called once an engine iteration.
        estimator: in the place of the run's, for one that parameters cannot name.
        compiled: by `serve_compiled` where that can, which gives the same, many times as fast, and calls nobody.

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

    scheduler = scheduler_of(params, run, engine, note, _admission(params, speed), estimator)
    depth = QueueDepth(params.queue_depth_interval_s)
    load = paper_load(params, run.seed, speed.capacity_tokens_per_s, run.rate)
    if params.engine != "simulated":
        gc.collect()  # not while its time is measured
    started = datetime.now(UTC)
    engine.restart_clock()
    served, telemetry = None, None
    if compiled:
        from driftsched_lib.compiled import serve_compiled  # which takes a second to load

        served = serve_compiled(load, scheduler, engine, _batching(params, run), depth.interval_s)
    if served is not None:
        requests, depth.rows, spans = served.table(), served.depths, served.spans
    else:
        spans = []
        with Telemetry(params.telemetry_interval_s) if params.engine == "vllm" else nullcontext() as telemetry:
            for phase in load:
                start_s, batching = engine.now() + phase.pause_s, _batching(params, run)
                serve_or_fail(f"run {run.name}", phase.requests, scheduler, engine, batching, start_s, monitor=monitor)
                spans.append((start_s, engine.now()))
        requests = results.requests_table(records)
    tables = {
        "requests": requests,
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
        "phases": [
            {"name": phase.name, "start_s": start_s, "end_s": end_s}
            for phase, (start_s, end_s) in zip(load, spans, strict=True)
        ],
        "started": started.isoformat(),
        "finished": datetime.now(UTC).isoformat(),
        **provenance(),
    }


def scheduler_of(
    params: Params,
    run: Run,
    engine,
    on_record: Callable[[Record], None],
    admission: Check | None = None,
    estimator: Estimator | None = None,
) -> Scheduler:
    """The scheduler of a run, empty; `on_record` and `estimator` are those of `serve_run`."""
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


def _batching(params: Params, run: Run) -> Batching:
    return StaticBatching(params.batch_size, params.batch_wait_s) if run.batching == "static" else ContinuousBatching()


def _admission(params: Params, speed: EngineSpeed) -> Check | None:
    rules = params.admission
    if rules is None:
        return None
    budgets = None if rules.tokens_per_s is None else (rules.tokens_per_s, rules.burst_tokens)
    return admission_check(speed.capacity_tokens_per_s, budgets, rules.longest_wait_s)


def serve_or_fail(
    what: str, *arguments, monitor: Callable[[float, Scheduler], None] = lambda now, scheduler: None
) -> None:
    """`serve`, with a RunError that says `what` failed, and Ctrl-C between two iterations."""
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
