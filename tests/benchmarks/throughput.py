"""What vLLM's throughput keeps under our serving loop, and with our scheduler inside it."""

import gc
import statistics
from collections.abc import Sequence
from math import inf

from driftsched_lib.classify import KeywordClassifier
from driftsched_lib.estimators import PaperEstimator
from driftsched_lib.experiments.engine import load_engine
from driftsched_lib.experiments.params import Params
from driftsched_lib.policies import Fifo
from driftsched_lib.requests import Output, Record, Request
from driftsched_lib.scheduler import Scheduler
from driftsched_lib.serving import ContinuousBatching, serve
from driftsched_lib.tokens import WhitespaceCounter
from driftsched_lib.workloads.synthetic import paper_load

PLUGIN = "driftsched_lib.vllm_plugin.DriftSchedScheduler"


def loop_throughput_ratios(params: Params, engine, requests: int = 256, pairs: int = 15) -> list[float]:
    """Output tokens a second through `serve`, over those of the same engine given the same requests all at once.

    vLLM's own waiting queue holds on one side what our scheduler holds on the other.
    """
    everything = _all_at_once(params, requests)

    def loop() -> int:
        records: list[Record] = []
        scheduler = Scheduler(Fifo(), PaperEstimator(), WhitespaceCounter(), KeywordClassifier(), records.append)
        serve(everything, scheduler, engine, ContinuousBatching())
        return sum(record.output_tokens for record in records)

    return _ratios((engine, loop), (engine, lambda: _given_all(engine, everything)), pairs)


def plugin_throughput_ratios(params: Params, engine, requests: int = 256, pairs: int = 15) -> list[float]:
    """Output tokens a second of vLLM scheduled by the plug-in (its defaults), over those of `engine`, plain vLLM.

    Outputs are equally long: else the policy's order, too, would decide how full the slots are when the run drains.
    """
    plugin = {"engine_args": params.engine_args | {"scheduler_cls": PLUGIN}}
    ours, everything = load_engine(params.model_copy(update=plugin)), _all_at_once(params, requests)
    mean_tokens = round(statistics.mean(request.max_tokens for request in everything))
    for request in everything:
        request.fixed_output_tokens = mean_tokens
    sides = [(side, lambda side=side: _given_all(side, everything)) for side in (ours, engine)]
    return _ratios(*sides, pairs)


def _all_at_once(params: Params, requests: int) -> list[Request]:
    load = paper_load(params.model_copy(update={"requests": requests, "output_length": "limit"}), 1, 1.0)
    everything = [request for phase in load for request in phase.requests]
    for request in everything:
        request.arrival_s, request.deadline_s = 0.0, None
    return everything


def _given_all(engine, everything: Sequence[Request]) -> int:
    """Output tokens of an engine that is given all requests and left alone."""
    for request in everything:
        engine.add(request)
    outputs: list[Output] = []
    while len(outputs) < len(everything):
        outputs += engine.step(inf)
    return sum(output.tokens for output in outputs)


def _ratios(ours: tuple, theirs: tuple, pairs: int) -> list[float]:
    """Tokens a second of one side over the other's, a ratio a pair; they take turns in going first, after a warm-up.

    Both have the same prompts, sampling parameters and pinned lengths.

    Parameters:
        ours, theirs: an engine, and what has it make tokens and counts them.
    """

    def tokens_per_s(side: tuple) -> float:
        engine, work = side
        gc.collect()
        engine.restart_clock()
        return work() / engine.now()

    for side in (ours, theirs):
        tokens_per_s(side)
    ratios = []
    for pair in range(pairs):
        rate = {side: tokens_per_s(side) for side in ((ours, theirs) if pair % 2 else (theirs, ours))}
        ratios.append(rate[ours] / rate[theirs])
    return ratios
