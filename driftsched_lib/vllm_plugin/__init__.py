"""The scheduler inside vLLM: `--scheduler-cls driftsched_lib.vllm_plugin.DriftSchedScheduler`."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Import vLLM only when the scheduler is asked for; the settings can be read without vLLM."""
    if name == "DriftSchedScheduler":
        from driftsched_lib.vllm_plugin.scheduler import DriftSchedScheduler

        return DriftSchedScheduler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
