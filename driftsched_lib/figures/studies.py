"""The studies (notebooks 04 to 06); frames have a column `panel` where a figure has one panel per value of it."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from driftsched_lib.figures.kinds import ENDS, PERCENT, dots, forest, lines, panels, spread
from driftsched_lib.figures.style import DARK, GREEN, Looks, side_looks
from driftsched_lib.studies.compare import mean_interval


def _in_turn(names: Sequence[str]) -> Looks:
    looks = zip(sns.color_palette("colorblind").as_hex(), ("-", "--", "-.", ":", "-") * 2, strict=True)
    looks = ({"color": color, "linestyle": line} for color, line in looks)
    return dict(zip(dict.fromkeys(names), looks, strict=False))


def fidelity_errors(errors: pd.DataFrame, goals: Mapping[str, float]) -> Figure:
    """Draw the relative error per run by `engine` and `source`: a row per measure of `goals`; its goal is a band."""
    table = errors.melt(["engine", "source"], list(goals), "measure", "error").dropna().astype({"error": float})
    looks = {source: look | {"linestyle": ""} for source, look in _in_turn(errors.source).items()}
    goal, labels = np.array([*goals.values()]), ("relative error (band: the goal)", "")

    def draw(axis: Axes, part: pd.DataFrame) -> None:
        dots(axis, part, "error", "measure", "source", looks, order=list(goals))
        axis.barh(range(len(goal)), 2 * goal, 0.9, -goal, color=GREEN, alpha=0.15, linewidth=0)
        axis.set(xlim=(-0.3, 0.3), xticks=(-0.2, -0.1, 0, 0.1, 0.2))
        axis.xaxis.set_major_formatter(PERCENT)
        beyond = f"{(~part.error.between(-0.3, 0.3)).sum()} dots lie beyond"
        axis.annotate(beyond, (1, 0), xycoords="axes fraction", ha="right", va="bottom", fontsize=9)

    return panels(table, draw, labels, (3.8, 0.6 * len(goals) + 1), looks, col="engine")


def where_the_gain_comes_from(steps: pd.DataFrame, columns: Mapping[str, str]) -> Figure:
    """Draw changes of latency, of `compare.changes`, a row per setting; `columns` names those of the summary."""
    looks = {setting: {"color": DARK} for setting in steps.setting.unique()}
    table = steps.rename(columns={"setting": "row", "change": "middle"}).assign(lane=steps.column.map(columns))
    labels = "change of E2E against FIFO in static batches", ""
    return panels(table, partial(forest, looks=looks, percent=True), labels, (6, 4), col="panel")


def gain_by_load(changes: pd.DataFrame, columns: Mapping[str, str], policies: Mapping[str, str]) -> Figure:
    """Draw latency in multiples of FIFO's over the load factor, a line per setting with its 95% band: a row per column.

    `changes` are of `compare.changes`, with `panel`, `load_factor`; `columns` names theirs, `policies` each setting's.
    """
    table = changes.rename(columns={"setting": "side", "change": "middle"}).sort_values("load_factor")
    table = table.assign(of=table.column.map(columns), **(1 + table[ENDS]).clip(lower=0.01))
    looks = side_looks(policies)

    def draw(axis: Axes, part: pd.DataFrame) -> None:
        lines(axis, part, "load_factor", looks, marker="o", markersize=4)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_major_formatter(lambda y, _: f"1/{1 / y:.0f}" if y < 1 else f"{y:g}")

    return panels(table, draw, ("load factor", "times FIFO's"), (3.3, 2.8), looks, col="panel", row="of", sharey="row")


def catching_up(replays: pd.DataFrame, scenario: str, category: str, change: int, before: int, after: int) -> Figure:
    """Draw what each estimator says of one and the same request around a change, as a share of where it settles.

    It settles at the geometric mean of the second half after the change.  Bands are 95% intervals over seeds.  `change`
    is a position in `drift_lab.replays`; `before` and `after` requests around it are shown.
    """
    part = replays[(replays.scenario == scenario) & (replays.category == category)]
    names, half, tables = list(part.estimator.unique()), (change + replays.position.max() + 1) / 2, []
    for side, column in {"actual": "actual_tokens", **dict.fromkeys(names, "probe_tokens")}.items():
        rows = part[part.estimator == (names[0] if side == "actual" else side)]
        logs = np.log(rows[column].astype(float))
        logs -= logs[rows.position >= half].mean()
        since = rows.groupby("seed").cumcount() - (rows.position < change).groupby(rows.seed).transform("sum")
        shown = rows.position.between(change - before, change + after)
        of = logs[shown].groupby(since[shown].rename("since")).agg(["count", mean_interval])
        of = of.mean_interval[of["count"] > of["count"].max() / 2]  # few seeds reach the ends
        tables.append(np.exp(spread(of)).assign(side=side).reset_index())
    looks = {"actual": {"color": "#cccccc", "linestyle": "-"}} | _in_turn(names)
    labels = f"requests of the category {category} since the change (at 0)", "estimate / where it settles"
    figure = panels(table := pd.concat(tables), partial(lines, x="since", looks=looks), labels, (9, 3.6), looks)
    figure.axes[0].set_ylim(0, 1.5 * table.middle.max())  # bands of few seeds go far
    figure.axes[0].axhspan(0.9, 1.1, color=GREEN, alpha=0.12, linewidth=0)
    return figure
