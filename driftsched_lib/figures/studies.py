"""The studies: simulator and reality, where gains come from, drift (notebooks 04 to 06).

Frames have a column `panel` where a figure has one panel per value of it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from driftsched_lib.figures.kinds import ENDS, PERCENT, against, dots, forest, lines, name_dots, panels, spread
from driftsched_lib.figures.style import DARK, GREEN, by_side, side_looks

_CYCLE = [
    {"color": color, "linestyle": line}
    for color, line in zip(sns.color_palette("colorblind").as_hex(), ("-", "--", "-.", ":", "-") * 2, strict=True)
]


def _in_turn(names: Sequence[str]) -> dict[str, dict[str, str]]:
    return dict(zip(dict.fromkeys(names), _CYCLE, strict=False))


def simulated_against_real(requests: pd.DataFrame) -> Figure:
    """Draw each request's simulated against its real E2E, of `fidelity.request_by_request`, on log scales."""
    requests, looks = by_side(requests)

    def draw(axis: Axes, part: pd.DataFrame) -> None:
        against(axis, part, "real_s", "simulated_s", "side", looks)
        ends = part[["real_s", "simulated_s"]].min().min() / 1.2, part[["real_s", "simulated_s"]].max().max() * 1.2
        axis.set(xscale="log", yscale="log", xlim=ends, ylim=ends, box_aspect=1)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_major_formatter("{x:g}")

    labels = "real E2E (s)", "simulated E2E (s)"
    return panels(requests, draw, ("panel", None), labels, (3.3, 3.3), looks, "o", (False, False))


def fidelity_errors(errors: pd.DataFrame, goals: Mapping[str, float]) -> Figure:
    """Draw the relative error per run, of `fidelity.compare`: a row per measure of `goals`; its goal is a band."""
    table = errors.melt("source", list(goals), "measure", "error").dropna().astype({"error": float})
    looks, beyond = _in_turn(errors.source), (~table.error.between(-0.5, 0.6)).sum()

    def draw(axis: Axes, part: pd.DataFrame) -> None:
        dots(axis, part, "error", "measure", "source", looks, order=list(goals))
        axis.barh(
            range(len(goals)),
            [2 * goal for goal in goals.values()],
            0.9,
            [-goal for goal in goals.values()],
            color=GREEN,
            alpha=0.15,
            linewidth=0,
        )
        axis.set_xlim(-0.5, 0.6)
        axis.xaxis.set_major_formatter(PERCENT)

    labels = f"relative error against the real run (band: the goal; {beyond} dots lie beyond)", ""
    return panels(table, draw, (None, None), labels, (8.5, 0.6 * len(goals) + 1), looks, "o")


def where_the_gain_comes_from(steps: pd.DataFrame, columns: Mapping[str, str]) -> Figure:
    """Draw changes of latency, of `decomposition.changes`, a row per setting; `columns` names those of the summary."""
    looks = {setting: {"color": DARK} for setting in steps.setting.unique()}
    table = steps.rename(columns={"setting": "row", "change": "middle"}).assign(lane=steps.column.map(columns))
    labels = "change of E2E against FIFO in static batches", ""
    return panels(table, forest, ("panel", None), labels, (6, 4), looks=looks, fmt="+.0%")


def gain_by_load(changes: pd.DataFrame, columns: Mapping[str, str], policies: Mapping[str, str]) -> Figure:
    """Draw latency in multiples of FIFO's over the load factor, a line per setting with its 95% band: a row per column.

    Parameters:
        changes: of `compare.changes`, with `panel` and `load_factor`.
        columns: summary columns, and what they are called.
        policies: the policy per setting.
    """
    table = changes.rename(columns={"setting": "side", "change": "middle"}).sort_values("load_factor")
    table = table.assign(of=table.column.map(columns) + ", times FIFO's", **(1 + table[ENDS]).clip(lower=0.01))
    looks = side_looks(policies)

    def draw(axis: Axes, part: pd.DataFrame) -> None:
        lines(axis, part, "load_factor", looks, marker="o", markersize=4)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_major_formatter(lambda y, _: f"1/{1 / y:.0f}" if y < 1 else f"{y:g}")

    return panels(table, draw, ("panel", "of"), ("load factor", None), (3.3, 2.8), looks, share=(True, "row"))


def tail_by_category(waits: pd.DataFrame, policies: Sequence[str], categories: Sequence[str], load: str) -> Figure:
    """Draw the longest wait in the queue of `load` by category, of `decomposition.tails`, a dot per seed."""
    waits, looks = by_side(waits[waits.policy.isin(policies)])
    of = {"x": "category", "y": "longest_wait_s", "hue": "side", "looks": looks, "order": categories}
    labels = load, "longest wait in the queue (s)"
    return panels(waits, dots, ("batching", None), labels, legend=looks, marker="o", **of)


