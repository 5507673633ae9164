"""Policies against each other: who is dominated, who starves whom."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from driftsched_lib.comparison import select
from driftsched_lib.figures.style import POLICY_COLORS, POLICY_NAMES, neighbours


def pareto(runs: pd.DataFrame, x: str, y: str, labels: tuple[str, str], color: tuple[str, str]) -> Figure:
    """A dot a policy, the mean over seeds of two measures, a panel a value of `panel`; a line joins those that none
    is better than in both, small being good.

    Parameters:
        runs: of `frontier.frontier`, with `panel`.
        labels: what the axes are called.
        color: the column that colours the dots, and what it is called.
    """
    panels = list(runs.panel.unique())
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 4.4), squeeze=False)
    column, name = color
    limits = {"vmin": runs.groupby(["panel", "policy"])[column].mean().min(), "vmax": 1.0}
    for axis, panel in zip(axes[0], panels, strict=True):
        means = select(runs, panel=panel).groupby("policy")[[x, y, column]].mean().sort_values(x)
        front = means[means[y] < means[y].cummin().shift(fill_value=np.inf)]
        axis.step(front[x], front[y], where="post", color="#999999", linewidth=1, zorder=1)
        dots = axis.scatter(means[x], means[y], c=means[column], cmap="viridis", s=60, edgecolor="black", **limits)
        groups = neighbours(means[[x, y]], apart=(0.33, 0.05))
        wide, high = np.ptp(means[[x, y]], axis=0)
        for policies, (at_x, at_y) in groups:
            names = ", ".join(POLICY_NAMES[policy] for policy in policies)
            crowded = any(
                0 < (other_x - at_x) / wide < 0.45 and abs(other_y - at_y) / high < 0.05
                for _, (other_x, other_y) in groups
            )
            place = {"xytext": (0, -13), "ha": "center"} if crowded else {"xytext": (5, 4)}
            axis.annotate(names, (at_x, at_y), textcoords="offset points", fontsize=8, **place)
        axis.set_title(panel, loc="left", fontsize=11)
        axis.set_xlabel(labels[0])
        axis.margins(x=0.18, y=0.1)
    axes[0][0].set_ylabel(labels[1])
    figure.colorbar(dots, ax=axes[0], label=name, shrink=0.8)
    return figure


def longest_waits(runs: pd.DataFrame) -> Figure:
    """Longest wait in the queue by policy: a dot a seed, a line the median; a panel a value of `panel`."""
    panels = list(runs.panel.unique())
    policies = [policy for policy in POLICY_NAMES if policy in set(runs.policy)]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(3.6 * len(panels), 0.28 * len(policies) + 1.2), sharey=True, squeeze=False
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        for place, policy in enumerate(policies):
            waits = select(runs, panel=panel, policy=policy).longest_wait_s
            axis.plot(waits, [place] * len(waits), "o", color=POLICY_COLORS[policy], markersize=4, alpha=0.6)
            axis.plot([waits.median()] * 2, [place - 0.3, place + 0.3], color=POLICY_COLORS[policy])
        axis.set_title(panel, loc="left", fontsize=11)
        axis.set_xlabel("longest wait (s)")
        axis.set_xlim(left=0)
        axis.grid(axis="y", visible=False)
    axes[0][0].set_yticks(range(len(policies)), [POLICY_NAMES[policy] for policy in policies])
    axes[0][0].invert_yaxis()
    return figure
