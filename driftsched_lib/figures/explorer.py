"""What the explorer shows of runs on the same requests, drawn in a fraction of a second."""

from collections.abc import Iterable, Mapping
from heapq import heappop, heappush

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator

from driftsched_lib.figures.kinds import log_share
from driftsched_lib.figures.style import color_of
from driftsched_lib.requests import CATEGORIES, TIERS

ROLLING = 25


def slots(done: pd.DataFrame) -> pd.Series:
    """Return the engine slot of each request, the lowest that is free when it is dispatched: 0, 1, ..."""
    taken: list[tuple[float, int]] = []
    free: list[int] = []
    numbers = {}
    for row in done.sort_values(["dispatch_s", "finish_s"], kind="stable").itertuples():
        while taken and taken[0][0] <= row.dispatch_s:
            heappush(free, heappop(taken)[1])
        numbers[row.Index] = heappop(free) if free else len(taken)
        heappush(taken, (row.finish_s, numbers[row.Index]))
    return pd.Series(numbers, dtype=int).reindex(done.index)


class SideBySide:
    """E2E by tier, queue over time, who holds which slot, estimates and their bias: a column per run, axes shared.

    Axes, ticks and keys are built once, because they are most of the work.

    Parameters:
        columns: how many runs.
        tiers: their names, the best first.
    """

    def __init__(self, columns: int, tiers: Iterable[str] = TIERS):
        self.figure = Figure(figsize=(10.5, 13), layout="none")
        heights = {"height_ratios": (1.1, 0.8, 1.2, 1.2, 0.9)}
        self.axes = self.figure.subplots(5, columns, sharex="row", sharey="row", squeeze=False, gridspec_kw=heights)
        self.figure.subplots_adjust(left=0.08, right=0.985, top=0.955, bottom=0.045, hspace=0.5, wspace=0.1)
        for row, (_, of_category, xlabel, ylabel) in zip(self.axes, ROWS, strict=True):
            names = CATEGORIES if of_category else tuple(tiers)
            keys = [Line2D([], [], color=color_of(name), marker="s", linestyle="", label=name) for name in names]
            above = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": len(keys), "fontsize": 9}
            row[-1].legend(handles=keys, frameon=False, **above)
            row[0].set_ylabel(ylabel)
            row[0].xaxis.set_major_locator(MaxNLocator(5, prune="upper"))  # else it would touch the next panel's first
            for axis in row:
                axis.set_xlabel(xlabel)
        log_share(self.axes[0][0])
        self.axes[3][0].set(xscale="log", yscale="log")
        for axis in self.axes[3]:
            for scale in (axis.xaxis, axis.yaxis):
                scale.set_major_locator(LogLocator(subs=(1, 3)))
                scale.set_major_formatter("{x:g}")
        for axis in self.axes.flat:
            axis.minorticks_off()
        self.titles = [axis.set_title("", loc="left", y=1.13) for axis in self.axes[0]]
        self.kept = {axis: set(axis.get_children()) for axis in self.axes.flat}

    def draw(self, runs: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]]) -> Figure:
        """Return the figure with these runs.

        Parameters:
            runs: by title, completed requests (of `metrics.latencies`) and queue depth of one run.
        """
        for axis, kept in self.kept.items():
            for artist in set(axis.get_children()) - kept:
                artist.remove()
        for title, text in zip(self.titles, runs, strict=True):
            title.set_text(text)
        for row, (draw, *_) in zip(self.axes, ROWS, strict=True):
            ends = np.array([draw(axis, *run) for axis, run in zip(row, runs.values(), strict=True)])
            row[0].set_xlim(ends[:, 0].min(), ends[:, 1].max())
            row[0].set_ylim(ends[:, 2].min(), ends[:, 3].max())
        return self.figure


def live_queue(depth: pd.DataFrame) -> Figure:
    """Draw queued requests by tier so far: columns `time_s` and one per tier."""
    figure = Figure(figsize=(10.5, 2.4), layout="tight")
    axis = figure.subplots()
    _depth(axis, depth, depth)
    axis.set(xlabel="time (s)", ylabel="queued requests")
    axis.legend(loc="upper left", fontsize=9)
    return figure


Ends = tuple[float, float, float, float]
"""Left, right, low and high end of what was drawn."""


def _tails(axis: Axes, done: pd.DataFrame, depth: pd.DataFrame) -> Ends:
    for tier, e2e_s in done.groupby("tier").e2e_s:
        axis.plot(np.sort(e2e_s), 1 - np.arange(len(e2e_s)) / len(e2e_s), color=color_of(tier))
    return 0, 1.03 * done.e2e_s.max(), 1 / len(done), 1.2


def _depth(axis: Axes, done: pd.DataFrame, depth: pd.DataFrame) -> Ends:
    waiting = depth.drop(columns="time_s")
    axis.stackplot(depth.time_s, *waiting.to_numpy().T, colors=list(map(color_of, waiting)), labels=waiting.columns)
    return 0, depth.time_s.max(), 0, max(1, 1.05 * waiting.sum(axis=1).max())


def _occupancy(axis: Axes, done: pd.DataFrame, depth: pd.DataFrame) -> Ends:
    slot, start, end = slots(done).to_numpy(), done.dispatch_s.to_numpy(float), done.finish_s.to_numpy(float)
    corners = np.stack([[start, start, end, end], [slot - 0.45, slot + 0.45, slot + 0.45, slot - 0.45]]).T
    axis.add_collection(PolyCollection(corners, facecolor=list(map(color_of, done.tier)), linewidth=0))
    return 0, end.max(), -1, slot.max() + 1


def _estimates(axis: Axes, done: pd.DataFrame, depth: pd.DataFrame) -> Ends:
    pairs = np.maximum(1, done[["actual_tokens", "estimated_tokens"]].to_numpy(float))
    axis.scatter(*pairs.T, s=7, alpha=0.6, color=list(map(color_of, done.job_type)))
    low, high = pairs.min(), pairs.max()
    axis.plot([low, high], [low, high], color="black", linewidth=1)
    return low / 1.2, high * 1.2, low / 1.2, high * 1.2


def _bias(axis: Axes, done: pd.DataFrame, depth: pd.DataFrame) -> Ends:
    done, ends = done.sort_values("arrival_s"), [1.0]
    ratio = np.log(done.estimated_tokens.astype(float) / done.actual_tokens.clip(lower=1).astype(float))
    for category, mine in ratio.groupby(done.job_type):
        bias = np.exp(mine.rolling(ROLLING, min_periods=5).mean())
        axis.plot(done.arrival_s[mine.index], bias, color=color_of(category))
        ends += [*bias.dropna()]
    axis.axhline(1, color="black", linewidth=1)
    return 0, done.arrival_s.max(), min(ends) - 0.05 * max(ends), 1.05 * max(ends)


ROWS = (
    (_tails, False, "E2E (s)", "requests above"),
    (_depth, False, "time (s)", "queued requests"),
    (_occupancy, False, "time (s)", "engine slot"),
    (_estimates, True, "actual output (tokens)", "estimated (tokens)"),
    (_bias, True, "arrival (s)", f"estimated / actual\n({ROLLING} requests)"),
)
"""What draws a row and returns its ends; whether colours are categories, else tiers; axis labels."""
