"""All benchmarks, printed, and whether each meets its goal."""

import os
import statistics
from collections.abc import Sequence
from math import log2
from pathlib import Path

import numpy as np
import pandas as pd
from benchmarks import explorer
from benchmarks.decisions import QUEUED, TENANTS, decision_costs
from benchmarks.estimators import MAX_TEXT_US, estimator_costs
from benchmarks.estimators import MAX_US as MAX_ESTIMATE_US
from benchmarks.simulator import simulator_speed
from benchmarks.throughput import loop_throughput_ratios, plugin_throughput_ratios
from scipy.stats import bootstrap

from driftsched_lib.experiments.engine import load_engine
from driftsched_lib.experiments.params import Params
from driftsched_lib.validation import PROJECT

MAX_US = 20
MIN_RATIO = 0.97
MIN_PLUGIN_RATIO = 0.98
MAX_S = 10


def main(params_file: Path = PROJECT / "params" / "quick.yaml") -> None:
    """Measure everything and print it; other work on the machine shows in the load averages at the top and the end."""
    params = Params.load(params_file)
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} before")
    costs = decision_costs(params)
    print(f"\nsubmit + next (and preempt) + complete, microseconds a request, by number queued, of {TENANTS} tenants")
    growth = costs[QUEUED[-1]] / costs[QUEUED[0]]
    print(costs.assign(growth=growth).to_string(float_format="{:.2f}".format))

    estimators = estimator_costs()
    print("\nestimate + observe, or classify, microseconds of CPU time a request")
    print(estimators.to_string(float_format="{:.1f}".format))

    simulators = simulator_speed()
    print("\nsimulated on one core, seconds of CPU time, each in a process of its own")
    print(simulators.to_string(index=False, float_format="{:,.1f}".format))

    seconds = explorer.seconds_a_change()
    print(f"\nthe explorer follows a change in {seconds:.2f} s, median (goal: {explorer.MAX_S} s)")

    engine = load_engine(params)
    ratios = loop_throughput_ratios(params, engine)
    _print_ratios("our loop (FIFO, continuous) over vLLM given all requests at once", ratios, MIN_RATIO)
    plugin = plugin_throughput_ratios(params, engine)
    _print_ratios("vLLM with the plug-in over vLLM's FCFS", plugin, MIN_PLUGIN_RATIO)

    print(f"\n{goals(costs, estimators, ratios, plugin, simulators).to_string(float_format='{:.3f}'.format)}")
    print(f"\nload average {os.getloadavg()[0]:.1f} after")


def _print_ratios(what: str, ratios: Sequence[float], least: float) -> None:
    print(f"\n{what}, output tokens a second, each pair")
    print("  ".join(f"{ratio:.3f}" for ratio in ratios))
    low, high = median_interval(ratios)
    print(f"95% interval of the median {low:.3f} to {high:.3f}", end="")
    print(": too wide to decide the goal, the machine is not quiet" if low < least <= high else "")


def goals(
    costs: pd.DataFrame,
    estimators: pd.Series,
    ratios: Sequence[float],
    plugin: Sequence[float],
    simulators: pd.DataFrame,
) -> pd.DataFrame:
    """A row a goal: what was measured, its range over the pairs or the policies, the goal, and whether it is met.

    Parameters:
        costs: of `decision_costs`, for `QUEUED`.
        estimators: of `estimator_costs`.
        ratios: of `loop_throughput_ratios`.
        plugin: of `plugin_throughput_ratios`.
        simulators: of `simulator_speed`.
    """
    few, many, most = QUEUED
    growth, log_growth = costs[most] / costs[few], log2(most) / log2(few)
    ratio, cost, grown = statistics.median(ratios), costs[many].max(), growth.max()
    estimates, text = estimators.drop(["key words", "text classifier"]), estimators["text classifier"]
    slowest, inside = estimates.max(), statistics.median(plugin)
    ours = simulators[simulators.simulator.str.startswith("DriftSched")]
    big = ours.iloc[-1]
    per_request = ours.cpu_s / ours.requests
    spread, log_spread = per_request.iloc[-1] / per_request.iloc[0], log2(big.requests) / log2(ours.requests.iloc[0])
    rows = {
        "throughput, loop over vLLM, median": (ratio, ratios, f">= {MIN_RATIO}", ratio >= MIN_RATIO),
        "throughput, plug-in over FCFS, median": (
            inside,
            plugin,
            f">= {MIN_PLUGIN_RATIO}",
            inside >= MIN_PLUGIN_RATIO,
        ),
        f"microseconds, {many:,} queued, worst": (cost, costs[many], f"< {MAX_US}", cost < MAX_US),
        "microseconds, an estimator, worst": (
            slowest,
            estimates,
            f"< {MAX_ESTIMATE_US}",
            slowest < MAX_ESTIMATE_US,
        ),
        "microseconds, the text classifier": (text, [text], f"< {MAX_TEXT_US}", text < MAX_TEXT_US),
        f"cost, {most:,} over {few:,}, worst": (grown, growth, f"<= {log_growth} (log n)", grown <= log_growth),
        "requests simulated, times Ciw": (big.times_ciw, ours.times_ciw, ">= 5", big.times_ciw >= 5),
        f"seconds, {big.requests:,} requests": (big.cpu_s, [big.cpu_s], f"< {MAX_S}", big.cpu_s < MAX_S),
        f"MiB, {big.requests:,} requests": (big.memory_mib, [big.memory_mib], "< 1,500", big.memory_mib < 1500),
        "a simulated request's cost, most over fewest": (
            spread,
            per_request / per_request.iloc[0],
            f"<= {log_spread:.2f} (log n)",
            spread <= log_spread,
        ),
    }
    return pd.DataFrame.from_dict(
        {
            what: (measured, min(values), max(values), goal, "yes" if met else "no")
            for what, (measured, values, goal, met) in rows.items()
        },
        orient="index",
        columns=["measured", "least", "most", "goal", "met"],
    )


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95% percentile bootstrap interval of the median."""
    interval = bootstrap((values,), np.median, method="percentile", rng=0).confidence_interval
    return float(interval.low), float(interval.high)
