"""A change as it happens, and the estimators that catch up with it."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, ScalarFormatter

from driftsched_lib.figures.style import COLORS, legend_right, neighbours
from driftsched_lib.studies.compare import select

_LINES = [
    (COLORS[0], "-"),
    (COLORS[1], "--"),
    (COLORS[2], "-."),
    ("#000000", ":"),
    (COLORS[4], (0, (6, 1, 1, 1, 1, 1))),
]
_GOAL = {"color": "#009E73", "alpha": 0.12, "linewidth": 0}


def catching_up(replays: pd.DataFrame, scenario: str, category: str, change: int, before: int, after: int) -> Figure:
    """What each estimator says of one and the same request around a change, as a share of where it settles: the
    geometric mean of what it says in the second half of what comes after the change.  Lines are means over seeds, bands
    their 95% intervals; where replays have no delay, all requests since the change have been observed.

    Parameters:
        replays: of `drift_lab.replays`, of five estimators at most.
        change: the position at which lengths change; `before` and `after` requests around it are shown.
    """
    part = replays[(replays.scenario == scenario) & (replays.category == category)]
    half = (change + replays.position.max() + 1) / 2
    figure, axis = plt.subplots(figsize=(9, 4))
    axis.axhspan(0.9, 1.1, **_GOAL)

    def draw(rows: pd.DataFrame, column: str, **style) -> None:
        logs = np.log(rows[column].astype(float))
        logs -= logs[rows.position >= half].mean()
        runs = rows.groupby("seed")
        since = runs.cumcount() - (rows.position < change).groupby(rows.seed).transform("sum")
        shown = rows.position.between(change - before, change + after)
        _line_with_band(axis, logs[shown].groupby(since[shown]), np.exp, **style)

    draw(
        select(part, estimator=part.estimator.iloc[0]), "actual_tokens", color="#bbbbbb", lw=5, label="actual", zorder=0
    )
    for name, (color, dashes) in zip(part.estimator.unique(), _LINES, strict=False):
        draw(select(part, estimator=name), "probe_tokens", color=color, linestyle=dashes, label=name, lw=1.8)
    axis.axvline(0, color="black", linewidth=1)
    axis.set_xlabel(f"requests of the category {category} since the change")
    axis.set_ylabel(f"estimate of one {category} / where it settles")
    legend_right(figure, axis)
    return figure


def coverage_over_time(windows: pd.DataFrame) -> Figure:
    """Share of outputs within their 90% interval, and its width, window by window; a column a scenario.

    Lines are means over seeds, bands their 95% intervals.

    Parameters:
        windows: of `drift_lab.over_time`, of five estimators at most.
    """
    scenarios = list(windows.scenario.unique())
    figure, axes = plt.subplots(
        2, len(scenarios), figsize=(2.8 * len(scenarios), 5.2), sharey="row", sharex=True, squeeze=False
    )
    for column, scenario in enumerate(scenarios):
        above, below = axes[:, column]
        above.axhspan(0.88, 0.92, **_GOAL)
        part = select(windows, scenario=scenario)
        for name, (color, dashes) in zip(windows.estimator.unique(), _LINES, strict=False):
            groups = select(part, estimator=name).groupby("window")
            for axis, measure in ((above, "coverage"), (below, "width_tokens")):
                _line_with_band(axis, groups[measure], color=color, linestyle=dashes, label=name, lw=1.6)
        above.set_title(scenario.replace("_", " "), loc="left", fontsize=11)
        above.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        below.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes[1][0].set_ylim(bottom=0)
    axes[0][0].set_ylabel("in the interval")
    axes[1][0].set_ylabel("its width (tokens)")
    figure.supxlabel("window of 200 requests", fontsize=11)
    legend_right(figure, axes[0][0])
    return figure


def speed_against_noise(table: pd.DataFrame) -> Figure:
    """Observations until a change is made good against noise when nothing changes, with 95% intervals; both small is
    better.  One that never gets there stands at the upper edge.

    Parameters:
        table: columns `recovery` and `noise`, intervals both, and `kind`, by estimator.
    """
    figure, axis = plt.subplots(figsize=(8, 4.6))
    numbers = pd.DataFrame(
        {
            f"{column}_{part}": [getattr(interval, part) for interval in table[column]]
            for column in ("noise", "recovery")
            for part in ("estimate", "low", "high")
        },
        index=table.index,
    )
    edge = 1.6 * numbers.recovery_estimate[np.isfinite(numbers.recovery_estimate)].max()
    late = ~np.isfinite(numbers.recovery_estimate)
    numbers = numbers.replace(np.inf, edge)
    for kind, color in zip(table.kind.unique(), COLORS, strict=False):
        rows = numbers[table.kind == kind]
        x, y = rows.noise_estimate, rows.recovery_estimate
        errors = {
            "xerr": [x - rows.noise_low, rows.noise_high - x],
            "yerr": [y - rows.recovery_low, rows.recovery_high - y],
        }
        style = "o-" if kind == "EMA" else "o"
        axis.errorbar(x, y, **errors, fmt=style, color=color, label=kind, linewidth=1, elinewidth=1.2, markersize=5)
        points = pd.DataFrame({"x": x, "y": np.log(y)}).sort_values("x")
        for number, (names, (at, height)) in enumerate(neighbours(points, apart=(0.04, 0.12))):
            left = kind != "EMA" and number % 2 == 1
            text = ", ".join(f"{name} (never)" if late[name] else str(name) for name in names).replace("_", " ")
            axis.annotate(
                text,
                (at, np.exp(height)),
                (-9 if left else 9, 5 if kind == "EMA" or late[names[0]] else -5),
                textcoords="offset points",
                fontsize=10,
                color=color,
                ha="right" if left else "left",
                va="bottom" if kind == "EMA" or late[names[0]] else "top",
            )
    axis.axhspan(1, 10, **_GOAL)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(ScalarFormatter())
    axis.set_ylim(bottom=2)
    axis.set_xlim(left=0)
    axis.margins(x=0.12)
    axis.set_xlabel("noise when nothing changes (standard deviation of the log estimate)")
    axis.set_ylabel("observations to be back within 10%")
    legend_right(figure, axis)
    return figure


def _line_with_band(axis: plt.Axes, groups, scale=lambda values: values, **style) -> None:
    table = groups.agg(["mean", "sem", "count"])
    table = table[table["count"] > table["count"].max() / 2]  # the ends, which few seeds reach, are noise
    mean, half = table["mean"], 1.96 * table["sem"].fillna(0.0)
    axis.plot(mean.index, scale(mean), **style)
    axis.fill_between(mean.index, scale(mean - half), scale(mean + half), color=style["color"], alpha=0.2, linewidth=0)
