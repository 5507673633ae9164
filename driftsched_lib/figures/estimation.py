"""How wrong the estimates are; each takes frames that `scorecard.completed_requests` gives."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from driftsched_lib.figures.style import CALIBRATION_COLORS, CATEGORY_COLORS, legend_below, panels
from driftsched_lib.requests import CATEGORIES, TIERS
from driftsched_lib.studies.compare import mean, root_mean_square, select, single


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
    legend_below(figure, np.atleast_1d(axes)[0], markerscale=3)
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
    legend_below(figure, axes[0][0])
    return figure


def bias_over_time(done: pd.DataFrame) -> Figure:
    """The learnt bias after each observation of its category, a line a seed, a panel a token counter."""
    runs = select(done, calibration=True)

    def draw(counted: pd.DataFrame, axis: plt.Axes) -> None:
        for (category, _), run in counted.groupby(["category", "run"]):
            bias = run.sort_values("finish_s", kind="stable").bias_after.to_numpy()
            axis.plot(range(1, len(bias) + 1), bias, color=CATEGORY_COLORS[category], linewidth=1.2, alpha=0.8)
        axis.axhline(1, color="black", linewidth=1)

    figure = panels(
        runs, "token_counter", draw, xlabel="observations of the category", ylabel="bias", finish=lambda axis: None
    )
    for category, color in CATEGORY_COLORS.items():
        figure.axes[0].plot([], [], color=color, label=category)
    legend_below(figure, figure.axes[0])
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
    legend_below(figure, axes[0])
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

    figure = panels(labels, "prompts", draw, xlabel="classified as (% of the row)", ylabel="job type", sharex=False)
    return figure
