"""The goals of the benchmarks, and whether what was measured meets them."""

import operator
import statistics
from collections.abc import Sequence
from math import log2

import pandas as pd

from benchmarks.costs import CLASSIFIERS, QUEUED

MEETS = {">=": operator.ge, "<=": operator.le, "<": operator.lt}


def goals(
    policies: pd.DataFrame,
    estimators: pd.Series,
    simulator: pd.DataFrame,
    loop: Sequence[float],
    plugin: Sequence[float],
    explorer_s: float,
) -> pd.DataFrame:
    """Return one row per goal: what was measured, its range, the goal, and whether it is met.

    The arguments are what the benchmarks return, in the order in which they run; `policies` is for `QUEUED`.
    """
    few, many, most = QUEUED
    growth = policies[most] / policies[few]
    estimates, text = estimators.drop(list(CLASSIFIERS)), estimators["text classifier"]
    first, last = simulator.iloc[0], simulator.iloc[-1]
    cost, n = first.requests_per_s / simulator.requests_per_s, f"{last.requests:,.0f}"
    rows = [
        ("throughput, loop over vLLM, median", statistics.median(loop), loop, ">=", 0.97),
        ("throughput, plug-in over FCFS, median", statistics.median(plugin), plugin, ">=", 0.98),
        (f"microseconds, {many:,} queued, worst", max(policies[many]), policies[many], "<", 20),
        (f"cost, {most:,} over {few:,} queued, worst", max(growth), growth, "<=", log2(most) / log2(few)),
        ("microseconds, an estimator, worst", max(estimates), estimates, "<", 50),
        ("microseconds, the text classifier", text, [text], "<", 500),
        (f"{n} requests simulated, times BLIS", last.times_blis, simulator.times_blis, ">=", 10),
        (f"{n} requests simulated, MiB", last.memory_mib, simulator.memory_mib, "<", 1500),
        (
            f"{n} requests simulated, cost of each",
            cost.iloc[-1],
            cost,
            "<=",
            log2(last.requests) / log2(first.requests),
        ),
        ("seconds until the explorer follows", explorer_s, [explorer_s], "<", 0.5),
    ]
    table = {
        what: (measured, min(values), max(values), f"{sign} {goal:.4g}", "yes" if MEETS[sign](measured, goal) else "no")
        for what, measured, values, sign, goal in rows
    }
    return pd.DataFrame.from_dict(table, orient="index", columns=["measured", "lowest", "highest", "goal", "met"])
