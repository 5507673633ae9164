"""A change as it happens, and the estimators that catch up with it."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from driftsched_lib.comparison import select
from driftsched_lib.figures.style import COLORS, legend_below


def catching_up(replays: pd.DataFrame, scenario: str, category: str, change: int, before: int, after: int) -> Figure:
    """What each estimator says of one and the same request of a category around a change, the mean over seeds.

    Parameters:
        replays: of `drift_lab.replays`.
        change: the position at which lengths change; `before` and `after` requests around it are shown.
    """
    part = replays[(replays.scenario == scenario) & (replays.category == category)]
    part = part[part.position.between(change - before, change + after)]
    figure, axis = plt.subplots(figsize=(9, 4))
    width = max(1, (before + after) // 60)
    bins = (part.position - change) // width * width
    actual = part.actual_tokens.groupby(bins).mean()
    axis.plot(actual.index, actual, color="#bbbbbb", linewidth=5, label="actual, mean", zorder=0)
    for name, color in zip(part.estimator.unique(), _colors(), strict=False):
        rows = select(part, estimator=name)
        line = rows.probe_tokens.groupby(bins).mean()
        axis.plot(line.index, line, color=color, label=name, linewidth=1.6)
    axis.axvline(0, color="black", linewidth=1)
    axis.set_xlabel("requests after the change")
    axis.set_ylabel(f"estimate of one {category} request (tokens)")
    legend_below(figure, axis)
    return figure


def coverage_over_time(windows: pd.DataFrame) -> Figure:
    """Share of outputs within their 90% interval, window by window, the mean over seeds; a panel a scenario.

    Parameters:
        windows: of `drift_lab.over_time`.
    """
    scenarios = list(windows.scenario.unique())
    figure, axes = plt.subplots(1, len(scenarios), figsize=(2.6 * len(scenarios), 3.2), sharey=True, squeeze=False)
    for axis, scenario in zip(axes[0], scenarios, strict=True):
        axis.axhspan(0.88, 0.92, color="#009E73", alpha=0.15, linewidth=0)
        part = select(windows, scenario=scenario)
        for name, color in zip(windows.estimator.unique(), _colors(), strict=False):
            line = select(part, estimator=name).groupby("window").coverage.mean()
            axis.plot(line.index, line, color=color, label=name, linewidth=1.4)
        axis.set_title(scenario, loc="left", fontsize=10)
        axis.set_xlabel("window")
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0][0].set_ylabel("outputs in their interval")
    axes[0][0].set_ylim(0.6, 1.0)
    legend_below(figure, axes[0][0])
    return figure


def speed_against_noise(table: pd.DataFrame) -> Figure:
    """Observations until a change is made good against noise when nothing changes; both small is better.

    Parameters:
        table: columns `recovery`, `noise` and `kind`, by estimator.
    """
    figure, axis = plt.subplots(figsize=(7, 4.2))
    for kind, color in zip(table.kind.unique(), COLORS, strict=False):
        rows = select(table, kind=kind)
        axis.plot(rows.noise, rows.recovery, "o-" if kind == "EMA" else "o", color=color, label=kind, linewidth=1)
        for name, row in rows.iterrows():
            axis.annotate(name, (row.noise, row.recovery), (5, 4), textcoords="offset points", fontsize=8)
    axis.axhspan(0, 10, color="#009E73", alpha=0.12, linewidth=0)
    axis.set_xlabel("noise when nothing changes (standard deviation of the log estimate)")
    axis.set_ylabel("observations to be back within 10%")
    axis.set_ylim(bottom=0)
    axis.set_xlim(left=0)
    axis.margins(x=0.12)
    legend_below(figure, axis)
    return figure


def _colors() -> list:
    return [*COLORS, *np.array([[0.2, 0.2, 0.2], [0.5, 0.3, 0.1]])]
