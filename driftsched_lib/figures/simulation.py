"""The simulator beside reality, and what it says of the paper's gains."""

from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter

from driftsched_lib.figures.style import (
    COLORS,
    DARK,
    LIGHT,
    POLICY_COLORS,
    POLICY_NAMES,
    legend_below,
    policy_style,
    side_styles,
)
from driftsched_lib.studies.compare import mean_interval, select

SOURCES = {
    "simulated": (COLORS[0], "o"),
    "at the last runs' speed": (COLORS[1], "^"),
    "at its speed": (COLORS[2], "D"),
    "reality again": ("#999999", "s"),
}


def simulated_against_real(requests: pd.DataFrame) -> Figure:
    """Every request's simulated against its real E2E, both on log scales, a panel a value of `panel`.

    Parameters:
        requests: of `fidelity.request_by_request`, with a column `panel`.
    """
    names = list(requests.panel.unique())
    figure, axes = plt.subplots(1, len(names), figsize=(3.4 * len(names), 3.5), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        part = select(requests, panel=name)
        for policy in part.policy.unique():
            run = select(part, policy=policy)
            style = policy_style(policy)
            axis.scatter(
                run.real_s,
                run.simulated_s,
                s=6,
                alpha=0.35,
                color=style["color"],
                marker=style["marker"],
                label=POLICY_NAMES[policy],
            )
        ends = [part[["real_s", "simulated_s"]].min().min(), part[["real_s", "simulated_s"]].max().max()]
        axis.plot(ends, ends, color="black", linewidth=1)
        axis.set(xscale="log", yscale="log", xlim=(ends[0] / 1.2, ends[1] * 1.2), ylim=(ends[0] / 1.2, ends[1] * 1.2))
        axis.set_box_aspect(1)
        steps = (1.0, 3.0) if ends[1] < 300 * ends[0] else (1.0,)
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(LogLocator(subs=steps))
            side.set_major_formatter(lambda seconds, _: f"{seconds:g}")
            side.set_minor_formatter(NullFormatter())
        axis.set_title(name, loc="left")
        axis.set_xlabel("real E2E (s)")
    axes[0][0].set_ylabel("simulated E2E (s)")
    legend_below(figure, axes[0][0], markerscale=3)
    return figure


def fidelity_errors(errors: pd.DataFrame, goals: Mapping[str, float]) -> Figure:
    """Relative error of each run, a row a measure, a dot a run; the goal as a band.

    Parameters:
        errors: of `fidelity.compare`.
        goals: measures, and the error to stay within.
    """
    figure, axis = plt.subplots(figsize=(8.5, 0.62 * len(goals) + 1.4))
    rng = np.random.default_rng(0)
    shown = [source for source in SOURCES if source in set(errors.source)]
    for row, (measure, goal) in enumerate(goals.items()):
        axis.fill_between([-goal, goal], row - 0.45, row + 0.45, color="#009E73", alpha=0.15, linewidth=0)
        for shift, source in zip(np.linspace(-0.26, 0.26, len(shown)), shown, strict=True):
            values = select(errors, source=source)[measure].dropna()
            color, marker = SOURCES[source]
            y = row + shift + rng.uniform(-0.06, 0.06, len(values))
            axis.plot(values, y, marker, color=color, markersize=4.5, alpha=0.75, label=source, linestyle="")
    axis.axvline(0, color="black", linewidth=1)
    axis.set_xlim(-0.5, 0.6)
    low, high = axis.get_xlim()
    beyond = sum(int((~errors[measure].dropna().between(low, high)).sum()) for measure in goals)
    axis.set_title(f"{beyond} dots lie beyond" if beyond else "", loc="right", fontsize=9, fontweight="normal")
    axis.set_yticks(range(len(goals)), list(goals))
    axis.set_ylim(len(goals) - 0.5, -0.5)
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.set_xlabel("relative error against the real run, a dot a run (band: the goal)")
    axis.grid(axis="y", visible=False)
    legend_below(figure, axis, markerscale=1.6)
    return figure


def step_residuals(held: pd.DataFrame, predicted_s: np.ndarray) -> Figure:
    """Measured over predicted seconds of each iteration: over the run, and by what it held.

    Parameters:
        held: of `profiling.iterations`.
        predicted_s: of `profiling.predicted_s`.
    """
    ratio = held.seconds.to_numpy() / predicted_s
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.2), sharey=True)
    for axis, x, name in (
        (axes[0], held.seconds.cumsum(), "time in the run (s)"),
        (axes[1], held.decode_seqs, "decoding sequences"),
        (axes[2], held.context_tokens, "context tokens attended to"),
        (axes[3], held.prefill_tokens, "prompt tokens computed"),
    ):
        axis.scatter(x, ratio, s=4, alpha=0.3, color=COLORS[0])
        bins = pd.cut(x, np.unique(np.quantile(x, np.linspace(0, 1, 13))), include_lowest=True)
        centres = x.groupby(bins, observed=True).median()
        axis.plot(centres, pd.Series(ratio, held.index).groupby(bins, observed=True).median(), color="black")
        axis.axhline(1, color="black", linewidth=1, linestyle=":")
        axis.set_xlabel(name)
    axes[3].set_xscale("symlog", linthresh=10)
    axes[3].set_xlim(left=0)
    axes[0].set_ylabel("measured / predicted (line: median)")
    axes[0].set_yscale("log")
    axes[0].set_ylim(0.4, 4)
    axes[0].set_yticks([0.5, 1, 2, 4], ["0.5", "1", "2", "4"])
    axes[0].yaxis.set_minor_formatter(NullFormatter())
    return figure


