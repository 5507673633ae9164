"""Who waits how long under which policy; frames are those of `scorecard.completed_requests` or `results.load`."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from driftsched_lib.comparison import quantile, relative_change, select
from driftsched_lib.figures.style import (
    POLICY_COLORS,
    POLICY_NAMES,
    batchings_of,
    by_policy,
    legend_below,
    log_tail,
    panels,
)
from driftsched_lib.requests import TIERS

PAPER_CHANGE = {("sjf", 0.50): -0.42, ("sjf", 0.99): -0.16}


def change_against_fifo(done: pd.DataFrame, quantiles: Sequence[float] = (0.50, 0.99)) -> Figure:
    """Change of E2E quantiles against FIFO with 95% intervals, a panel a batching; the paper's numbers as diamonds."""
    policies = [policy for policy in POLICY_NAMES if policy != "fifo" and policy in set(done.policy)]
    batchings = batchings_of(done)
    figure, axes = plt.subplots(1, len(batchings), figsize=(5.2 * len(batchings), 3.6), sharex=True, squeeze=False)
    for axis, batching in zip(axes[0], batchings, strict=True):
        runs = select(done, batching=batching)
        for row, policy in enumerate(policies):
            for q, marker, shift in zip(quantiles, "os", (-0.16, 0.16), strict=True):
                change = relative_change(runs, "e2e_s", quantile(q), {"policy": policy}, {"policy": "fifo"})
                y = row + shift
                axis.plot([change.low, change.high], [y, y], color=POLICY_COLORS[policy])
                axis.plot(
                    change.estimate,
                    y,
                    marker,
                    color=POLICY_COLORS[policy],
                    markersize=8,
                    markerfacecolor=POLICY_COLORS[policy] if marker == "o" else "white",
                )
                axis.annotate(
                    f"P{q * 100:.0f}  {change.estimate:+.0%}",
                    (max(change.high, change.estimate), y),
                    (8, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=9,
                )
                if (policy, q) in PAPER_CHANGE:
                    axis.plot(PAPER_CHANGE[policy, q], y + shift * 1.1, "D", color="black", markersize=5, zorder=5)
        axis.axvline(0, color="black", linewidth=1)
        axis.set_yticks(range(len(policies)), [POLICY_NAMES[policy] for policy in policies])
        axis.set_ylim(len(policies) - 0.5, -0.5)
        axis.margins(x=0.25)
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.set_title(f"{batching} batching", loc="left")
        axis.set_xlabel("change of E2E against FIFO (95% interval)")
        axis.grid(axis="y", visible=False)
    axes[0][-1].plot([], [], "D", color="black", markersize=5, label="the paper's SJF")
    axes[0][-1].legend(loc="best", fontsize=9, frameon=True)
    return figure


def e2e_tails(done: pd.DataFrame) -> Figure:
    """Share of requests that took longer than x, tail on a log scale, a line a policy, a panel a batching."""

    def draw(runs: pd.DataFrame, axis: plt.Axes) -> None:
        for policy, e2e in by_policy(runs, "e2e_s"):
            above = 1 - np.arange(len(e2e)) / len(e2e)
            axis.plot(np.sort(e2e), above, color=POLICY_COLORS[policy], label=POLICY_NAMES[policy])

    figure = panels(done, "batching", draw, xlabel="E2E latency (s)", ylabel="share of requests above", finish=log_tail)
    legend_below(figure, figure.axes[0])
    return figure


def latency_by_tier(done: pd.DataFrame) -> Figure:
    """P50 (dot) to P99 (bar end) of E2E by tier and policy, a row a batching, a panel a tier."""
    batchings = batchings_of(done)
    figure, axes = plt.subplots(
        len(batchings), len(TIERS), figsize=(10.5, 2.6 * len(batchings)), sharex="row", sharey=True, squeeze=False
    )
    for row, batching in zip(axes, batchings, strict=True):
        for axis, tier in zip(row, TIERS, strict=True):
            for y, (policy, e2e) in enumerate(by_policy(select(done, batching=batching, tier=tier), "e2e_s")):
                p50, p99 = e2e.quantile([0.50, 0.99])
                axis.plot([p50, p99], [y, y], color=POLICY_COLORS[policy])
                axis.plot(p50, y, "o", color=POLICY_COLORS[policy], markersize=8)
                axis.plot(p99, y, "|", color=POLICY_COLORS[policy], markersize=12, markeredgewidth=2)
            names = [POLICY_NAMES[policy] for policy, _ in by_policy(done, "e2e_s")]
            axis.set_yticks(range(len(names)), names)
            axis.set_title(f"{tier}, {batching}", loc="left", fontsize=11)
            axis.set_xlim(left=0)
            axis.grid(axis="y", visible=False)
        row[0].invert_yaxis()
    for axis in axes[-1]:
        axis.set_xlabel("E2E (s): dot P50, bar P99")
    return figure


def queue_depth(depth: pd.DataFrame) -> Figure:
    """Queued requests over time by policy, a row a batching, a panel a tier; the first seed.

    Parameters:
        depth: `results.load(out, "queue_depth")`.
    """
    depth = depth[depth.seed == depth.seed.min()]
    batchings = batchings_of(depth)
    figure, axes = plt.subplots(
        len(batchings), len(TIERS), figsize=(10.5, 2.5 * len(batchings)), sharex="row", sharey=True, squeeze=False
    )
    for row, batching in zip(axes, batchings, strict=True):
        for axis, tier in zip(row, TIERS, strict=True):
            for policy, run in select(depth, batching=batching).groupby("policy", sort=False):
                axis.plot(run.time_s, run[tier], color=POLICY_COLORS[policy], label=POLICY_NAMES[policy], linewidth=1.6)
            axis.set_title(f"{tier}, {batching}", loc="left", fontsize=11)
        row[0].set_ylabel("queued requests")
    for axis in axes[-1]:
        axis.set_xlabel("time (s)")
    legend_below(figure, axes[0][0])
    return figure


def telemetry(samples: pd.DataFrame) -> Figure:
    """What the machine did during the first seed's FIFO and SJF runs, a panel a measure.

    Parameters:
        samples: `results.load(out, "telemetry")`.
    """
    samples = samples[(samples.seed == samples.seed.min()) & samples.policy.isin(["fifo", "sjf"])]
    first = samples.drop_duplicates(["batching", "policy", "run"]).drop_duplicates(["batching", "policy"]).run
    samples = samples[samples.run.isin(first)]
    wanted = {
        "gpu_utilisation_percent": "GPU utilisation (%)",
        "gpu_memory_used_mib": "GPU memory (MiB)",
        "gpu_power_w": "GPU power (W)",
        "cpu_utilisation_percent": "CPU utilisation (%)",
        "process_memory_mib": "process memory (MiB)",
    }
    shown = [column for column in wanted if column in samples][:3]
    batchings = batchings_of(samples)
    figure, axes = plt.subplots(
        len(shown), len(batchings), figsize=(10.5, 2.2 * len(shown)), sharex="col", sharey="row", squeeze=False
    )
    for row, column in zip(axes, shown, strict=True):
        for axis, batching in zip(row, batchings, strict=True):
            for policy, run in select(samples, batching=batching).groupby("policy"):
                axis.plot(run.time_s, run[column], color=POLICY_COLORS[policy], label=POLICY_NAMES[policy], linewidth=1)
            axis.set_title(f"{wanted[column]}, {batching}", loc="left", fontsize=11)
    for axis in axes[-1]:
        axis.set_xlabel("time (s)")
    legend_below(figure, axes[0][0])
    return figure


def ttft_by_tier(served: pd.DataFrame) -> Figure:
    """Time to first token of all requests, a panel a tier, a curve a side: the share that waited longer.

    Parameters:
        served: columns `side`, `tier`, `ttft_s`.
    """
    sides = list(served.side.unique())

    def draw(part: pd.DataFrame, axis: plt.Axes) -> None:
        for side, color in zip(sides, ("#999999", "#000000"), strict=False):
            values = np.sort(part.ttft_s[part.side == side])
            axis.step(values, 1 - np.arange(len(values)) / len(values), where="post", color=color, label=side)

    figure = panels(served, "tier", draw, "time to first token (s)", "requests that waited longer")
    legend_below(figure, figure.axes[0])
    return figure
