"""An engine warmed up, and its speed measured."""

from dataclasses import replace
from math import inf

import pandas as pd

from driftsched_lib.engines.base import STEP_COLUMNS
from driftsched_lib.errors import RunError
from driftsched_lib.experiments.params import Params
from driftsched_lib.experiments.results import EngineSpeed
from driftsched_lib.experiments.run import make_scheduler, serve_or_fail
from driftsched_lib.policies import POLICIES
from driftsched_lib.serving import ContinuousBatching
from driftsched_lib.validation import Component
from driftsched_lib.workloads.synthetic import make_load


def measure_speed(params: Params, engine) -> EngineSpeed:
    """Serve the last phase's mix on one replica, all at once and then one by one; the capacity is that of all replicas.

    Raises RunError if no request is finished, so that there is no capacity to measure.
    """
    crowd = _serve_at_once(params, engine, 6 * engine.max_num_seqs)
    if params.engine.kind == "server":
        # While all slots were taken; a request's tokens count as spread over its time there: they may come all at once.
        begin, end = crowd.dispatch_s.sort_values().iloc[[engine.max_num_seqs - 1, -1]]
        taken_s = crowd.finish_s.clip(begin, end) - crowd.dispatch_s.clip(begin, end)
        capacity = (taken_s / (crowd.finish_s - crowd.dispatch_s) * crowd.output_tokens).sum() / (end - begin)
    else:
        steps = pd.DataFrame(engine.steps, columns=STEP_COLUMNS).assign(seconds=lambda table: table.time_s.diff())
        full, queued = steps.running == engine.max_num_seqs, steps.waiting > 0
        if not full.any():  # KV blocks run out before slots do, or outputs end as soon as they begin
            full = queued | (not queued.any())
        full = steps[full].dropna(subset="seconds")  # the first iteration's are not known
        tokens = (full.prompt_requests + full.output_requests).sum()
        capacity = params.engine.replicas * tokens / full.seconds.sum() if tokens else 0.0
    if not 0 < capacity < inf:
        reasons = "; ".join(crowd.reason[crowd.reason != ""].unique()[:3])
        name = params.engine.profile or params.engine.model
        raise RunError(f"engine speed cannot be measured: {name} finished none of {len(crowd)} requests ({reasons})")
    alone = pd.concat([_serve_at_once(params, engine, 1) for _ in range(5)]).query("output_tokens > 1")
    idle_ttft_s = (alone.first_token_s - alone.arrival_s).median()
    idle_tpot_s = ((alone.finish_s - alone.first_token_s) / (alone.output_tokens - 1)).median()
    return EngineSpeed(float(capacity), float(idle_ttft_s), float(idle_tpot_s))


def warm_up(params: Params, engine) -> None:
    """Serve as many requests as run at once: an engine's first requests are slow."""
    _serve_at_once(params, engine, engine.max_num_seqs)


def _serve_at_once(params: Params, engine, n: int) -> pd.DataFrame:
    """Return the records of `n` requests of the last phase's mix, outputs at their limit, that all arrive at once."""
    workload = params.workload
    changes = {"output_length": "limit", "recorded_lengths": None, "queue_timeout_s": None, "trace": None}
    phase = workload.phases[-1].model_copy(update={"share": 1.0})
    [load] = make_load(workload.model_copy(update=changes | {"phases": [phase]}), n, 0, 1.0, tiers=params.tiers)
    for request in load.requests:
        request.arrival_s = 0.0
    engine.restart_clock()
    run, records = replace(params.runs()[0], policy=Component("fifo", POLICIES["fifo"])), []
    scheduler = make_scheduler(params, run, engine, records.append)
    serve_or_fail("measuring the engine's speed", load.requests, scheduler, engine, ContinuousBatching())
    return pd.DataFrame(records)
