"""What the scheduler inside vLLM tells Prometheus, beside vLLM's own metrics.

The engine is another process than the server that answers `/metrics`.  They share numbers through the folder that
PROMETHEUS_MULTIPROC_DIR names, an empty one, when it is set for both.
"""

from contextlib import AbstractContextManager
from functools import cache
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from driftsched_lib.requests import Outcome, Record, Request

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
_TOKENS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)
_DECISION = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 1e-2)

QUEUE_DEPTH = Gauge("driftsched_queue_depth", "Requests queued", ["tier"], multiprocess_mode="livesum")
WAIT = Histogram("driftsched_queue_wait_seconds", "Arrival to dispatch", ["tier"], buckets=_SECONDS)
PREEMPTIONS = Counter("driftsched_preemptions", "Slots taken back by the policy, and given again", ["tier"])
REQUESTS = Counter("driftsched_requests", "Requests that ended", ["tier", "outcome"])
ESTIMATE_ERROR = Histogram(
    "driftsched_estimate_error_tokens", "Estimated and generated tokens apart", ["category"], buckets=_TOKENS
)
ESTIMATED = Counter("driftsched_estimated_tokens", "Output tokens estimated, of completed requests", ["category"])
GENERATED = Counter("driftsched_generated_tokens", "Output tokens generated, of completed requests", ["category"])
BIAS = Gauge(
    "driftsched_bias",
    "Factor on the category's base, of the last estimate or as just learnt",
    ["category"],
    multiprocess_mode="mostrecent",
)
DECISION = Histogram("driftsched_decision_seconds", "Time that a decision takes", ["step"], buckets=_DECISION)


@cache
def _child(metric: Counter | Gauge | Histogram, *labels: str) -> Any:
    """`metric.labels`, which takes longer than what is then noted."""
    return metric.labels(*labels)


def decision(step: str) -> AbstractContextManager:
    """Notes how long a decision takes."""
    return _child(DECISION, step).time()


def queued(tier: str, requests: int) -> None:
    """So many requests of a tier are queued."""
    _child(QUEUE_DEPTH, tier).set(requests)


def dispatched(request: Request, now: float) -> None:
    """A request left the queue."""
    if request.preemptions:
        _child(PREEMPTIONS, request.tier).inc()
    else:
        _child(WAIT, request.tier).observe(now - request.arrival_s)


def on_finish(record: Record) -> None:
    """A request ended."""
    _child(REQUESTS, record.tier, record.outcome.value).inc()
    if record.outcome is Outcome.COMPLETED:
        _child(ESTIMATE_ERROR, record.category).observe(abs(record.estimated_tokens - record.actual_tokens))
        _child(ESTIMATED, record.category).inc(record.estimated_tokens)
        _child(GENERATED, record.category).inc(record.actual_tokens)
        _child(BIAS, record.category).set(record.bias if record.bias_after is None else record.bias_after)
