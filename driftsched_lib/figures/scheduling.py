"""Who waits how long under which policy; frames are those of `scorecard.completed_requests` or `results.load`."""

import warnings
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from scipy.stats import ecdf

from driftsched_lib.figures.style import (
    DARK,
    POLICY_COLORS,
    POLICY_NAMES,
    batchings_of,
    by_policy,
    legend_below,
    log_tail,
    panels,
    policy_style,
    side_styles,
)
from driftsched_lib.requests import TIERS
from driftsched_lib.studies.compare import quantile, relative_change, select

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
                name = f"P{q * 100:.0f}  {change.estimate:+.0%}"
                axis.text(1.02, y, name, transform=axis.get_yaxis_transform(), va="center", fontsize=9)
                if batching == "static" and (policy, q) in PAPER_CHANGE:
                    axis.plot(PAPER_CHANGE[policy, q], y + shift * 1.1, "D", color="black", markersize=5, zorder=5)
        axis.axvline(0, color="black", linewidth=1)
        axis.set_yticks(range(len(policies)), [POLICY_NAMES[policy] for policy in policies])
        axis.set_ylim(len(policies) - 0.5, -0.5)
        axis.margins(x=0.08)
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.set_title(f"{batching} batching", loc="left")
        axis.set_xlabel("change of E2E against FIFO (95% interval)")
        axis.grid(axis="y", visible=False)
    for q, marker, face in zip(quantiles, "os", (DARK, "white"), strict=True):
        axes[0][0].plot([], [], marker, color=DARK, markerfacecolor=face, markersize=8, label=f"P{q * 100:.0f}")
    axes[0][0].plot([], [], "D", color="black", markersize=5, label="the paper's SJF, static batches")
    legend_below(figure, axes[0][0])
    return figure


def e2e_tails(done: pd.DataFrame) -> Figure:
    """Share of requests that took longer than x, tail on a log scale, a line a policy with the range over seeds as a
    band, a panel a batching."""

    def draw(runs: pd.DataFrame, axis: plt.Axes) -> None:
        for policy, e2e in by_policy(runs, "e2e_s"):
            above = np.geomspace(1, 1 / len(e2e), 300)
            axis.plot(e2e.quantile(1 - above), above, **_line(policy), label=POLICY_NAMES[policy])
            seeds = [run.quantile(1 - above) for _, run in e2e.groupby(runs.seed)]
            ends = np.min(seeds, axis=0), np.max(seeds, axis=0)
            axis.fill_betweenx(above, *ends, color=POLICY_COLORS[policy], alpha=0.12, linewidth=0)

    figure = panels(
        done, "batching", draw, "E2E latency (s), band: range over seeds", "share of requests above", finish=log_tail
    )
    legend_below(figure, figure.axes[0])
    return figure


def latency_by_tier(done: pd.DataFrame) -> Figure:
    """P50 and P99 of E2E by tier and policy, means over seeds with their range, a row a batching, a panel a tier."""
    batchings = batchings_of(done)
    policies = [policy for policy, _ in by_policy(done, "e2e_s")]
    figure, axes = plt.subplots(
        len(batchings), len(TIERS), figsize=(10.5, 2.6 * len(batchings)), sharex="row", sharey=True, squeeze=False
    )
    for row, batching in zip(axes, batchings, strict=True):
        for axis, tier in zip(row, TIERS, strict=True):
            part = select(done, batching=batching, tier=tier)
            for policy, e2e in by_policy(part, "e2e_s"):
                y, color = policies.index(policy), POLICY_COLORS[policy]
                seeds = e2e.groupby(part.seed).quantile([0.50, 0.99]).unstack()
                axis.plot(seeds.mean(), [y, y], color=color, linewidth=1, alpha=0.5)
                for q, face in ((0.50, color), (0.99, "white")):
                    axis.plot([seeds[q].min(), seeds[q].max()], [y, y], color=color, linewidth=4, alpha=0.6)
                    axis.plot(seeds[q].mean(), y, "o", color=color, markerfacecolor=face, markersize=7)
            axis.set_title(f"{tier}, {batching}", loc="left", fontsize=11)
            axis.grid(axis="y", visible=False)
        row[0].set_xlim(left=0)
    axes[0][0].set_yticks(range(len(policies)), [POLICY_NAMES[policy] for policy in policies])
    axes[0][0].set_ylim(len(policies) - 0.5, -0.5)
    figure.supxlabel("E2E (s): filled P50, open P99, thick: range over seeds", fontsize=11)
    return figure


