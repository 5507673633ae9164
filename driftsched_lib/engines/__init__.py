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
