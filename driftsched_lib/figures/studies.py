"""The studies: simulator and reality, where gains come from, drift, policies against each other (notebooks 04 to 08).

Frames have a column `panel` where a figure has one panel per value of it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from driftsched_lib.figures.kinds import ENDS, PERCENT, against, dots, forest, lines, name_dots, panels, spread
from driftsched_lib.figures.style import DARK, GREEN, GREY, LIGHT, by_side, looks_of, side_looks
from driftsched_lib.policies import POLICIES
from driftsched_lib.requests import TIERS
from driftsched_lib.studies.compare import mean_interval
from driftsched_lib.studies.frontier import COMPARED, RELATIVE

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


def step_residuals(held: pd.DataFrame, predicted_s: np.ndarray) -> Figure:
    """Draw measured over predicted seconds per iteration, over the run and by what it held; the line is the median.

    Parameters:
        held, predicted_s: of `fit.iterations` and `fit.predicted_s`.
    """
    table = held.assign(ratio=held.seconds / predicted_s, seconds=held.seconds.cumsum())
    names = {"seconds": "time in the run (s)", "decode_seqs": "decoding sequences"}
    names |= {"context_tokens": "context tokens attended to", "prefill_tokens": "prompt tokens computed"}
    table = table.rename(columns=names).melt("ratio", list(names.values()), "by", "value")

    def draw(axis: Axes, part: pd.DataFrame) -> None:
        bins = pd.cut(part.value, np.unique(np.quantile(part.value, np.linspace(0, 1, 13))), include_lowest=True)
        axis.scatter(part.value, part.ratio, s=4, alpha=0.3)
        axis.plot(*part.groupby(bins, observed=True)[["value", "ratio"]].median().to_numpy().T, color="black")
        axis.set(yscale="log", ylim=(0.4, 4), yticks=[0.5, 1, 2, 4], yticklabels=["0.5", "1", "2", "4"])
        axis.yaxis.set_minor_formatter(NullFormatter())

    return panels(table, draw, ("by", None), ("", "measured / predicted"), (3.2, 3.1), share=(False, True))


def where_the_gain_comes_from(steps: pd.DataFrame, columns: Mapping[str, str]) -> Figure:
    """Draw changes of latency, of `decomposition.changes`, a row per setting; `columns` names those of the summary."""
    looks = {setting: {"color": DARK} for setting in steps.setting.unique()}
    table = steps.rename(columns={"setting": "row", "change": "middle"}).assign(lane=steps.column.map(columns))
    labels = "change of E2E against FIFO in static batches", ""
    return panels(table, forest, ("panel", None), labels, (6, 4), looks=looks, fmt="+.0%")


def _over_load(axis: Axes, part: pd.DataFrame, looks: Mapping, times: bool) -> None:
    lines(axis, part.sort_values("rate"), "rate", looks, marker="o", markersize=4)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2 if times else 10)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_major_formatter(lambda y, _: f"1/{1 / y:.0f}" if times and y < 1 else f"{y:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())


def latency_by_load(runs: pd.DataFrame, columns: Mapping[str, str], policies: Mapping[str, str]) -> Figure:
    """Draw latency over load factor, a line per setting with its 95% band over seeds: a row per column.

    Parameters:
        runs: one row per run: `panel`, `rate`, `setting`, and the columns.
        columns: summary columns in seconds, and what they are called.
        policies: the policy per setting.
    """
    long = runs.rename(columns=columns | {"setting": "side"}).melt(
        ["panel", "side", "rate"], list(columns.values()), "of"
    )
    table = spread(long.groupby(["of", "panel", "side", "rate"], sort=False).value.agg(mean_interval)).clip(lower=1e-3)
    table = table.reset_index().assign(of=lambda frame: frame["of"] + " (s)")
    panel = ("panel", "of"), ("load factor", None), (3.3, 2.8), (looks := side_looks(policies)), "", (True, "row")
    return panels(table, _over_load, *panel, looks=looks, times=False)


def gain_by_load(changes: pd.DataFrame, columns: Mapping[str, str], policies: Mapping[str, str]) -> Figure:
    """Draw latency over load factor in multiples of FIFO's, as `latency_by_load`.

    Parameters:
        changes: of `decomposition.changes`, with `panel` and `load_factor`.
    """
    table = changes.rename(columns={"setting": "side", "change": "middle", "load_factor": "rate"})
    table[ENDS] = (1 + table[ENDS]).clip(lower=0.01)
    table["of"] = table.column.map(columns) + ", times FIFO's"
    panel = ("panel", "of"), ("load factor", None), (3.3, 2.8), (looks := side_looks(policies)), "", (True, "row")
    return panels(table, _over_load, *panel, looks=looks, times=True)


def tail_by_category(waits: pd.DataFrame, policies: Sequence[str], categories: Sequence[str], load: str) -> Figure:
    """Draw the longest wait in the queue of `load` by category, of `decomposition.tails`, a dot per seed."""
    waits, looks = by_side(waits[waits.policy.isin(policies)])
    of = {"x": "category", "y": "longest_wait_s", "hue": "side", "looks": looks, "order": categories}
    return panels(
        waits, dots, ("batching", None), (load, "longest wait in the queue (s)"), legend=looks, marker="o", **of
    )


def _over_seeds(values, side: str) -> pd.DataFrame:
    """Return the mean per group with its 95% interval; groups at the ends, which few seeds reach, are left out."""
    table = values.agg(["mean", "sem", "count"]).query("count > count.max() / 2").fillna(0.0)
    half = 1.96 * table["sem"]
    return pd.DataFrame(
        {"middle": table["mean"], "low": table["mean"] - half, "high": table["mean"] + half, "side": side}
    )


def catching_up(replays: pd.DataFrame, scenario: str, category: str, change: int, before: int, after: int) -> Figure:
    """Draw what each estimator says of one and the same request around a change, as a share of where it settles.

    It settles at the geometric mean of the second half after the change.  Bands are 95% intervals over seeds.

    Parameters:
        replays: of `drift_lab.replays`.
        change: position of the change; `before` and `after` requests around it are shown.
    """
    part = replays[(replays.scenario == scenario) & (replays.category == category)]
    names, half, tables = part.estimator.unique(), (change + replays.position.max() + 1) / 2, []
    for side, estimator in {"actual": names[0], **dict(zip(names, names, strict=True))}.items():
        rows = part[part.estimator == estimator]
        logs = np.log(rows["actual_tokens" if side == "actual" else "probe_tokens"].astype(float))
        logs -= logs[rows.position >= half].mean()
        since = rows.groupby("seed").cumcount() - (rows.position < change).groupby(rows.seed).transform("sum")
        shown = rows.position.between(change - before, change + after)
        tables.append(_over_seeds(logs[shown].groupby(since[shown].rename("since")), side).reset_index())
    table, looks = pd.concat(tables), {"actual": {"color": "#cccccc"}} | _in_turn(names)
    table[ENDS] = np.exp(table[ENDS])
    labels = f"requests of the category {category} since the change (at 0)", "estimate / where it settles"
    return panels(table, lines, (None, None), labels, (9, 3.6), looks, x="since", looks=looks, goal=(0.9, 1.1))


def coverage_over_time(windows: pd.DataFrame) -> Figure:
    """Draw coverage and width of 90% intervals, of `drift_lab.over_time`, with 95% bands: a column per scenario."""
    names = {"coverage": "outputs in the interval (%)", "width_tokens": "its width (tokens)"}
    windows = windows.assign(coverage=100 * windows.coverage, scenario=windows.scenario.str.replace("_", " "))
    long = windows.rename(columns=names).melt(["scenario", "estimator", "window"], list(names.values()), "of")
    table = pd.concat(
        _over_seeds(part.groupby("window").value, side).assign(of=of, scenario=scenario)
        for (of, scenario, side), part in long.groupby(["of", "scenario", "estimator"], sort=False)
    )
    panel = ("scenario", "of"), ("window of 200 requests", None), (2.9, 2.5), (looks := _in_turn(windows.estimator))
    return panels(table.reset_index(), lines, *panel, share=(True, "row"), x="window", looks=looks)


def speed_against_noise(table: pd.DataFrame) -> Figure:
    """Draw observations until a change is made good against noise when nothing changes, with 95% intervals.

    Both small is better.  An estimator that never gets there stands at the upper edge.

    Parameters:
        table: intervals `recovery` and `noise`, and `kind`, by estimator.
    """
    noise, recovery, looks = spread(table.noise), spread(table.recovery), _in_turn(table.kind)
    never = ~np.isfinite(recovery.middle)
    recovery = recovery.clip(upper=(edge := 1.6 * recovery.middle[~never].max()))
    named = pd.DataFrame(
        {"name": table.index + np.where(never, " (never)", ""), "x": noise.middle, "y": recovery.middle}
    )
    named["color"] = [looks[kind]["color"] for kind in table.kind]

    def draw(axis: Axes, part: pd.DataFrame) -> None:
        for name, dot in part.iterrows():
            (x, left, right), (y, low, high) = noise.loc[name], recovery.loc[name]
            axis.errorbar(x, y, [[y - low], [high - y]], [[x - left], [right - x]], "o", color=dot.color, elinewidth=1)
        axis.axhspan(1, 10, color=GREEN, alpha=0.12, linewidth=0)
        axis.set(yscale="log", ylim=(2, 1.3 * edge), xlim=(0, 1.25 * noise.middle.max()))
        axis.yaxis.set_major_formatter("{x:g}")
        name_dots(axis, part)

    labels = "noise when nothing changes (standard deviation of the log estimate)", "observations to be back within 10%"
    return panels(named, draw, (None, None), labels, (8, 4.4), looks, "o")


def pareto(runs: pd.DataFrame, x: str, y: str, labels: tuple[str, str], color: tuple[str, str]) -> Figure:
    """Draw a dot per policy, means over seeds of two measures of `frontier.frontier` with 95% intervals.

    A line joins policies that none beats in both, small being good.  These and the main ones are named, others grey.

    Parameters:
        labels: what the axes are called.
        color: the column that colours the named dots, and what it is called.
    """
    runs, looks = by_side(runs)

    def draw(axis: Axes, part: pd.DataFrame) -> None:
        groups = part.dropna(subset=[x, y, color[0]]).groupby("side")
        (across, up), hue = (spread(groups[column].agg(mean_interval)) for column in (x, y)), groups[color[0]].mean()
        dot = pd.DataFrame({"x": across.middle, "y": up.middle, "name": hue.index, "hue": hue}).sort_values(["x", "y"])
        dot["color"] = [looks[side]["color"] for side in dot.index]
        front = dot.y < dot.y.cummin().shift(fill_value=np.inf)
        named = dot[front | (dot.color != GREY)]
        half = [(of.high - of.middle)[named.index] for of in (up, across)]
        axis.step(dot.x[front], dot.y[front], where="post", color=GREY, linewidth=1, zorder=1)
        axis.scatter(dot.x, dot.y, s=25, color=LIGHT, zorder=2)
        axis.errorbar(named.x, named.y, *half, fmt="none", ecolor=LIGHT, elinewidth=0.8, zorder=2)
        drawn = axis.scatter(named.x, named.y, c=named.hue, cmap="viridis", s=55, edgecolor="black", zorder=3)
        axis.figure.colorbar(drawn, ax=axis, label=color[1], shrink=0.8)
        axis.margins(x=0.2)
        name_dots(axis, named)

    return panels(runs, draw, ("panel", None), labels, (6.2, 4.8), share=(False, False))


def longest_waits(runs: pd.DataFrame) -> Figure:
    """Draw the longest wait to the first dispatch by policy and tier, of `frontier.frontier`, a dot per seed.

    The bar is the median; a star marks policies that preempt: a request may lose its first slot again.
    """
    (runs, looks), end = by_side(runs), "_longest_wait_s"
    tiers = {column: column.removesuffix(end) for column in runs if column.endswith(end)}
    table = (
        runs.rename(columns=tiers).melt(["panel", "policy", "side"], list(tiers.values()), "tier", "wait_s").dropna()
    )
    preemptive = [getattr(POLICIES.get(policy), "preemptive", False) for policy in table.policy]
    table["side"] += np.where(preemptive, " *", "")
    size, looks = (4.6, 0.33 * len(looks) + 1), looks_of(table.tier, TIERS)
    of = {"x": "wait_s", "y": "side", "hue": "tier", "looks": looks}
    return panels(table, dots, ("panel", None), ("longest wait (s)", ""), size, looks, "o", (False, True), **of)


def changes(table: pd.DataFrame, columns: Sequence[str] = COMPARED) -> Figure:
    """Draw paired changes against FIFO, of `frontier.against`, with 95% intervals: a column per measure."""
    table, looks = by_side(table[table.column.isin(columns)])
    table = table.rename(columns={"change": "middle", "side": "row"}).assign(measure=table.column.map(RELATIVE))
    table[ENDS] *= 100
    by, labels, size = ("measure", "panel"), ("change against FIFO (%)", ""), (3.9, 0.22 * len(looks) + 1)
    return panels(table, forest, by, labels, size, share=("row", True), looks=looks)


def ranking(table: pd.DataFrame, name: str) -> Figure:
    """Draw each policy with its best estimator, of `recommend.ranked`: the objective, and its difference from FIFO.

    Parameters:
        name: the objective's, with its unit.
    """
    many = table.policy.duplicated(keep=False)
    table = table.assign(estimator=np.where(many, " · " + table.estimator, "")).drop_duplicates("policy")
    return _objective(table, name)


def confirmation(simulated: pd.DataFrame, real: pd.DataFrame, name: str) -> Figure:
    """Draw the settings that the real engine served (filled) beside what the simulator says of them (open).

    Parameters:
        simulated, real: of `recommend.ranked`.
        name: the objective's, with its unit.
    """
    simulated = real[["policy", "estimator"]].merge(simulated, how="left").assign(lane="simulated")
    both = pd.concat([real.assign(lane="real"), simulated])
    many = both.policy.map(real.policy.value_counts()) > 1
    return _objective(both.assign(estimator=np.where(many, " · " + both.estimator, "")), f"{name}: ● real, ○ simulated")


def _objective(table: pd.DataFrame, name: str) -> Figure:
    table, looks = by_side(table)
    table["row"] = table.side + table.estimator
    looks = {row: looks[side] for row, side in zip(table.row, table.side, strict=True)}
    of = {
        name: ["mean", "low", "high"],
        "difference from FIFO": ["against_fifo", "against_fifo_low", "against_fifo_high"],
    }
    parts = [
        table[["row", *(["lane"] if "lane" in table else [])]].assign(
            of=of_name, **dict(zip(ENDS, table[columns].to_numpy().T, strict=True))
        )
        for of_name, columns in of.items()
    ]
    size = (5.2, 0.35 * len(looks) + 1.2)
    return panels(pd.concat(parts), forest, ("of", None), size=size, share=(False, True), looks=looks)
