"""QoS-aware scheduling for multi-tenant LLM inference: estimate, queue, dispatch, learn."""

from importlib import import_module
from typing import Any

_HOMES = {
    "Params": ("experiments.params", "Params"),
    "run_grid": ("experiments.grid", "run_grid"),
    "results": ("experiments.results", ""),
    "Explorer": ("explorer", "Explorer"),
}


def __getattr__(name: str) -> Any:
    """Import what notebooks use when it is first asked for: the core needs none of its packages."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    home = import_module(f"{__name__}.{module}")
    return getattr(home, attribute) if attribute else home
