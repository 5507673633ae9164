"""Measure everything and print it; the load averages at the top and the end show other work on the machine."""

import os
import statistics
from tempfile import mkdtemp

import numpy as np
from scipy.stats import bootstrap

from benchmarks import seconds
from benchmarks.costs import TENANTS, estimator_costs, policy_costs
from benchmarks.goals import goals
from benchmarks.simulator import simulator_speed
from benchmarks.throughput import loop_throughput_ratios, plugin_throughput_ratios
from driftsched_lib.engines.load import load_engine
from driftsched_lib.experiments.params import Params
from driftsched_lib.explorer import Explorer
from driftsched_lib.validation import PROJECT


def explorer_seconds(params: Params, changes: int = 9) -> float:
    """Return the median seconds until the explorer's pictures and differences show another seed."""
    seed = Explorer(params, "data/profiles/driftsched-tiny-cpu.json", mkdtemp()).load_controls["seed"]
    return statistics.median(
        seconds(lambda value=value: setattr(seed, "value", value), collect=True) for value in range(2, 2 + changes)
    )


def main() -> None:
    quick = Params.load(PROJECT / "params" / "quick.yaml")
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} before")
    costs = policy_costs(), estimator_costs(), simulator_speed()
    titles = (
        f"submit + next (and preempt) + complete, microseconds per request, by number queued, {TENANTS} tenants",
        "estimate + observe, or classify, CPU microseconds per request",
        "simulated on one core",
    )
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
