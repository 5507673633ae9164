"""One function a figure; each takes frames that `scorecard.completed_requests` or `results.load` give."""

from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, PercentFormatter

from driftsched_lib.comparison import mean, quantile, relative_change, root_mean_square, select, single
from driftsched_lib.prompts import CATEGORIES
from driftsched_lib.requests import TIERS

_COLORS = sns.color_palette("colorblind")
POLICY_COLORS = dict(zip(("fifo", "priority", "weighted", "sjf", "aging"), _COLORS, strict=False))
POLICY_NAMES = {"fifo": "FIFO", "priority": "Priority", "weighted": "Weighted", "sjf": "SJF", "aging": "Aging"}
CATEGORY_COLORS = dict(zip(CATEGORIES, sns.color_palette("viridis", 5)[:4], strict=True))  # from short to long
CALIBRATION_COLORS = {"uncalibrated": "#999999", "calibrated": _COLORS[0]}
PAPER_CHANGE = {("sjf", 0.50): -0.42, ("sjf", 0.99): -0.16}


def use_style() -> None:
    """The project's one style: for screens and print, legible at half size."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    plt.rcParams |= {
        "figure.dpi": 90,
        "figure.constrained_layout.use": True,
        "axes.titleweight": "bold",
        "axes.titlesize": 12,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.alpha": 0.5,
        "lines.linewidth": 2,
    }


def change_against_fifo(done: pd.DataFrame, quantiles: Sequence[float] = (0.50, 0.99)) -> Figure:
    """Change of E2E quantiles against FIFO with 95% intervals, a panel a batching; the paper's numbers as diamonds."""
    policies = [policy for policy in POLICY_NAMES if policy != "fifo" and policy in set(done.policy)]
    batchings = _batchings(done)
    figure, axes = plt.subplots(1, len(batchings), figsize=(5.2 * len(batchings), 3.6), sharex=True, squeeze=False)
    for axis, batching in zip(axes[0], batchings, strict=True):
        runs = select(done, batching=batching)
        for row, policy in enumerate(policies):
            for q, marker, shift in zip(quantiles, "os", (-0.16, 0.16), strict=True):
                change = relative_change(runs, "e2e_s", quantile(q), {"policy": policy}, {"policy": "fifo"})
                y = row + shift
                axis.plot([change.low, change.high], [y, y], color=POLICY_COLORS[policy])
                axis.plot(
                    change.estimate,
                    y,
                    marker,
                    color=POLICY_COLORS[policy],
                    markersize=8,
                    markerfacecolor=POLICY_COLORS[policy] if marker == "o" else "white",
                )
                axis.annotate(
                    f"P{q * 100:.0f}  {change.estimate:+.0%}",
                    (max(change.high, change.estimate), y),
                    (8, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=9,
                )
                if (policy, q) in PAPER_CHANGE:
                    axis.plot(PAPER_CHANGE[policy, q], y + shift * 1.1, "D", color="black", markersize=5, zorder=5)
        axis.axvline(0, color="black", linewidth=1)
        axis.set_yticks(range(len(policies)), [POLICY_NAMES[policy] for policy in policies])
        axis.set_ylim(len(policies) - 0.5, -0.5)
        axis.margins(x=0.25)
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.set_title(f"{batching} batching", loc="left")
        axis.set_xlabel("change of E2E against FIFO (95% interval)")
        axis.grid(axis="y", visible=False)
    axes[0][-1].plot([], [], "D", color="black", markersize=5, label="the paper's SJF")
    axes[0][-1].legend(loc="best", fontsize=9, frameon=True)
    return figure


def e2e_tails(done: pd.DataFrame) -> Figure:
    """Share of requests that took longer than x, tail on a log scale, a line a policy, a panel a batching."""

    def draw(runs: pd.DataFrame, axis: plt.Axes) -> None:
        for policy, e2e in _by_policy(runs, "e2e_s"):
            above = 1 - np.arange(len(e2e)) / len(e2e)
            axis.plot(np.sort(e2e), above, color=POLICY_COLORS[policy], label=POLICY_NAMES[policy])

    figure = _panels(
        done, "batching", draw, xlabel="E2E latency (s)", ylabel="share of requests above", finish=_log_tail
    )
    _legend_below(figure, figure.axes[0])
    return figure


def latency_by_tier(done: pd.DataFrame) -> Figure:
    """P50 (dot) to P99 (bar end) of E2E by tier and policy, a row a batching, a panel a tier."""
    batchings = _batchings(done)
    figure, axes = plt.subplots(
        len(batchings), len(TIERS), figsize=(10.5, 2.6 * len(batchings)), sharex="row", sharey=True, squeeze=False
    )
    for row, batching in zip(axes, batchings, strict=True):
        for axis, tier in zip(row, TIERS, strict=True):
            for y, (policy, e2e) in enumerate(_by_policy(select(done, batching=batching, tier=tier), "e2e_s")):
                p50, p99 = e2e.quantile([0.50, 0.99])
                axis.plot([p50, p99], [y, y], color=POLICY_COLORS[policy])
                axis.plot(p50, y, "o", color=POLICY_COLORS[policy], markersize=8)
                axis.plot(p99, y, "|", color=POLICY_COLORS[policy], markersize=12, markeredgewidth=2)
            names = [POLICY_NAMES[policy] for policy, _ in _by_policy(done, "e2e_s")]
            axis.set_yticks(range(len(names)), names)
            axis.set_title(f"{tier}, {batching}", loc="left", fontsize=11)
            axis.set_xlim(left=0)
            axis.grid(axis="y", visible=False)
        row[0].invert_yaxis()
    for axis in axes[-1]:
        axis.set_xlabel("E2E (s): dot P50, bar P99")
    return figure


def queue_depth(depth: pd.DataFrame) -> Figure:
    """Queued requests over time by policy, a row a batching, a panel a tier; the first seed.

    Parameters:
        depth: `results.load(out, "queue_depth")`.
    """
    depth = depth[depth.seed == depth.seed.min()]
    batchings = _batchings(depth)
    figure, axes = plt.subplots(
        len(batchings), len(TIERS), figsize=(10.5, 2.5 * len(batchings)), sharex="row", sharey=True, squeeze=False
    )
    for row, batching in zip(axes, batchings, strict=True):
        for axis, tier in zip(row, TIERS, strict=True):
            for policy, run in select(depth, batching=batching).groupby("policy", sort=False):
                axis.plot(run.time_s, run[tier], color=POLICY_COLORS[policy], label=POLICY_NAMES[policy], linewidth=1.6)
            axis.set_title(f"{tier}, {batching}", loc="left", fontsize=11)
        row[0].set_ylabel("queued requests")
    for axis in axes[-1]:
        axis.set_xlabel("time (s)")
    _legend_below(figure, axes[0][0])
    return figure


def estimate_against_actual(done: pd.DataFrame) -> Figure:
    """Estimated against actual output length, a panel a token counter and calibration; the diagonal is no error."""
    settings = [(counter, calibration) for counter in done.token_counter.unique() for calibration in (False, True)]
    figure, axes = plt.subplots(1, len(settings), figsize=(3.1 * len(settings), 3.3), sharex=True, sharey=True)
    rng = np.random.default_rng(0)
    top = done[["estimated_tokens", "actual_tokens"]].max().max()
    for axis, (counter, calibration) in zip(np.atleast_1d(axes), settings, strict=True):
        runs = select(done, token_counter=counter, calibration=calibration)
        for category in CATEGORIES:
            points = select(runs, category=category)
            x = points.actual_tokens.astype(float) + rng.uniform(-0.4, 0.4, len(points))
            axis.scatter(x, points.estimated_tokens, s=6, alpha=0.3, color=CATEGORY_COLORS[category], label=category)
        axis.plot([0, top], [0, top], color="black", linewidth=1)
        axis.set_title(f"{counter}\n{'calibrated' if calibration else 'uncalibrated'}", loc="left", fontsize=11)
        axis.set_xlabel("actual output (tokens)")
    np.atleast_1d(axes)[0].set_ylabel("estimated output (tokens)")
    _legend_below(figure, np.atleast_1d(axes)[0], markerscale=3)
    return figure


def estimation_error(done: pd.DataFrame, by: str = "category") -> Figure:
    """MAE and RMSE, calibration off and on, with 95% intervals; a row a measure, a panel a token counter."""
    counters = list(done.token_counter.unique())
    figure, axes = plt.subplots(2, len(counters), figsize=(5.2 * len(counters), 5), sharex=True, squeeze=False)
    frame = done.assign(abs_error_tokens=done.error_tokens.abs())
    order = {"category": CATEGORIES, "tier": TIERS}[by]
    for row, (name, statistic) in zip(axes, (("MAE", mean), ("RMSE", root_mean_square)), strict=True):
        for axis, counter in zip(row, counters, strict=True):
            for shift, (label, color) in zip((-0.19, 0.19), CALIBRATION_COLORS.items(), strict=True):
                setting = {"token_counter": counter, "calibration": label == "calibrated"}
                intervals = [single(frame, "abs_error_tokens", statistic, setting | {by: group}) for group in order]
                heights = np.array([interval.estimate for interval in intervals])
                ends = np.array([(interval.low, interval.high) for interval in intervals]).T
                x = np.arange(len(order)) + shift
                axis.bar(x, heights, 0.36, color=color, label=label)
                axis.errorbar(x, heights, np.abs(ends - heights), fmt="none", color="black", linewidth=1)
            axis.set_xticks(range(len(order)), order)
            axis.set_title(f"{name}, {counter}", loc="left")
            axis.set_ylabel("tokens")
            axis.grid(axis="x", visible=False)
    _legend_below(figure, axes[0][0])
    return figure


def bias_over_time(done: pd.DataFrame) -> Figure:
    """The learnt bias after each observation of its category, a line a seed, a panel a token counter."""
    runs = select(done, calibration=True)

    def draw(counted: pd.DataFrame, axis: plt.Axes) -> None:
        for (category, _), run in counted.groupby(["category", "run"]):
            bias = run.sort_values("finish_s", kind="stable").bias_after.to_numpy()
            axis.plot(range(1, len(bias) + 1), bias, color=CATEGORY_COLORS[category], linewidth=1.2, alpha=0.8)
        axis.axhline(1, color="black", linewidth=1)

    figure = _panels(
        runs, "token_counter", draw, xlabel="observations of the category", ylabel="bias", finish=lambda axis: None
    )
    for category, color in CATEGORY_COLORS.items():
        figure.axes[0].plot([], [], color=color, label=category)
    _legend_below(figure, figure.axes[0])
    return figure


def job_class_mistakes(done: pd.DataFrame) -> Figure:
    """Flips and misjudged job classes in 100 requests, calibration off and on, a panel a measure."""
    counters = list(done.token_counter.unique())
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    for axis, (column, title) in zip(
        axes,
        (("flip", "class flips between neighbours"), ("misjudged", "class differs from what it came to")),
        strict=True,
    ):
        for shift, (label, color) in zip((-0.19, 0.19), CALIBRATION_COLORS.items(), strict=True):
            shares = [
                100 * select(done, token_counter=counter, calibration=label == "calibrated")[column].mean()
                for counter in counters
            ]
            bars = axis.bar(np.arange(len(counters)) + shift, shares, 0.36, color=color, label=label)
            axis.bar_label(bars, fmt="%.1f", fontsize=9)
        axis.set_xticks(range(len(counters)), counters)
        axis.set_title(title, loc="left")
        axis.set_ylabel("in 100 requests")
        axis.grid(axis="x", visible=False)
    _legend_below(figure, axes[0])
    return figure


def telemetry(samples: pd.DataFrame) -> Figure:
    """What the machine did during the first seed's FIFO and SJF runs, a panel a measure.

    Parameters:
        samples: `results.load(out, "telemetry")`.
    """
    samples = samples[(samples.seed == samples.seed.min()) & samples.policy.isin(["fifo", "sjf"])]
    first = samples.drop_duplicates(["batching", "policy", "run"]).drop_duplicates(["batching", "policy"]).run
    samples = samples[samples.run.isin(first)]
    wanted = {
        "gpu_utilisation_percent": "GPU utilisation (%)",
        "gpu_memory_used_mib": "GPU memory (MiB)",
        "gpu_power_w": "GPU power (W)",
        "cpu_utilisation_percent": "CPU utilisation (%)",
        "process_memory_mib": "process memory (MiB)",
    }
    shown = [column for column in wanted if column in samples][:3]
    batchings = _batchings(samples)
    figure, axes = plt.subplots(
        len(shown), len(batchings), figsize=(10.5, 2.2 * len(shown)), sharex="col", sharey="row", squeeze=False
    )
    for row, column in zip(axes, shown, strict=True):
        for axis, batching in zip(row, batchings, strict=True):
            for policy, run in select(samples, batching=batching).groupby("policy"):
                axis.plot(run.time_s, run[column], color=POLICY_COLORS[policy], label=POLICY_NAMES[policy], linewidth=1)
            axis.set_title(f"{wanted[column]}, {batching}", loc="left", fontsize=11)
    for axis in axes[-1]:
        axis.set_xlabel("time (s)")
    _legend_below(figure, axes[0][0])
    return figure


def confusion(labels: pd.DataFrame) -> Figure:
    """Where the classifier sends each category's prompts, a panel a value of `prompts`; a row sums to 100%.

    Parameters:
        labels: a row a prompt, with `prompts`, `job_type` and `category`.
    """

    def draw(part: pd.DataFrame, axis: plt.Axes) -> None:
        table = pd.crosstab(part.job_type, part.category, normalize="index") * 100
        table = table.reindex(index=CATEGORIES, columns=CATEGORIES, fill_value=0)
        sns.heatmap(table, annot=True, fmt=".0f", cmap="Blues", cbar=False, ax=axis, vmin=0, vmax=100)
        axis.set_ylabel("")
        axis.tick_params(axis="y", rotation=0)

    figure = _panels(labels, "prompts", draw, xlabel="classified as (% of the row)", ylabel="job type", sharex=False)
    return figure


def _batchings(frame: pd.DataFrame) -> list[str]:
    """The batchings that are there, the paper's first."""
    return [batching for batching in ("static", "continuous") if batching in set(frame.batching)]


def _by_policy(runs: pd.DataFrame, column: str) -> list[tuple[str, pd.Series]]:
    """The column of each policy that is there, in the project's order of policies."""
    return [(policy, values) for policy in POLICY_NAMES if len(values := runs.loc[runs.policy == policy, column])]


def _panels(
    frame: pd.DataFrame,
    by: str,
    draw: Callable[[pd.DataFrame, plt.Axes], object],
    xlabel: str,
    ylabel: str,
    finish: Callable[[plt.Axes], None] = lambda axis: None,
    sharex: bool = True,
) -> Figure:
    values = list(frame[by].unique())
    figure, axes = plt.subplots(
        1, len(values), figsize=(5.2 * len(values), 3.6), sharex=sharex, sharey=True, squeeze=False
    )
    for axis, value in zip(axes[0], values, strict=True):
        draw(select(frame, **{by: value}), axis)
        axis.set_title(str(value), loc="left")
        axis.set_xlabel(xlabel)
        finish(axis)
    axes[0][0].set_ylabel(ylabel)
    return figure


def _log_tail(axis: plt.Axes) -> None:
    axis.set_yscale("log")
    axis.set_ylim(bottom=5e-4)
    axis.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    axis.yaxis.set_minor_formatter(NullFormatter())


def _legend_below(figure: Figure, axis: plt.Axes, **options) -> None:
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(
        unique.values(), unique.keys(), loc="outside lower center", ncols=len(unique), frameon=False, **options
    )


def training_curve(log: pd.DataFrame) -> Figure:
    """Loss over steps.

    Parameters:
        log: `tiny_model.TRAINING_LOG`.
    """
    figure, axis = plt.subplots(figsize=(6, 3))
    axis.plot(log.step, log.loss, linewidth=1)
    axis.set_xlabel(f"step ({log.seconds.iloc[-1] / 60:.0f} minutes in all)")
    axis.set_ylabel("loss (nats a token)")
    axis.set_yscale("log")
    return figure


def corpus_lengths(lengths: pd.DataFrame) -> Figure:
    """Share of answers at most that long, corpus and generated, a panel a category.

    Parameters:
        lengths: from `tiny_model.generated_lengths`.
    """
    figure, axes = plt.subplots(1, len(CATEGORIES), figsize=(11, 3), sharey=True)
    for axis, category in zip(axes, CATEGORIES, strict=True):
        rows = select(lengths, category=category)
        for column, label, color in (
            ("corpus_tokens", "corpus", "#999999"),
            ("generated_tokens", "generated", _COLORS[0]),
        ):
            sns.ecdfplot(rows[column], ax=axis, label=label, color=color)
        axis.set_title(category, loc="left")
        axis.set_xlabel("answer (tokens)")
    axes[0].set_ylabel("share of answers")
    _legend_below(figure, axes[0])
    return figure


def topic_lengths(lengths: pd.DataFrame) -> Figure:
    """Mean generated against mean corpus length by topic, each relative to its category's mean."""
    columns = ["corpus_tokens", "generated_tokens"]
    relative = lengths[columns] / lengths.groupby(["category", "style"])[columns].transform("mean")
    means = relative.groupby(lengths.topic).mean()
    figure, axis = plt.subplots(figsize=(4, 3.6))
    axis.scatter(means.corpus_tokens, means.generated_tokens, s=18)
    ends = [means.min().min(), means.max().max()]
    axis.plot(ends, ends, color="black", linewidth=1)
    axis.set_title(f"{len(means)} topics, correlation {means.corr().iloc[0, 1]:.2f}", loc="left")
    axis.set_xlabel("corpus, relative length")
    axis.set_ylabel("generated, relative length")
    return figure