def _line(policy: str) -> dict[str, str]:
    """A policy's style for a line of too many points for markers."""
    style = policy_style(policy)
    return {key: style[key] for key in ("color", "linestyle")}


def queue_depth(depth: pd.DataFrame) -> Figure:
    """Queued requests over time by policy, the mean over seeds with their range, a row a batching, a panel a tier.

    Parameters:
        depth: `results.load(out, "queue_depth")`.
    """
    batchings = batchings_of(depth)
    figure, axes = plt.subplots(
        len(batchings), len(TIERS), figsize=(10.5, 2.5 * len(batchings)), sharex="row", sharey=True, squeeze=False
    )
    for row, batching in zip(axes, batchings, strict=True):
        for policy, runs in select(depth, batching=batching).groupby("policy", sort=False):
            time_s = np.linspace(0, runs.time_s.max(), 200)
            for axis, tier in zip(row, TIERS, strict=True):
                seeds = [np.interp(time_s, run.time_s, run[tier], right=0) for _, run in runs.groupby("run")]
                axis.plot(time_s, np.mean(seeds, axis=0), **_line(policy), label=POLICY_NAMES[policy], linewidth=1.6)
                ends = np.min(seeds, axis=0), np.max(seeds, axis=0)
                axis.fill_between(time_s, *ends, color=POLICY_COLORS[policy], alpha=0.12, linewidth=0)
        for axis, tier in zip(row, TIERS, strict=True):
            axis.set_title(f"{tier}, {batching}", loc="left", fontsize=11)
        row[0].set_ylabel("queued requests")
    for axis in axes[-1]:
        axis.set_xlabel("time (s), band: range over seeds")
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
                axis.plot(run.time_s, run[column], **_line(policy), label=POLICY_NAMES[policy], linewidth=1)
            axis.set_title(f"{batching} batching", loc="left", fontsize=11)
        row[0].set_ylabel(wanted[column].replace(" (", "\n("))
    for axis in axes[-1]:
        axis.set_xlabel("time (s)")
    legend_below(figure, axes[0][0])
    return figure


def depth_by_tier(samples: pd.DataFrame, policies: Mapping[str, str]) -> Figure:
    """Queued requests since the first of them, a panel a tier, a line a side.

    Parameters:
        samples: columns `side`, `tier`, `time_s`, `value`.
        policies: of each side, in the order of the legend.
    """
    styles = {side: style for side, style in side_styles(policies).items() if side in set(samples.side)}

    def draw(part: pd.DataFrame, axis: plt.Axes) -> None:
        for side, style in styles.items():
            line = part[part.side == side]
            axis.plot(line.time_s - first[side], line.value, **style)
            axis.set_xlim(left=0)

    first = samples[samples.value > 0].groupby("side").time_s.min()
    in_order = samples.sort_values("tier", key=lambda tiers: tiers.map(TIERS.index), kind="stable")
    figure = panels(in_order, "tier", draw, "time (s)", "queued requests")
    legend_below(figure, figure.axes[0])
    return figure


def ttft_by_tier(served: pd.DataFrame, policies: Mapping[str, str]) -> Figure:
    """Time to first token of all requests, a panel a tier, a curve a side with its 95% band: the share that waited
    longer.

    Parameters:
        served: columns `side`, `tier`, `ttft_s`.
        policies: of each side, in the order of the legend.
    """
    styles = side_styles(policies)

    def draw(part: pd.DataFrame, axis: plt.Axes) -> None:
        for side, style in styles.items():
            above = ecdf(part.ttft_s[part.side == side]).sf
            with warnings.catch_warnings(action="ignore"):  # where none or all waited longer there is no interval
                low, high = above.confidence_interval()
            axis.step(above.quantiles, above.probabilities, where="post", **style)
            ends = low.probabilities, high.probabilities
            axis.fill_between(above.quantiles, *ends, step="post", color=style["color"], alpha=0.12, linewidth=0)

    figure = panels(served, "tier", draw, "time to first token (s)", "requests that waited longer", log_tail)
    legend_below(figure, figure.axes[0])
    return figure
