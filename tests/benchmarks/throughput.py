"""Share of vLLM's throughput that is left under our serving loop, and with our scheduler inside vLLM."""

import gc
import statistics
from collections.abc import Callable
from math import inf

from helpers import make_scheduler

from driftsched_lib.engines.load import load_engine
from driftsched_lib.engines.params import EngineParams
from driftsched_lib.requests import Request
from driftsched_lib.serving import ContinuousBatching, serve
from driftsched_lib.workloads.params import WorkloadParams
from driftsched_lib.workloads.synthetic import make_load

REQUESTS, PAIRS = 256, 15
PLUGIN = {"scheduler_cls": "driftsched_lib.vllm_plugin.DriftSchedScheduler"}


def loop_throughput_ratios(workload: WorkloadParams, engine, requests=REQUESTS, pairs=PAIRS) -> list[float]:
    """Return output tokens per second of `serve`, over those of the same engine given all requests at once."""
    everything = _all_at_once(workload, requests)

    def loop() -> int:
        scheduler, records = make_scheduler()
        serve(everything, scheduler, engine, ContinuousBatching())
        return sum(record.output_tokens for record in records)

    return _ratios((engine, loop), (engine, lambda: _given_all(engine, everything)), pairs)


def plugin_throughput_ratios(params: EngineParams, workload: WorkloadParams, engine) -> list[float]:
    """Return output tokens per second of vLLM scheduled by the plug-in's defaults, over those of `engine`, plain vLLM.

    Outputs are equally long: else the policy's order, too, would decide how full the slots are when the run drains.
    """
    everything = _all_at_once(workload, REQUESTS)
    mean_tokens = round(statistics.mean(request.max_tokens for request in everything))
    for request in everything:
        request.fixed_output_tokens = mean_tokens
    ours = load_engine(params.model_copy(update={"args": params.args | PLUGIN}))
    return _ratios(*((side, lambda side=side: _given_all(side, everything)) for side in (ours, engine)), PAIRS)


def _all_at_once(workload: WorkloadParams, requests: int) -> list[Request]:
    load = make_load(workload.model_copy(update={"output_length": "limit"}), requests, 1, 1.0)
    everything = [request for phase in load for request in phase.requests]
    for request in everything:
        request.arrival_s, request.deadline_s = 0.0, None
    return everything


def _given_all(engine, everything: list[Request]) -> int:
    for request in everything:
        engine.add(request)
    outputs = []
    while len(outputs) < len(everything):
        outputs += engine.step(inf)
    return sum(output.tokens for output in outputs)


def _ratios(ours: tuple, theirs: tuple, pairs: int) -> list[float]:
    """Return tokens per second of one side over the other's, per pair; after a warm-up they take turns in going first.

    A side is an engine, and what has it make tokens and counts them.
    """

    def tokens_per_s(engine, work: Callable[[], int]) -> float:
        gc.collect()
        engine.restart_clock()
        return work() / engine.now()

    rounds = [(ours, theirs), *((ours, theirs) if pair % 2 else (theirs, ours) for pair in range(pairs))]
    rates = [{side: tokens_per_s(*side) for side in sides} for sides in rounds]
    return [rate[ours] / rate[theirs] for rate in rates[1:]]
