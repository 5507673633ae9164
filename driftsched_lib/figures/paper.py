"""The paper's experiment: errors of estimates, latency by policy and tier, queues (notebooks 01 to 03, and 09).

A frame `done` is of `scorecard.completed_requests`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from driftsched_lib.figures.kinds import against, bars, caption, differing, forest, lines, panels, spread, tails
from driftsched_lib.figures.style import CALIBRATION, by_side, looks_of, side_looks
from driftsched_lib.requests import CATEGORIES, TIERS
from driftsched_lib.studies.compare import bootstrap, mean, quantile, relative_change, rms, select

PAPER_CHANGE = {"P50": -0.42, "P99": -0.16}
"""What SJF changes against FIFO in static batches in the paper."""


def _calibrated(done: pd.DataFrame) -> pd.DataFrame:
    return done.assign(calibrated=np.where(done.calibration, "calibrated", "uncalibrated"))


def _tiers_in_order(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sort_values("tier", key=lambda tiers: tiers.map(list(looks_of(tiers, TIERS)).index), kind="stable")


def estimate_against_actual(done: pd.DataFrame) -> Figure:
    """Draw estimated against actual output length: a column per token counter, a row per calibration."""
    jitter = np.random.default_rng(0).uniform(-0.4, 0.4, len(done))
    frame = (
        _calibrated(done)
        .assign(actual=done.actual_tokens.astype(float) + jitter)
        .sort_values("calibration", kind="stable")
    )
    labels, looks = ("actual output (tokens)", "estimated output (tokens)"), looks_of(done.category, CATEGORIES)
    of = {"x": "actual", "y": "estimated_tokens", "hue": "category", "looks": looks}
    return panels(frame, against, ("token_counter", "calibrated"), labels, (4.6, 2.9), looks, "o", **of)


def estimation_error(done: pd.DataFrame, by: str = "category") -> Figure:
    """Draw MAE and RMSE, calibration off and on, with 95% intervals: a row per measure, a column per token counter.

    Token counters under which calibration changes nothing are left out.
    """
    frame, tables = _calibrated(done).assign(size=done.error_tokens.abs()), []
    groups = frame[["token_counter", "calibrated", by]].drop_duplicates()
    for measure, statistic in (("MAE (tokens)", mean), ("RMSE (tokens)", rms)):
        intervals = [bootstrap(frame, "size", statistic, [group]) for group in groups.to_dict("records")]
        tables.append(groups.join(spread(pd.Series(intervals, groups.index))).assign(measure=measure))
    table = differing(pd.concat(tables), "token_counter", "middle", within=[by, "measure"])
    of = {"x": by, "hue": "calibrated", "order": list(looks_of(done[by], (*CATEGORIES, *TIERS)))}
    panel = ("token_counter", "measure"), ("", None), (5.2, 2.5), CALIBRATION, "s", (True, "row")
    return panels(table, bars, *panel, looks=CALIBRATION, **of)


def bias_over_time(done: pd.DataFrame) -> Figure:
    """Draw the learnt bias after each observation of its category: a line per run, a panel per token counter.

    Token counters under which it never moves are left out.
    """
    runs = select(done, calibration=True).sort_values("finish_s", kind="stable").astype({"bias_after": float})
    runs["observations"] = runs.groupby(["run", "category"]).cumcount() + 1
    looks = looks_of(runs.category, CATEGORIES)

    def draw(axis: Axes, part: pd.DataFrame) -> None:
        for (category, _), run in part.groupby(["category", "run"]):
            axis.plot(run.observations, run.bias_after, **looks[category], linewidth=1.2, alpha=0.8)
        axis.axhline(1, color="black", linewidth=1)

    labels = "observations of the category", "learnt bias (actual / expected)"
    return panels(differing(runs, "token_counter", "bias_after"), draw, ("token_counter", None), labels, legend=looks)


def job_class_mistakes(done: pd.DataFrame) -> Figure:
    """Draw flips and misjudged job classes per 100 requests, calibration off and on: a panel per measure."""
    titles = {"flip": "class flips between neighbours", "misjudged": "class differs from what it came to"}
    shares = 100 * _calibrated(done).groupby(["token_counter", "calibrated"], sort=False)[list(titles)].mean()
    table = shares.rename(columns=titles).melt(ignore_index=False, var_name="of", value_name="middle").reset_index()
    of = {"x": "token_counter", "hue": "calibrated", "looks": CALIBRATION, "fmt": "%.1f"}
    labels = "", "per 100 requests"
    return panels(table, bars, ("of", None), labels, (4.5, 3), CALIBRATION, "s", share=(True, False), **of)


def change_against_fifo(done: pd.DataFrame, quantiles: Sequence[float] = (0.50, 0.99)) -> Figure:
    """Draw the change of E2E quantiles against FIFO with 95% intervals: a panel per batching.

    Diamonds are the paper's numbers for SJF in static batches.
    """
    done, looks = by_side(done)
    looks, rows = {side: look for side, look in looks.items() if side != "FIFO"}, []
    for batching in done.batching.unique():
        runs = select(done, batching=batching)
        for side in [side for side in looks if side in set(runs.side)]:
            for q in quantiles:
                change = relative_change(runs, "e2e_s", quantile(q), {"side": side}, {"policy": "fifo"})
                rows.append((f"{batching} batching", side, f"P{100 * q:.0f}", change))
    table = pd.DataFrame(rows, columns=["batching", "row", "lane", "change"])
    table = table.join(spread(table.pop("change")))

    def draw(axis: Axes, part: pd.DataFrame) -> None:
        forest(axis, part, looks, "+.0%")
        for place, (lane, change) in enumerate(PAPER_CHANGE.items()):
            if "static" in part.batching.iloc[0] and "SJF" in looks and lane in set(part.lane):
                axis.plot(change, list(looks).index("SJF") + 0.66 * place - 0.33, "D", color="black", markersize=5)

    return panels(table, draw, ("batching", None), ("change of E2E against FIFO (95% interval; ◆ the paper)", ""))


def e2e_tails(done: pd.DataFrame) -> Figure:
    """Draw the share of requests that took longer than x per policy: a panel per batching."""
    done, looks = by_side(done)
    labels = "E2E (s), band: range over seeds", "share of requests above"
    return panels(done, tails, ("batching", None), labels, legend=looks, column="e2e_s", looks=looks)


def ttft_by_tier(served: pd.DataFrame, policies: Mapping[str, str]) -> Figure:
    """Draw the share of requests that waited longer for their first token per side: a panel per tier.

    Parameters:
        served: columns `side`, `tier`, `ttft_s`.
        policies: per side, in the order of the legend.
    """
    labels, looks = ("TTFT (s), band: 95% interval", "requests that waited longer"), side_looks(policies)
    return panels(served, tails, ("tier", None), labels, (4.2, 3.2), looks, column="ttft_s", looks=looks)


def latency_by_tier(done: pd.DataFrame) -> Figure:
    """Draw P50 and P99 of E2E by tier and policy, means over seeds with their range: a row per batching."""
    done, looks = by_side(done)
    by = ["batching", "tier", "side", "lane"]
    seeds = (
        done.groupby([*by[:3], "seed"], sort=False).e2e_s.quantile([0.50, 0.99]).rename_axis([*by[:3], "seed", "lane"])
    )
    table = seeds.groupby(by, sort=False).agg(middle="mean", low="min", high="max").reset_index()
    table = _tiers_in_order(table.rename(columns={"side": "row"}))
    of = {"share": ("row", True), "looks": looks}
    figure = panels(table, forest, ("tier", "batching"), ("E2E (s)", ""), (3.6, 2.6), **of)
    return caption(figure, "● P50, ○ P99; line: range over seeds")


def queue_depth(depth: pd.DataFrame) -> Figure:
    """Draw queued requests over time by policy, the mean over seeds with their range: a row per batching.

    Parameters:
        depth: of `results.load(out, "queue_depth")`: `time_s`, one column per tier, `run`, and its settings.
    """
    depth, looks = by_side(depth)
    tiers = depth.columns[1 : depth.columns.get_loc("run")]
    tables = []
    for (batching, side), runs in depth.groupby(["batching", "side"], sort=False):
        time_s = np.linspace(0, runs.time_s.max(), 200)
        for tier in tiers:
            seeds = [np.interp(time_s, run.time_s, run[tier], right=0) for _, run in runs.groupby("run")]
            ends = {"middle": np.mean(seeds, 0), "low": np.min(seeds, 0), "high": np.max(seeds, 0)}
            tables.append(pd.DataFrame({"time_s": time_s, "tier": tier, "batching": batching, "side": side} | ends))
    labels, of = ("time (s), band: range over seeds", "queued requests"), {"x": "time_s", "looks": looks}
    panel = ("tier", "batching"), labels, (3.6, 2.5), looks
    return panels(pd.concat(tables), lines, *panel, share=("row", True), **of)


def depth_by_tier(samples: pd.DataFrame, policies: Mapping[str, str]) -> Figure:
    """Draw queued requests since the first of them per side: a panel per tier.

    Parameters:
        samples: columns `side`, `tier`, `time_s`, `value`.
        policies: per side, in the order of the legend.
    """
    looks = {side: look for side, look in side_looks(policies).items() if side in set(samples.side)}
    first = samples[samples.value > 0].groupby("side").time_s.min()
    table = _tiers_in_order(samples.assign(time_s=samples.time_s - samples.side.map(first), middle=samples.value))
    labels = "time (s)", "queued requests"
    return panels(table[table.time_s >= 0], lines, ("tier", None), labels, (4.2, 3), looks, x="time_s", looks=looks)
