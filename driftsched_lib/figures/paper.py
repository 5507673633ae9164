"""The paper's experiment: errors of estimates, latency by policy and tier, queues (notebooks 01 to 03).

A frame `done` is of `scorecard.completed_requests`.
"""

from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from driftsched_lib.engines.profile import Profile
from driftsched_lib.experiments import results
from driftsched_lib.figures.kinds import bars, differing, forest, lines, log_share, palette, panels, spread
from driftsched_lib.figures.style import CALIBRATION, by_side, looks_of
from driftsched_lib.requests import CATEGORIES, TIERS
from driftsched_lib.studies.compare import bootstrap, mean, notes, quantile, relative_change, rms, select
from driftsched_lib.studies.scorecard import CLAIMS, sustained
from driftsched_lib.validation import in_project


def basis(out: str | Path) -> str:
    """Return whose decisions and whose seconds the results in a folder rest on: a sentence for their captions."""
    params, machine = results.load_params(out), results.runs(out)[0].manifest["hardware"]
    kind, slower = params.engine.kind, 1 / params.workload.length_scale
    who = {"vllm": "Real vLLM decides and generates", "server": "A live server decides and generates"}.get(kind)
    who = who or "A simulation of vLLM's scheduler decides"
    if params.engine.profile is None:
        return f"{who}; the seconds are those of {machine.get('gpu') or machine['cpu']}, {machine['cores']} CPU cores."
    of = Profile.load(in_project(params.engine.profile)).provenance
    said = "measured" if of.measured else "derived from data sheets, not measured"
    if kind == "vllm" and slower != 1:
        said += f"; lengths are divided by {slower:g}, and iterations take {slower:g} times as long"
    return f"{who}; the seconds are those of {of.model} on {of.hardware}, by a profile that was {said}."


def _calibrated(done: pd.DataFrame) -> pd.DataFrame:
    return done.assign(calibrated=np.where(done.calibration, "calibrated", "uncalibrated"))


def estimate_against_actual(done: pd.DataFrame) -> Figure:
    """Draw estimated against actual output length: a column per token counter, a row per calibration."""
    jitter, looks = np.random.default_rng(0).uniform(-0.4, 0.4, len(done)), looks_of(done.category, CATEGORIES)
    frame = _calibrated(done).assign(actual=done.actual_tokens.astype(float) + jitter)
    of = {"x": "actual", "y": "estimated_tokens", "hue": "category", **palette(looks)}

    def draw(axis: Axes, part: pd.DataFrame) -> None:
        sns.scatterplot(part, **of, s=9, alpha=0.35, linewidth=0, ax=axis)
        axis.axline((1, 1), (2, 2), color="black", linewidth=1)

    labels, facets = ("actual output (tokens)", "estimate (tokens)"), {"col": "token_counter", "row": "calibrated"}
    return panels(frame.sort_values("calibration", kind="stable"), draw, labels, (4.6, 2.9), looks, **facets)


def estimation_error(done: pd.DataFrame, by: str = "category") -> Figure:
    """Draw MAE and RMSE, calibration off and on, with 95% intervals: a row per measure, a column per token counter.

    Token counters under which calibration changes nothing are left out.
    """
    frame = _calibrated(done).assign(size=done.error_tokens.abs())
    groups = frame[["token_counter", "calibrated", by]].drop_duplicates()
    table = groups.merge(pd.DataFrame({"measure": ["MAE", "RMSE"], "how": [mean, rms]}), "cross")
    errors = [bootstrap(frame, "size", row.how, [row[list(groups)].to_dict()]) for _, row in table.iterrows()]
    table = differing(table.join(spread(pd.Series(errors))), "token_counter", "middle", within=[by, "measure"])
    order = list(looks_of(done[by], (*CATEGORIES, *TIERS)))
    draw = partial(bars, x=by, hue="calibrated", looks=CALIBRATION, order=order)
    facets = {"col": "token_counter", "row": "measure", "sharey": "row"}
    return panels(table, draw, (notes(errors), "error (tokens)"), (5.2, 2.5), CALIBRATION, **facets)


def bias_over_time(done: pd.DataFrame) -> Figure:
    """Draw the learnt bias after each observation of a category: a line per run, a panel per counter that moves it."""
    runs = select(done, calibration=True).sort_values("finish_s", kind="stable").astype({"bias_after": float})
    runs["observations"] = runs.groupby(["run", "category"]).cumcount() + 1
    looks = looks_of(runs.category, CATEGORIES)

    def draw(axis: Axes, part: pd.DataFrame) -> None:
        for (category, _), run in part.groupby(["category", "run"]):
            axis.plot(run.observations, run.bias_after, color=looks[category]["color"], linewidth=1.2, alpha=0.8)
        axis.axhline(1, color="black", linewidth=1)

    labels = "observations of the category", "learnt bias (actual / expected)"
    return panels(differing(runs, "token_counter", "bias_after"), draw, labels, legend=looks, col="token_counter")


