"""What the explorer shows of runs on the same requests, drawn in a fraction of a second."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from matplotlib.artist import setp
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from driftsched_lib.figures.kinds import log_share
from driftsched_lib.figures.style import color_of
from driftsched_lib.requests import CATEGORIES, TIERS

ROLLING = 25
Ends = tuple[float, float, float, float]
"""Left, right, low and high end of what was drawn."""


class SideBySide:
    """E2E by tier, queue, engine slots, estimates and their bias: a column per run.  Axes and keys are built once."""

    def __init__(self, columns: int, tiers: Iterable[str] = TIERS):
        self.figure = Figure(figsize=(10.5, 13), layout="none")
        heights = {"height_ratios": (1.1, 0.8, 1.2, 1.2, 0.9)}
        self.axes = self.figure.subplots(5, columns, sharex="row", sharey="row", squeeze=False, gridspec_kw=heights)
        self.figure.subplots_adjust(left=0.08, right=0.975, top=0.955, bottom=0.045, hspace=0.5, wspace=0.15)
        log_share(self.axes[0][0])
        self.axes[3][0].set(xscale="log", yscale="log")
        for row, (_, names, xlabel, ylabel) in zip(self.axes, ROWS, strict=True):
            keys = [Line2D([], [], color=color_of(n), marker="s", linestyle="", label=n) for n in names or tiers]
            above = {"loc": "lower right", "bbox_to_anchor": (1, 1), "frameon": False}
            row[-1].legend(handles=keys, ncols=len(keys), fontsize=9, **above)
            row[0].set_ylabel(ylabel)
            row[0].xaxis.set_major_locator(MaxNLocator(5))
            setp(row, xlabel=xlabel)
        for scale in (self.axes[3][0].xaxis, self.axes[3][0].yaxis):
            scale.set_major_locator(LogLocator(subs=(1, 3)))
            scale.set_major_formatter("{x:g}")
            scale.set_minor_locator(NullLocator())

    def draw(self, runs: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]]) -> Figure:
        """Return the figure with these runs: by title, completed requests (of `metrics.latencies`) and queue depth."""
        for axis in self.axes.flat:
            for artist in (*axis.lines, *axis.collections):
                artist.remove()
        for axis, title in zip(self.axes[0], runs, strict=True):
            axis.set_title(title, loc="left", y=1.13)
        for row, (draw, *_) in zip(self.axes, ROWS, strict=True):
            ends = np.array([draw(axis, *run) for axis, run in zip(row, runs.values(), strict=True)])
            row[0].set(xlim=(ends[:, 0].min(), ends[:, 1].max()), ylim=(ends[:, 2].min(), ends[:, 3].max()))
        return self.figure


def live_queue(depth: pd.DataFrame) -> Figure:
    """Draw queued requests by tier so far: columns `time_s` and one per tier."""
    axis = (figure := Figure(figsize=(10.5, 2.4), layout="tight")).subplots()
    _depth(axis, depth, depth)
    axis.set(xlabel="time (s)", ylabel="queued requests")
    axis.legend(loc="upper left", fontsize=9)
    return figure


def _tails(axis: Axes, done: pd.DataFrame, depth: pd.DataFrame) -> Ends:
    for tier, e2e_s in done.groupby("tier").e2e_s:
        axis.plot(np.sort(e2e_s), 1 - np.arange(len(e2e_s)) / len(e2e_s), color=color_of(tier))
    return 0, 1.03 * done.e2e_s.max(), 1 / len(done), 1.2


def _depth(axis: Axes, done: pd.DataFrame, depth: pd.DataFrame) -> Ends:
    waiting = depth.drop(columns="time_s")
    axis.stackplot(depth.time_s, *waiting.to_numpy().T, colors=list(map(color_of, waiting)), labels=waiting.columns)
    return 0, depth.time_s.max(), 0, max(1, 1.05 * waiting.sum(axis=1).max())


def slots(done: pd.DataFrame) -> pd.Series:
    """Return the engine slot of each request, the lowest that is free when it is dispatched: 0, 1, ..."""
    free_at, numbers = [], {}
    for row in done.sort_values(["dispatch_s", "finish_s"], kind="stable").itertuples():
        slot = next((i for i, end_s in enumerate(free_at) if end_s <= row.dispatch_s), len(free_at))
        free_at[slot : slot + 1], numbers[row.Index] = [row.finish_s], slot
    return pd.Series(numbers, dtype=int).reindex(done.index)


def _occupancy(axis: Axes, done: pd.DataFrame, depth: pd.DataFrame) -> Ends:
    slot, start, end = slots(done).to_numpy(), done.dispatch_s.to_numpy(float), done.finish_s.to_numpy(float)
    corners = np.stack([[start, start, end, end], [slot - 0.45, slot + 0.45, slot + 0.45, slot - 0.45]]).T
    axis.add_collection(PolyCollection(corners, facecolor=list(map(color_of, done.tier)), linewidth=0))
    return 0, end.max(), -1, slot.max() + 1


def _estimates(axis: Axes, done: pd.DataFrame, depth: pd.DataFrame) -> Ends:
    pairs = np.maximum(1, done[["actual_tokens", "estimated_tokens"]].to_numpy(float))
    axis.scatter(*pairs.T, s=7, alpha=0.6, color=list(map(color_of, done.job_type)))
    axis.axline((1, 1), (2, 2), color="black", linewidth=1)
    low, high = pairs.min() / 1.2, pairs.max() * 1.2
    return low, high, low, high


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
    (_tails, (), "E2E (s)", "requests above"),
    (_depth, (), "time (s)", "queued requests"),
    (_occupancy, (), "time (s)", "engine slot"),
    (_estimates, CATEGORIES, "actual output (tokens)", "estimated (tokens)"),
    (_bias, CATEGORIES, "arrival (s)", f"estimated / actual\n({ROLLING} requests)"),
)
"""What draws a row and returns its ends; the categories if these are its colours, else tiers are; axis labels."""
