"""The core inside vLLM: `--scheduler-cls driftsched_lib.vllm_plugin.DriftSchedScheduler`."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Import vLLM only for who asks for the scheduler: its settings can be read without."""
    if name == "DriftSchedScheduler":
        from driftsched_lib.vllm_plugin.scheduler import DriftSchedScheduler

        return DriftSchedScheduler
    raise AttributeError(name)