def _over_seeds(values: "pd.api.typing.SeriesGroupBy", side: str) -> pd.DataFrame:
    """Return the mean per group with its 95% interval; groups at the ends, which few seeds reach, are left out."""
    table = values.agg(["mean", "sem", "count"]).query("count > count.max() / 2").fillna(0.0)
    ends = {name: table["mean"] + 1.96 * sign * table["sem"] for name, sign in zip(ENDS, (0, -1, 1), strict=True)}
    return pd.DataFrame(ends).assign(side=side).reset_index()


def catching_up(replays: pd.DataFrame, scenario: str, category: str, change: int, before: int, after: int) -> Figure:
    """Draw what each estimator says of one and the same request around a change, as a share of where it settles.

    It settles at the geometric mean of the second half after the change.  Bands are 95% intervals over seeds.

    Parameters:
        replays: of `drift_lab.replays`.
        change: position of the change; `before` and `after` requests around it are shown.
    """
    part = replays[(replays.scenario == scenario) & (replays.category == category)]
    names, half, tables = list(part.estimator.unique()), (change + replays.position.max() + 1) / 2, []
    for side, column in {"actual": "actual_tokens", **dict.fromkeys(names, "probe_tokens")}.items():
        rows = part[part.estimator == (names[0] if side == "actual" else side)]
        logs = np.log(rows[column].astype(float))
        logs -= logs[rows.position >= half].mean()
        since = rows.groupby("seed").cumcount() - (rows.position < change).groupby(rows.seed).transform("sum")
        shown = rows.position.between(change - before, change + after)
        tables.append(_over_seeds(logs[shown].groupby(since[shown].rename("since")), side))
    table, looks = pd.concat(tables), {"actual": {"color": "#cccccc"}} | _in_turn(names)
    labels = f"requests of the category {category} since the change (at 0)", "estimate / where it settles"
    panel = (None, None), labels, (9, 3.6), looks
    return panels(table.assign(**np.exp(table[ENDS])), lines, *panel, x="since", looks=looks, goal=(0.9, 1.1))


def coverage_over_time(windows: pd.DataFrame) -> Figure:
    """Draw coverage and width of 90% intervals, of `drift_lab.over_time`, with 95% bands: a column per scenario."""
    names = {"coverage": "in the interval (%)", "width_tokens": "its width (tokens)"}
    windows = windows.assign(coverage=100 * windows.coverage, scenario=windows.scenario.str.replace("_", " "))
    long = windows.rename(columns=names).melt(["scenario", "estimator", "window"], list(names.values()), "of")
    table = pd.concat(
        _over_seeds(part.groupby("window").value, side).assign(of=of, scenario=scenario)
        for (of, scenario, side), part in long.groupby(["of", "scenario", "estimator"], sort=False)
    )
    panel = ("scenario", "of"), ("window of 200 requests", None), (2.9, 2.5), (looks := _in_turn(windows.estimator))
    return panels(table, lines, *panel, share=(True, "row"), x="window", looks=looks)


def speed_against_noise(table: pd.DataFrame) -> Figure:
    """Draw observations until a change is made good against noise when nothing changes, with 95% intervals.

    Both small is better.  An estimator that never gets there stands at the upper edge.

    Parameters:
        table: intervals `recovery` and `noise`, and `kind`, by estimator.
    """
    noise, recovery, looks = spread(table.noise), spread(table.recovery), _in_turn(table.kind)
    never = ~np.isfinite(recovery.middle)
    recovery = recovery.clip(upper=(edge := 1.6 * recovery.middle[~never].max()))
    named = pd.DataFrame({"x": noise.middle, "y": recovery.middle, "color": [looks[k]["color"] for k in table.kind]})
    named["name"] = table.index + np.where(never, " (never)", "")

    def draw(axis: Axes, part: pd.DataFrame) -> None:
        xerr, yerr = ([of.middle - of.low, of.high - of.middle] for of in (noise, recovery))
        axis.errorbar(part.x, part.y, yerr, xerr, "none", ecolor=part.color, elinewidth=1)
        axis.scatter(part.x, part.y, color=part.color, zorder=3)
        axis.axhspan(1, 10, color=GREEN, alpha=0.12, linewidth=0)
        axis.set(yscale="log", ylim=(2, 1.3 * edge), xlim=(0, 1.25 * noise.middle.max()))
        axis.yaxis.set_major_formatter("{x:g}")
        name_dots(axis, part)

    labels = "noise when nothing changes (standard deviation of the log estimate)", "observations to be back within 10%"
    return panels(named, draw, (None, None), labels, (8, 4.4), looks, "o")
