"""Benchmarks: `PYTHONPATH=tests python -m benchmarks` prints what it measures in one run, and which goals are met."""

import gc
from collections.abc import Callable
from time import perf_counter
from timeit import timeit


def seconds(work: Callable[[], object], timer: Callable[[], float] = perf_counter, collect: bool = False) -> float:
    """Return the seconds that one call takes; `collect` leaves the garbage collector on."""
    return timeit(work, gc.enable if collect else "pass", timer, number=1)