def job_class_mistakes(done: pd.DataFrame) -> Figure:
    """Draw flips and misjudged job classes per 100 requests, calibration off and on: a panel per measure."""
    titles = {"flip": "class flips between neighbours", "misjudged": "class differs from what it came to"}
    shares = 100 * _calibrated(done).groupby(["token_counter", "calibrated"], sort=False)[list(titles)].mean()
    table = shares.rename(columns=titles).melt(ignore_index=False, var_name="of", value_name="middle").reset_index()
    draw = partial(bars, x="token_counter", hue="calibrated", looks=CALIBRATION, fmt="%.1f")
    return panels(table, draw, ("", "per 100 requests"), (4.5, 3), CALIBRATION, col="of", sharey=False)


def change_against_fifo(done: pd.DataFrame) -> Figure:
    """Draw the change of P50 and P99 of E2E against FIFO with 95% intervals, of `sustained`: a panel per batching.

    Diamonds are the paper's numbers for SJF in static batches.
    """
    (done, phase), rows = sustained(done), []
    done, looks = by_side(done)
    looks = {side: look for side, look in looks.items() if side != "FIFO"}
    for batching, side, q in product(done.batching.unique(), looks, (0.50, 0.99)):
        runs, sides = select(done, batching=batching), ({"side": side}, {"policy": "fifo"})
        if side in set(runs.side):
            change = relative_change(runs, "e2e_s", quantile(q), *sides)
            rows.append((f"{batching} batching", side, f"P{100 * q:.0f}", change))
    table = pd.DataFrame(rows, columns=["batching", "row", "lane", "change"])
    label = f"change of E2E against FIFO, {phase} (95% interval; ◆ the paper)\n{notes(table.change)}"
    table = table.join(spread(table.pop("change")))

    def draw(axis: Axes, part: pd.DataFrame) -> None:
        forest(axis, part, looks, percent=True)
        if "static" in part.batching.iloc[0] and "SJF" in looks:
            places = list(looks).index("SJF") + np.array([-0.33, 0.33])
            axis.plot([CLAIMS[claim][1] for claim in ("C3", "C4")], places, "D", color="black", markersize=5)

    figure = panels(table, draw, col="batching")
    figure.supxlabel(label.strip(), fontsize=9)
    return figure


def e2e_tails(done: pd.DataFrame) -> Figure:
    """Draw the share of requests that took longer than x per policy: a panel per batching."""
    done, looks = by_side(done)

    def draw(axis: Axes, part: pd.DataFrame) -> None:
        for side, mine in part.groupby("side"):
            sns.ecdfplot(mine, x="e2e_s", complementary=True, **looks[side], ax=axis)
            above = np.geomspace(1, 1 / len(mine), 300)
            seeds = [run.quantile(1 - above) for _, run in mine.groupby("seed").e2e_s]
            ends = np.min(seeds, axis=0), np.max(seeds, axis=0)
            axis.fill_betweenx(above, *ends, color=looks[side]["color"], alpha=0.12, linewidth=0)
        log_share(axis)

    labels = "E2E (s), band: range over seeds", "share of requests above"
    return panels(done.astype({"e2e_s": float}), draw, labels, legend=looks, col="batching")


def latency_by_tier(done: pd.DataFrame) -> Figure:
    """Draw P50 and P99 of E2E by tier and policy, means over seeds with their range: a row per batching."""
    (done, looks), by = by_side(done), ["batching", "tier", "side"]
    seeds = done.groupby([*by, "seed"], sort=False).e2e_s.quantile([0.50, 0.99]).rename_axis([*by, "seed", "lane"])
    table = seeds.groupby([*by, "lane"], sort=False).agg(middle="mean", low="min", high="max").reset_index()
    facets = {"col": "tier", "col_order": list(looks_of(table.tier, TIERS)), "row": "batching", "sharex": "row"}
    draw = partial(forest, looks=looks)
    figure = panels(table.rename(columns={"side": "row"}), draw, ("E2E (s)", ""), (3.6, 2.6), **facets)
    figure.supxlabel("● P50, ○ P99; line: range over seeds", fontsize=9)
    return figure


def queue_depth(depth: pd.DataFrame) -> Figure:
    """Draw queued requests over time by policy, the mean over seeds with their range: a row per batching.

    `depth` is of `results.load(out, "queue_depth")`: `time_s`, one column per tier, `run`, and its settings.
    """
    (depth, looks), tables = by_side(depth), []
    for (batching, side), runs in depth.groupby(["batching", "side"], sort=False):
        time_s = np.linspace(0, runs.time_s.max(), 200)
        for tier in depth.columns[1 : depth.columns.get_loc("run")]:
            seeds = [np.interp(time_s, run.time_s, run[tier], right=0) for _, run in runs.groupby("run")]
            ends = {"middle": np.mean(seeds, 0), "low": np.min(seeds, 0), "high": np.max(seeds, 0)}
            tables.append(pd.DataFrame({"time_s": time_s, "tier": tier, "batching": batching, "side": side} | ends))
    labels, draw = ("time (s), band: range over seeds", "queued requests"), partial(lines, x="time_s", looks=looks)
    return panels(pd.concat(tables), draw, labels, (3.6, 2.5), looks, col="tier", row="batching", sharex="row")
