"""Prometheus metrics of the scheduler inside vLLM, shown beside vLLM's own.

The engine and the server that answers `/metrics` are two processes.  They share numbers through the folder that
PROMETHEUS_MULTIPROC_DIR names; it must be empty at the start and set for both.
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
PREEMPTIONS = Counter("driftsched_preemptions", "Requests dispatched again after the policy preempted them", ["tier"])
REQUESTS = Counter("driftsched_requests", "Requests that ended", ["tier", "outcome"])
ESTIMATE_ERROR = Histogram("driftsched_estimate_error_tokens", "Absolute error", ["category"], buckets=_TOKENS)
ESTIMATED = Counter("driftsched_estimated_tokens", "Output tokens estimated, of completed requests", ["category"])
GENERATED = Counter("driftsched_generated_tokens", "Output tokens generated, of completed requests", ["category"])
BIAS = Gauge("driftsched_bias", "Latest factor on base tokens", ["category"], multiprocess_mode="mostrecent")
DECISION = Histogram("driftsched_decision_seconds", "Time that a decision takes", ["step"], buckets=_DECISION)


@cache
def _child(metric: Counter | Gauge | Histogram, *labels: str) -> Any:
    """Return `metric.labels(*labels)`, kept, because that call takes longer than counting."""
    return metric.labels(*labels)


def decision(step: str) -> AbstractContextManager:
    """Time a decision."""
    return _child(DECISION, step).time()


def on_queue_depth(tier: str, requests: int) -> None:
    """Set how many requests of a tier are queued."""
    _child(QUEUE_DEPTH, tier).set(requests)


def on_dispatch(request: Request, now: float) -> None:
    """Count a request that left the queue."""
    if request.preemptions:
        _child(PREEMPTIONS, request.tier).inc()
    else:
        _child(WAIT, request.tier).observe(now - request.arrival_s)


def on_record(record: Record) -> None:
    """Count a request that ended."""
    _child(REQUESTS, record.tier, record.outcome.value).inc()
    if record.outcome is Outcome.COMPLETED:
        _child(ESTIMATE_ERROR, record.category).observe(abs(record.estimated_tokens - record.actual_tokens))
        _child(ESTIMATED, record.category).inc(record.estimated_tokens)
        _child(GENERATED, record.category).inc(record.actual_tokens)
        _child(BIAS, record.category).set(record.bias if record.bias_after is None else record.bias_after)