def where_the_gain_comes_from(steps: pd.DataFrame, columns: Mapping[str, str]) -> Figure:
    """Latency against the first row's, a bar a setting in the order of the rows, a panel a value of `panel`.

    Parameters:
        steps: columns `panel`, `setting`, `column`, `change`, `low`, `high`; of `decomposition.changes`.
        columns: summary columns, and what they are called.
    """
    panels = list(steps.panel.unique())
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5.6 * len(panels), 4.2), sharex=True, sharey=True, squeeze=False
    )
    settings = list(steps.setting.unique())
    for axis, panel in zip(axes[0], panels, strict=True):
        for shift, (column, color) in zip((-0.19, 0.19), zip(columns, (DARK, LIGHT), strict=True), strict=True):
            rows = select(steps, panel=panel, column=column).set_index("setting").reindex(settings)
            y = np.arange(len(settings)) + shift
            axis.barh(y, rows.change, 0.36, color=color, label=columns[column])
            axis.errorbar(
                rows.change, y, xerr=[rows.change - rows.low, rows.high - rows.change], fmt="none", color="black", lw=1
            )
            for at, (change, low, high) in zip(y, rows[["change", "low", "high"]].to_numpy(), strict=True):
                side = -1 if change < 0 else 1
                axis.annotate(
                    f"{change:+.0%}",
                    ((low if change < 0 else high), at),
                    (7 * side, 0),
                    textcoords="offset points",
                    va="center",
                    ha="right" if change < 0 else "left",
                    fontsize=9,
                )
        axis.axvline(0, color="black", linewidth=1)
        axis.set_title(panel, loc="left")
        axis.set_xlabel("change of E2E against FIFO in static batches")
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.margins(x=0.2)
        axis.grid(axis="y", visible=False)
    axes[0][0].set_yticks(range(len(settings)), settings)
    axes[0][0].invert_yaxis()
    legend_below(figure, axes[0][0])
    return figure


def latency_by_load(runs: pd.DataFrame, columns: Mapping[str, str], policies: Mapping[str, str]) -> Figure:
    """Latency over load factor, a line a setting with its 95% band over seeds; a row a column, a panel a `panel`.

    Parameters:
        runs: a row a run: `panel`, `rate`, `setting`, and the columns.
        columns: summary columns in seconds, and what they are called.
        policies: of each setting.
    """

    def draw(axis: plt.Axes, panel: str, column: str) -> None:
        for setting, style in side_styles(policies).items():
            by_rate = select(runs, panel=panel, setting=setting).groupby("rate")[column].agg(mean_interval)
            means, lows, highs = (by_rate.map(lambda i, of=of: getattr(i, of)) for of in ("estimate", "low", "high"))
            axis.plot(by_rate.index, means, **style, marker="o", ms=4)
            axis.fill_between(
                by_rate.index, lows.clip(lower=1e-3), highs, color=style["color"], alpha=0.15, linewidth=0
            )
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())

    return _over_load(list(runs.panel.unique()), {column: f"{name} (s)" for column, name in columns.items()}, draw)


