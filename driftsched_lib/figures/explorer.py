"""What the explorer shows of two runs on the same requests, drawn in a fraction of a second."""

from collections.abc import Mapping
from heapq import heappop, heappush

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator

from driftsched_lib.figures.style import CATEGORY_COLORS, TIER_COLORS, log_tail
from driftsched_lib.requests import TIERS

ROLLING = 25


def slots(done: pd.DataFrame) -> pd.Series:
    """The engine slot of each request, the lowest that is free when it is dispatched: 0, 1, ..."""
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
    """E2E by tier, queue over time, who holds which slot, estimates and their bias: a column a run, axes shared.

    Drawn anew without being built anew: building axes, ticks and keys is most of the work.

    Parameters:
        columns: how many runs.
    """

    def __init__(self, columns: int):
        self.figure = Figure(figsize=(10.5, 13), layout="none")
        self.axes = self.figure.subplots(
            len(ROWS), columns, sharex="row", sharey="row", squeeze=False, gridspec_kw={"height_ratios": HEIGHTS}
        )
        self.figure.subplots_adjust(left=0.08, right=0.985, top=0.955, bottom=0.045, hspace=0.5, wspace=0.06)
        for row, (_, colors, xlabel, ylabel) in zip(self.axes, ROWS, strict=True):
            row[0].set_ylabel(ylabel)
            keys = [Patch(color=color, label=name) for name, color in colors.items()]
            row[-1].legend(
                handles=keys, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(keys), fontsize=9, frameon=False
            )
            for axis in row:
                axis.set_xlabel(xlabel)
                axis.locator_params(nbins=5)
        for axis in self.axes[0]:
            log_tail(axis)
        for axis in self.axes[3]:
            axis.set(xscale="log", yscale="log")
            for scale in (axis.xaxis, axis.yaxis):
                scale.set_major_locator(LogLocator(subs=(1, 3)))
                scale.set_major_formatter("{x:g}")
        for axis in self.axes.flat:
            axis.minorticks_off()
        self.titles = [axis.set_title("", loc="left", y=1.13) for axis in self.axes[0]]
        self.drawn: list[Artist] = []

    def draw(self, runs: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]]) -> Figure:
        """The figure with these runs.

        Parameters:
            runs: by title, completed requests (as of `metrics.latencies`) and queue depth of one run.
        """
        for artist in self.drawn:
            artist.remove()
        kept = {axis: set(axis.get_children()) for axis in self.axes.flat}
        for title, text in zip(self.titles, runs, strict=True):
            title.set_text(text)
        for row, (draw, *_) in zip(self.axes, ROWS, strict=True):
            ends = [draw(axis, *run) for axis, run in zip(row, runs.values(), strict=True)]
            row[0].set_xlim(min(left for left, *_ in ends), max(right for _, right, *_ in ends))
            row[0].set_ylim(min(low for *_, low, _ in ends), max(high for *_, high in ends))
        self.drawn = [artist for axis in self.axes.flat for artist in axis.get_children() if artist not in kept[axis]]
        return self.figure


def live_queue(depth: pd.DataFrame) -> Figure:
    """Queued requests by tier so far."""
    figure = Figure(figsize=(10.5, 2.4), layout="tight")
    axis = figure.subplots()
    _depth(axis, depth, depth)
    axis.set_xlabel("time (s)")
    axis.set_ylabel("queued requests")
    axis.legend(loc="upper left", fontsize=9)
    return figure


Ends = tuple[float, float, float, float]
"""Left, right, low and high ends of what was drawn."""


def _tails(axis: Axes, done: pd.DataFrame, depth: pd.DataFrame) -> Ends:
    for tier in TIERS:
        e2e = np.sort(done.e2e_s[done.tier == tier])
        axis.plot(e2e, 1 - np.arange(len(e2e)) / max(1, len(e2e)), color=TIER_COLORS[tier])
    return 0, 1.03 * done.e2e_s.max(), 1 / len(done), 1.2


def _depth(axis: Axes, done: pd.DataFrame, depth: pd.DataFrame) -> Ends:
    waiting = [depth[tier] for tier in TIERS]
    axis.stackplot(depth.time_s, *waiting, colors=[TIER_COLORS[tier] for tier in TIERS], labels=TIERS)
    return 0, depth.time_s.max(), 0, max(1, 1.05 * sum(waiting).max())


def _occupancy(axis: Axes, done: pd.DataFrame, depth: pd.DataFrame) -> Ends:
    slot = slots(done).to_numpy()
    start, end = done.dispatch_s.to_numpy(float), done.finish_s.to_numpy(float)
    corners = np.stack([[start, start, end, end], [slot - 0.45, slot + 0.45, slot + 0.45, slot - 0.45]]).T
    axis.add_collection(PolyCollection(corners, facecolor=done.tier.map(TIER_COLORS).tolist(), linewidth=0))
    return 0, end.max(), -1, slot.max() + 1


def _estimates(axis: Axes, done: pd.DataFrame, depth: pd.DataFrame) -> Ends:
    actual, estimated = (
        np.maximum(1, done[column].to_numpy(float)) for column in ("actual_tokens", "estimated_tokens")
    )
    axis.scatter(actual, estimated, s=7, alpha=0.6, color=done.job_type.map(CATEGORY_COLORS).tolist())
    low, high = min(actual.min(), estimated.min()), max(actual.max(), estimated.max())
    axis.plot([low, high], [low, high], color="black", linewidth=1)
    return low / 1.2, high * 1.2, low / 1.2, high * 1.2


def _bias(axis: Axes, done: pd.DataFrame, depth: pd.DataFrame) -> Ends:
    done = done.sort_values("arrival_s")
    ratio = np.log(done.estimated_tokens.astype(float) / done.actual_tokens.clip(lower=1).astype(float))
    lowest = highest = 1.0
    for category, color in CATEGORY_COLORS.items():
        mine = done.job_type == category
        bias = np.exp(ratio[mine].rolling(ROLLING, min_periods=5).mean())
        axis.plot(done.arrival_s[mine], bias, color=color)
        if bias.notna().any():
            lowest, highest = min(lowest, bias.min()), max(highest, bias.max())
    axis.axhline(1, color="black", linewidth=1)
    return 0, done.arrival_s.max(), lowest - 0.05 * highest, 1.05 * highest


ROWS = (
    (_tails, TIER_COLORS, "E2E (s)", "requests above"),
    (_depth, TIER_COLORS, "time (s)", "queued requests"),
    (_occupancy, TIER_COLORS, "time (s)", "engine slot"),
    (_estimates, CATEGORY_COLORS, "actual output (tokens)", "estimated (tokens)"),
    (_bias, CATEGORY_COLORS, "arrival (s)", f"estimated / actual\n({ROLLING} requests)"),
)
"""What draws a row and says where it ends, its key, its axes."""
HEIGHTS = (1.1, 0.8, 1.2, 1.2, 0.9)
