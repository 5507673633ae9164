"""Measure everything and print it; the load averages at the top and the end show other work on the machine."""

import gc
import operator
import os
import statistics
from functools import partial
from math import log2
from tempfile import mkdtemp
from timeit import timeit

import numpy as np
from pandas import DataFrame, Series
from scipy.stats import bootstrap

from benchmarks.costs import CLASSIFIERS, QUEUED, TENANTS, estimator_costs, policy_costs
from benchmarks.simulator import simulator_speed
from benchmarks.throughput import loop_throughput_ratios, plugin_throughput_ratios
from driftsched_lib.engines.load import load_engine
from driftsched_lib.experiments.params import Params
from driftsched_lib.explorer import Explorer
from driftsched_lib.validation import PROJECT

MEETS = {">=": operator.ge, "<=": operator.le, "<": operator.lt}


def explorer_seconds(params: Params, changes: int = 9) -> float:
    """Return the median seconds until the explorer's pictures and differences show another seed."""
    seed = Explorer(params, "data/profiles/driftsched-tiny-cpu.json", mkdtemp()).load_controls["seed"]
    changed = (partial(setattr, seed, "value", value) for value in range(2, 2 + changes))
    return statistics.median(timeit(change, gc.enable, number=1) for change in changed)


def goals(policies: DataFrame, estimators: Series, simulator: DataFrame, loop, plugin, explorer_s: float) -> DataFrame:
    """Return one row per goal: what was measured, its range, the goal, and whether it is met.

    The arguments are what the benchmarks return, in the order in which they run; `policies` is for `QUEUED`.
    """
    few, many, most = QUEUED
    growth = policies[most] / policies[few]
    estimates, text = estimators.drop(list(CLASSIFIERS)), estimators["text classifier"]
    first, last = simulator.iloc[0], simulator.iloc[-1]
    bound = log2(last.requests) / log2(first.requests)
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
        (f"{n} requests simulated, cost of each", cost.iloc[-1], cost, "<=", bound),
        ("seconds until the explorer follows", explorer_s, [explorer_s], "<", 0.5),
    ]
    table = {
        what: (measured, min(values), max(values), f"{sign} {goal:.4g}", "yes" if MEETS[sign](measured, goal) else "no")
        for what, measured, values, sign, goal in rows
    }
    return DataFrame.from_dict(table, orient="index", columns=["measured", "lowest", "highest", "goal", "met"])


def main() -> None:
    quick = Params.load(PROJECT / "params" / "quick.yaml")
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} before")
    costs, us = (policy_costs(), estimator_costs(), simulator_speed()), "microseconds per request"
    titles = [f"submit + next (and preempt) + complete, {us}, by number queued, {TENANTS} tenants"]
    titles += [f"estimate + observe, or classify, CPU {us}", "simulated on one core"]
    for title, table in zip(titles, costs, strict=True):
        print(f"\n{title}\n{table.to_string(float_format='{:,.2f}'.format)}")
    explorer_s = explorer_seconds(quick.changed(requests=300, workload__length_scale=0.5))
    engine = load_engine(quick.engine)
    loop = loop_throughput_ratios(quick.workload, engine)
    plugin = plugin_throughput_ratios(quick.engine, quick.workload, engine)
    print("\noutput tokens per second and 95% interval of the median: loop (FIFO) over vLLM, plug-in over vLLM's FCFS")
    for ratios in (loop, plugin):
        low, high = bootstrap((ratios,), np.median, method="percentile", rng=0).confidence_interval
        print(*map("{:.3f}".format, ratios), f"[{low:.3f}, {high:.3f}]")
    print(f"\n{goals(*costs, loop, plugin, explorer_s).to_string(float_format='{:.3f}'.format)}")
    print(f"\nload average {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
