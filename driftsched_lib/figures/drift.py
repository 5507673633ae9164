"""A change as it happens, and the estimators that catch up with it."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from driftsched_lib.comparison import select
from driftsched_lib.figures.style import COLORS, legend_right, neighbours


def catching_up(replays: pd.DataFrame, scenario: str, category: str, change: int, before: int, after: int) -> Figure:
    """What each estimator says of one and the same request around a change, the mean over seeds, as a share of where it
    settles: the geometric mean of what it says in the second half of what comes after the change.

    Parameters:
        replays: of `drift_lab.replays`.
        change: the position at which lengths change; `before` and `after` requests around it are shown.
    """
    part = replays[(replays.scenario == scenario) & (replays.category == category)]
    half = (change + replays.position.max() + 1) / 2
    width = max(1, (before + after) // 60)
    figure, axis = plt.subplots(figsize=(9, 4))
    axis.axhspan(0.9, 1.1, color="#009E73", alpha=0.12, linewidth=0)

    def draw(rows: pd.DataFrame, column: str, **style) -> None:
        settled = np.exp(np.log(rows.loc[rows.position >= half, column].astype(float)).mean())
        shown = rows[rows.position.between(change - before, change + after)]
        bins = (shown.position - change) // width * width
        line = np.exp(np.log(shown[column].astype(float)).groupby(bins).mean()) / settled
        axis.plot(line.index, line, **style)

    draw(part, "actual_tokens", color="#cccccc", linewidth=6, label="actual", zorder=0)
    for name, color in zip(part.estimator.unique(), _colors(), strict=False):
        draw(select(part, estimator=name), "probe_tokens", color=color, label=name, linewidth=1.6)
    axis.axvline(0, color="black", linewidth=1)
    axis.set_xlabel("requests after the change, of all categories")
    axis.set_ylabel(f"estimate of one {category} / where it settles")
    legend_right(figure, axis)
    return figure


def coverage_over_time(windows: pd.DataFrame) -> Figure:
    """Share of outputs within their 90% interval, window by window, the mean over seeds; a panel a scenario.

    Parameters:
        windows: of `drift_lab.over_time`.
    """
    scenarios = list(windows.scenario.unique())
    rows = -(-len(scenarios) // 4)
    figure, axes = plt.subplots(rows, 4, figsize=(11, 2.6 * rows), sharey=True, sharex=True, squeeze=False)
    for axis in axes.flat[len(scenarios) :]:
        axis.set_axis_off()
    for axis, scenario in zip(axes.flat, scenarios, strict=False):
        axis.axhspan(0.88, 0.92, color="#009E73", alpha=0.15, linewidth=0)
        part = select(windows, scenario=scenario)
        for name, color in zip(windows.estimator.unique(), _colors(), strict=False):
            line = select(part, estimator=name).groupby("window").coverage.mean()
            axis.plot(line.index, line, color=color, label=name, linewidth=1.4)
        axis.set_title(scenario.replace("_", " "), loc="left", fontsize=10)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.set_ylim(0.8, 1.0)
    figure.supxlabel("window of 200 requests", fontsize=11)
    figure.supylabel("outputs in their interval", fontsize=11)
    legend_right(figure, axes[0][0])
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
        points = rows[["noise", "recovery"]].dropna().sort_values(["recovery", "noise"], ascending=[False, True])
        places = neighbours(points, apart=(0.04, 0.04))
        middle = np.median([place[0] for _, place in places])
        for number, (names, place) in enumerate(places):
            left = kind != "EMA" and place[0] < middle
            axis.annotate(
                ", ".join(name.replace("_", " ") for name in names),
                place,
                (-7 if left else 7, (5, -5)[number % 2]),
                textcoords="offset points",
                fontsize=9,
                ha="right" if left else "left",
                va=("bottom", "top")[number % 2],
            )
    axis.axhspan(0, 10, color="#009E73", alpha=0.12, linewidth=0)
    axis.set_xlabel("noise when nothing changes (standard deviation of the log estimate)")
    axis.set_ylabel("observations to be back within 10%")
    axis.set_ylim(bottom=0)
    axis.set_xlim(left=0)
    axis.margins(x=0.12)
    legend_right(figure, axis)
    return figure


def _colors() -> list:
    return [*COLORS, *np.array([[0.2, 0.2, 0.2], [0.5, 0.3, 0.1]])]
