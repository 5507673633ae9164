"""Engines: what `serving.serve` drives, in real or in virtual time."""

STEP_COLUMNS = (
    "time_s",
    "duration_s",
    "running",
    "waiting",
    "prompt_requests",
    "prompt_tokens",
    "output_requests",
    "output_tokens",
    "preemptions",
    "kv_cache_usage",
)
"""The columns of `steps.parquet`, a row an iteration: its end, how long it took, what it held and made."""

MAX_WAIT_S = 0.1
"""A step that waits for time to pass, or for a server, comes back after so long: whoever drives it may want to stop."""


def wait_s(until: float, now: float) -> float:
    """How long a step waits at most."""
    return min(max(0.0, until - now), MAX_WAIT_S)
