"""Policies against each other: who is dominated, who starves whom."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from driftsched_lib.figures.style import POLICY_NAMES, TIER_COLORS, policy_style
from driftsched_lib.policies import POLICIES
from driftsched_lib.studies.compare import mean_interval, select
from driftsched_lib.studies.frontier import COMPARED, RELATIVE

LATER = " *"
"""Behind the name of a policy that takes slots back: its wait is to the first."""


def pareto(runs: pd.DataFrame, x: str, y: str, labels: tuple[str, str], color: tuple[str, str]) -> Figure:
    """A dot a policy, the mean over seeds of two measures with 95% intervals, a panel a value of `panel`.

    A line joins those that none is better in both, small being good; the others are faded.

    Parameters:
        runs: of `frontier.frontier`, with `panel`.
        labels: what the axes are called.
        color: the column that colours the dots, on a scale for each panel, and what it is called.
    """
    panels = list(runs.panel.unique())
    figure, axes = plt.subplots(1, len(panels), figsize=(6.2 * len(panels), 5.0), squeeze=False)
    column, name = color
    for axis, panel in zip(axes[0], panels, strict=True):
        groups = select(runs, panel=panel).groupby("policy")
        means = groups[[x, y, column]].mean().dropna().sort_values([x, y])
        axis.set_title(panel, loc="left")
        if means.empty:
            continue
        half = groups[[x, y]].agg(lambda values: mean_interval(values).high - values.mean()).reindex(means.index)
        on_front = means[y] < means[y].cummin().shift(fill_value=np.inf)
        front = means[on_front]
        axis.step(front[x], front[y], where="post", color="#808080", linewidth=1, zorder=1)
        alphas = np.where(on_front, 1.0, 0.45)
        axis.errorbar(means[x], means[y], half[y], half[x], fmt="none", ecolor="#b3b3b3", elinewidth=0.8, zorder=2)
        dots = axis.scatter(
            means[x], means[y], c=means[column], cmap="viridis", s=55, edgecolor="black", alpha=alphas, zorder=3
        )
        _label_beside(axis, means, x, y, on_front)
        axis.set_xlabel(labels[0])
        figure.colorbar(dots, ax=axis, label=name, shrink=0.8, pad=0.04)
    axes[0][0].set_ylabel(labels[1])
    return figure


def _label_beside(axis: plt.Axes, means: pd.DataFrame, x: str, y: str, on_front: pd.Series) -> None:
    """Names in a column on the right, in the order of their dots' heights, each with a line to its dot."""
    axis.margins(x=0.06, y=0.08)
    left, right = axis.get_xlim()
    low, high = axis.get_ylim()
    axis.set_xlim(left, right + 0.5 * (right - left))
    axis.set_xticks([tick for tick in axis.get_xticks() if left <= tick <= right])
    order = means.sort_values(y)
    for place, (policy, row) in zip(np.linspace(low, high, len(order) + 2)[1:-1], order.iterrows(), strict=True):
        axis.annotate(
            POLICY_NAMES[policy],
            (row[x], row[y]),
            (right + 0.14 * (right - left), place),
            va="center",
            fontsize=9,
            fontweight="bold" if on_front[policy] else "normal",
            arrowprops={"arrowstyle": "-", "color": "#c0c0c0", "linewidth": 0.6, "shrinkB": 4},
            zorder=0,
        )


def longest_waits(runs: pd.DataFrame) -> Figure:
    """Longest wait to the first dispatch by policy and tier: a dot a seed, a line the median; a panel a `panel`."""
    panels = list(runs.panel.unique())
    policies = [policy for policy in POLICY_NAMES if policy in set(runs.policy)]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.2 * len(panels), 0.36 * len(policies) + 1.4), sharey=True, squeeze=False
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        for place, policy in enumerate(policies):
            part = select(runs, panel=panel, policy=policy)
            for lane, (tier, color) in zip((-0.27, 0.0, 0.27), TIER_COLORS.items(), strict=True):
                waits = part[f"{tier}_longest_wait_s"]
                axis.plot(waits, [place + lane] * len(waits), "o", color=color, markersize=2.5, alpha=0.5)
                middle = [waits.median()] * 2
                axis.plot(middle, [place + lane - 0.13, place + lane + 0.13], color="black", linewidth=1.2)
        axis.set_title(panel, loc="left")
        axis.set_xlabel("longest wait (s)")
        axis.set_xlim(left=0)
        axis.grid(axis="y", visible=False)
    names = [POLICY_NAMES[policy] + LATER * POLICIES[policy].preemptive for policy in policies]
    axes[0][0].set_yticks(range(len(policies)), names)
    axes[0][0].invert_yaxis()
    handles = [plt.Line2D([], [], marker="o", linestyle="", color=color) for color in TIER_COLORS.values()]
    note = "* to the first slot, which it may lose again" if any(name.endswith(LATER) for name in names) else None
    figure.legend(
        handles, TIER_COLORS, loc="outside lower center", ncols=3, frameon=False, title=note, title_fontsize=9
    )
    return figure


def changes(table: pd.DataFrame, columns: Sequence[str] = COMPARED) -> Figure:
    """Paired changes against FIFO with their 95% intervals, all policies: a row a policy, a panel a measure and value
    of `panel`.

    Parameters:
        table: of `frontier.against`, with `panel`.
    """
    panels = list(table.panel.unique())
    policies = [policy for policy in POLICY_NAMES if policy in set(table.policy)]
    figure, axes = plt.subplots(
        len(panels),
        len(columns),
        figsize=(3.6 * len(columns), (0.24 * len(policies) + 0.5) * len(panels) + 0.5),
        sharey=True,
        sharex="row",
        squeeze=False,
    )
    for row, panel in zip(axes, panels, strict=True):
        for axis, column in zip(row, columns, strict=True):
            part = select(table, panel=panel, column=column).set_index("policy")
            for place, policy in enumerate(policies):
                change, style = part.loc[policy], policy_style(policy)
                axis.plot([100 * change.low, 100 * change.high], [place] * 2, color=style["color"])
                axis.plot(100 * change.change, place, style["marker"], color=style["color"], markersize=5)
            axis.axvline(0, color="black", linewidth=0.8)
            axis.grid(axis="y", visible=False)
            axis.set_title(f"{RELATIVE[column]}\n{panel}", loc="left", fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel("change against FIFO (%)")
    axes[0][0].set_yticks(range(len(policies)), [POLICY_NAMES[policy] for policy in policies])
    axes[0][0].invert_yaxis()
    return figure
