"""Policies against each other: who is dominated, who waits longest, which setting is ahead (notebooks 07 and 08)."""

from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from driftsched_lib.figures.kinds import ENDS, dots, forest, panels, spread
from driftsched_lib.figures.style import DARK, GREY, LIGHT, by_side, looks_of
from driftsched_lib.policies import POLICIES
from driftsched_lib.requests import TIERS
from driftsched_lib.studies.compare import mean_interval
from driftsched_lib.studies.frontier import RELATIVE


def pareto(runs: pd.DataFrame, x: str, y: str, labels: tuple[str, str], color: tuple[str, str]) -> Figure:
    """Draw a dot per policy, means over seeds of two measures of `frontier.frontier` with 95% intervals.

    A line joins policies that none beats in both, small being good.  These and the main ones are named, others grey.
    `color` is the column that colours the named dots, and its label.
    """
    runs, looks = by_side(runs)

    def draw(axis: Axes, part: pd.DataFrame) -> None:
        groups = part.dropna(subset=[x, y, color[0]]).groupby("side")
        across, up = (spread(groups[column].agg(mean_interval)) for column in (x, y))
        dot = pd.DataFrame({"x": across.middle, "y": up.middle, "hue": groups[color[0]].mean()}).sort_values(["x", "y"])
        front = dot.y < dot.y.cummin().shift(fill_value=np.inf)
        named = dot[front | np.array([looks[side]["color"] != GREY for side in dot.index])]
        half = [(of.high - of.middle)[named.index] for of in (up, across)]
        axis.step(dot.x[front], dot.y[front], where="post", color=GREY, linewidth=1, zorder=1)
        axis.scatter(dot.x, dot.y, s=25, color=LIGHT, zorder=2)
        axis.errorbar(named.x, named.y, *half, fmt="none", ecolor=LIGHT, elinewidth=0.8, zorder=2)
        drawn = axis.scatter(named.x, named.y, c=named.hue, cmap="viridis", s=55, edgecolor="black", zorder=3)
        axis.figure.colorbar(drawn, ax=axis, label=color[1], shrink=0.8)
        axis.margins(x=0.2)
        axis.figure.draw_without_rendering()
        style, taken = {"textcoords": "offset points", "fontsize": 9.5, "va": "center"}, []
        style["path_effects"] = [withStroke(linewidth=3, foreground="white")]
        for side, *place in named.sort_values("y")[["x", "y"]].itertuples():
            text = axis.annotate(side, place, (8, 0), color=looks[side]["color"].replace(GREY, DARK), **style)
            while any(text.get_window_extent().overlaps(box) for box in taken):
                text.xyann = (8, text.xyann[1] + 2)  # up until it lies on no other name
            taken.append(text.get_window_extent())

    return panels(runs, draw, labels, (6.2, 4.8), col="panel", sharex=False, sharey=False)


def longest_waits(runs: pd.DataFrame) -> Figure:
    """Draw the longest wait to the first dispatch by policy and tier, of `frontier.frontier`, a dot per seed.

    The bar is the median; a star marks policies that preempt: a request may lose its first slot again.
    """
    (runs, rows), end = by_side(runs), "_longest_wait_s"
    star = runs.policy.map(lambda policy: "*" * getattr(POLICIES.get(policy), "preemptive", False))
    named = dict(zip(runs.side, runs.side + star, strict=True))
    tiers = {column: column.removesuffix(end) for column in runs if column.endswith(end)}
    table = runs.replace({"side": named}).rename(columns=tiers)
    table = table.melt(["panel", "side"], list(tiers.values()), "tier", "wait_s").dropna()
    looks, size = looks_of(table.tier, TIERS), (4.6, 0.33 * len(rows) + 1)
    draw = partial(dots, x="wait_s", y="side", hue="tier", looks=looks, order=[named[side] for side in rows])
    return panels(table, draw, ("longest wait (s)", ""), size, looks, col="panel", sharex=False)


def changes(table: pd.DataFrame) -> Figure:
    """Draw paired changes against FIFO, of `frontier.against`, with 95% intervals: a column per measure."""
    table, looks = by_side(table)
    table = table.rename(columns={"change": "middle", "side": "row"}).assign(measure=table.column.map(RELATIVE))
    table[ENDS] *= 100
    draw, labels, size = partial(forest, looks=looks), ("change against FIFO (%)", ""), (3.9, 0.22 * len(looks) + 1)
    return panels(table, draw, labels, size, col="measure", row="panel", sharex="row")


def ranking(table: pd.DataFrame, name: str) -> Figure:
    """Draw each policy with its best estimator, of `recommend.ranked`: the objective (`name`), and against FIFO."""
    many = table.groupby("policy").estimator.transform("nunique") > 1
    table, looks = by_side(table.assign(estimator=np.where(many, " · " + table.estimator, "")))
    table = table.drop_duplicates(["policy", *({"lane"} & set(table))]).assign(row=table.side + table.estimator)
    looks = {row: looks[side] for row, side in zip(table.row, table.side, strict=True)}
    objective = table.rename(columns={"mean": "middle"}).assign(of=name)
    difference = {"against_fifo": "middle", "against_fifo_low": "low", "against_fifo_high": "high"}
    difference = table.drop(columns=["low", "high"]).rename(columns=difference).assign(of="difference from FIFO")
    draw, size = partial(forest, looks=looks), (5.2, 0.35 * len(looks) + 1.2)
    return panels(pd.concat([objective, difference]), draw, size=size, col="of", sharex=False)


def confirmation(simulated: pd.DataFrame, real: pd.DataFrame, name: str) -> Figure:
    """Draw, as `ranking`, what the real engine served (filled) beside what the simulator says of it (open)."""
    simulated = real[["policy", "estimator"]].merge(simulated, how="left")
    both = pd.concat([real.assign(lane="real"), simulated.assign(lane="simulated")])
    return ranking(both, f"{name}: ● real, ○ simulated")
