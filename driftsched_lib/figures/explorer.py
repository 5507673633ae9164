"""What the explorer shows of two runs on the same requests; drawn in a fraction of a second."""

from collections.abc import Mapping
from heapq import heappop, heappush

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
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


def explore(runs: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]]) -> Figure:
    """E2E by tier, queue over time, who holds which slot, estimates and their bias: a column a run, axes shared.

    Parameters:
        runs: by title, completed requests (as of `metrics.latencies`) and queue depth of one run.
    """
    draws = (_tails, _depth, _occupancy, _estimates, _bias)
    figure = Figure(figsize=(10.5, 12.5), layout="none")
    axes = figure.subplots(
        len(draws), len(runs), sharey="row", squeeze=False, gridspec_kw={"height_ratios": [1.1, 0.8, 1.2, 1.2, 0.9]}
    )
    figure.subplots_adjust(left=0.08, right=0.985, top=0.97, bottom=0.045, hspace=0.42, wspace=0.06)
    for row, draw in zip(axes, draws, strict=True):
        for axis, (done, depth) in zip(row, runs.values(), strict=True):
            draw(axis, depth if draw is _depth else done)
        for axis in row[1:]:
            axis.set_ylabel("")
        for axis in row:
            axis.minorticks_off()  # drawing ticks is most of the work
        low, high = zip(*(axis.get_xlim() for axis in row), strict=True)
        for axis in row:
            axis.set_xlim(min(low), max(high))
    for axis, title in zip(axes[0], runs, strict=True):
        axis.set_title(title, loc="left")
    axes[1][-1].legend(loc="upper right", fontsize=9)
    axes[-2][-1].legend(loc="lower right", fontsize=9, markerscale=3)
    return figure


def live_queue(depth: pd.DataFrame) -> Figure:
    """Queued requests by tier so far."""
    figure = Figure(figsize=(10.5, 2.4), layout="tight")
    axis = figure.subplots()
    _depth(axis, depth)
    axis.legend(loc="upper left", fontsize=9)
    return figure


def _tails(axis: Axes, done: pd.DataFrame) -> None:
    for tier in TIERS:
        e2e = np.sort(done.e2e_s[done.tier == tier])
        axis.plot(e2e, 1 - np.arange(len(e2e)) / max(1, len(e2e)), color=TIER_COLORS[tier], label=tier)
    log_tail(axis)
    axis.set_ylim(bottom=1 / len(done))
    axis.set_xlim(left=0)
    axis.locator_params(axis="x", nbins=5)
    axis.set_xlabel("E2E (s)")
    axis.set_ylabel("requests above")


def _depth(axis: Axes, depth: pd.DataFrame) -> None:
    axis.stackplot(
        depth.time_s, *(depth[tier] for tier in TIERS), colors=[TIER_COLORS[tier] for tier in TIERS], labels=TIERS
    )
    axis.set_xlim(left=0)
    axis.locator_params(nbins=4)
    axis.set_xlabel("time (s)")
    axis.set_ylabel("queued requests")


def _occupancy(axis: Axes, done: pd.DataFrame) -> None:
    slot = slots(done)
    for tier in TIERS:
        mine = done.tier == tier
        corners = np.empty((mine.sum(), 4, 2))
        corners[:, :2, 0], corners[:, 2:, 0] = (
            done.dispatch_s[mine].to_numpy()[:, None],
            done.finish_s[mine].to_numpy()[:, None],
        )
        corners[:, ::3, 1], corners[:, 1:3, 1] = (
            slot[mine].to_numpy()[:, None] - 0.45,
            slot[mine].to_numpy()[:, None] + 0.45,
        )
        axis.add_collection(PolyCollection(corners, facecolor=TIER_COLORS[tier], linewidth=0))
    axis.set_xlim(0, done.finish_s.max())
    axis.set_ylim(-1, slot.max() + 1)
    axis.locator_params(nbins=4)
    axis.set_xlabel("time (s)")
    axis.set_ylabel("engine slot")
    axis.locator_params(nbins=4)
    axis.grid(visible=False)


def _estimates(axis: Axes, done: pd.DataFrame) -> None:
    for category, color in CATEGORY_COLORS.items():
        points = done[done.job_type == category]
        axis.scatter(points.actual_tokens, points.estimated_tokens, s=7, alpha=0.6, color=color, label=category)
    low = max(1, done[["actual_tokens", "estimated_tokens"]].min().min())
    high = done[["actual_tokens", "estimated_tokens"]].max().max()
    axis.plot([low, high], [low, high], color="black", linewidth=1)
    axis.set_xscale("log")
    axis.set_yscale("log")
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_locator(LogLocator(subs=(1, 3)))
        scale.set_major_formatter("{x:g}")
    axis.set_xlabel("actual output (tokens)")
    axis.set_ylabel("estimated (tokens)")


def _bias(axis: Axes, done: pd.DataFrame) -> None:
    for category, color in CATEGORY_COLORS.items():
        points = done[done.job_type == category].sort_values("arrival_s")
        ratio = np.log(points.estimated_tokens.astype(float) / points.actual_tokens.clip(lower=1).astype(float))
        axis.plot(points.arrival_s, np.exp(ratio.rolling(ROLLING, min_periods=5).mean()), color=color)
    axis.axhline(1, color="black", linewidth=1)
    axis.set_xlim(left=0)
    axis.locator_params(nbins=4)
    axis.set_xlabel("arrival (s)")
    axis.set_ylabel(f"estimated / actual\n({ROLLING} requests)")