def gain_by_load(changes: pd.DataFrame, columns: Mapping[str, str], policies: Mapping[str, str]) -> Figure:
    """Latency over load factor, in multiples of the baseline's, a line a setting with its 95% band; a row a column.

    Parameters:
        changes: columns `panel`, `load_factor`, `setting`, `column`, `change`, `low`, `high`.
        columns: summary columns, and what they are called.
        policies: of each setting.
    """

    def draw(axis: plt.Axes, panel: str, column: str) -> None:
        for setting, style in side_styles(policies).items():
            line = select(changes, panel=panel, column=column, setting=setting).sort_values("load_factor")
            axis.plot(line.load_factor, 1 + line.change, **style, marker="o", ms=4)
            ends = (1 + line.low).clip(lower=0.01), 1 + line.high
            axis.fill_between(line.load_factor, *ends, color=style["color"], alpha=0.2, linewidth=0)
        axis.axhline(1, color="black", linewidth=1)
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_formatter(lambda times, _: f"{times:.0f}" if times >= 1 else f"1/{1 / times:.0f}")

    names = {column: f"{name}, times FIFO's" for column, name in columns.items()}
    return _over_load(list(changes.panel.unique()), names, draw)


def _over_load(panels: Sequence[str], columns: Mapping[str, str], draw: Callable[[plt.Axes, str, str], None]) -> Figure:
    """A panel for each of `panels`, a row for each of `columns`, by name; the load factor doubles from tick to tick."""
    size = 3.3 * len(panels), 2.9 * len(columns)
    figure, axes = plt.subplots(len(columns), len(panels), figsize=size, sharex=True, sharey="row", squeeze=False)
    for row, (column, name) in zip(axes, columns.items(), strict=True):
        for axis, panel in zip(row, panels, strict=True):
            draw(axis, panel, column)
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter(lambda factor, _: f"{factor:g}")
            axis.set_title(panel, loc="left", fontsize=11)
        row[0].set_ylabel(name)
    for axis in axes[-1]:
        axis.set_xlabel("load factor")
    legend_below(figure, axes[0][0])
    return figure


def tail_by_category(waits: pd.DataFrame, policies: Sequence[str], categories: Sequence[str], load: str) -> Figure:
    """Longest wait in the queue by category: a dot a seed, a line the median; a panel a batching.

    Parameters:
        waits: columns `batching`, `policy`, `category`, `seed`, `longest_wait_s`.
        load: what was served, for the title.
    """
    batchings = list(waits.batching.unique())
    figure, axes = plt.subplots(1, len(batchings), figsize=(5.2 * len(batchings), 3.5), sharey=True, squeeze=False)
    rng = np.random.default_rng(0)
    for axis, batching in zip(axes[0], batchings, strict=True):
        for shift, policy in zip(np.linspace(-0.22, 0.22, len(policies)), policies, strict=True):
            for place, category in enumerate(categories):
                values = select(waits, batching=batching, policy=policy, category=category).longest_wait_s
                x = place + shift + rng.uniform(-0.05, 0.05, len(values))
                color = POLICY_COLORS[policy]
                axis.plot(x, values, "o", color=color, markersize=3, alpha=0.5, label=POLICY_NAMES[policy])
                axis.plot(place + shift + np.array([-0.1, 0.1]), [values.median()] * 2, color=color)
        axis.set_xticks(range(len(categories)), categories)
        axis.set_title(f"{batching} batching", loc="left")
        axis.grid(axis="x", visible=False)
    figure.suptitle(load, fontsize=11)
    axes[0][0].set_ylabel("longest wait in the queue (s)")
    axes[0][0].set_ylim(bottom=0)
    legend_below(figure, axes[0][0], markerscale=2)
    return figure
