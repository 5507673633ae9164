"""The project's one style: colours, names, and what figures share."""

from collections.abc import Callable, Mapping

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from driftsched_lib.requests import CATEGORIES
from driftsched_lib.studies.compare import select

COLORS = sns.color_palette("colorblind")
POLICY_NAMES = {
    "fifo": "FIFO",
    "priority": "Priority",
    "weighted": "Weighted",
    "sjf": "SJF",
    "aging": "Aging",
    "grouped": "Grouped",
    "sjf_aging": "SJF with aging",
    "sjf_sigmoid": "SJF, sigmoid",
    "hrrn": "HRRN",
    "boost": "Boost",
    "edf": "EDF",
    "least_slack": "Least slack",
    "vtc": "VTC",
    "drr": "DRR",
    "wfq": "WFQ",
    "mlfq": "MLFQ",
    "gittins": "Gittins",
    "tie": "TIE",
    "srpt": "SRPT",
    "express": "Express",
}
_FAMILIES = (
    {"fifo": "#000000"},
    {"priority": "#e69f00", "weighted": "#009e73", "aging": "#cc79a7"},  # by tier
    {"sjf": "#0072b2", "sjf_aging": "#003f63", "sjf_sigmoid": "#4d5fd1", "srpt": "#00a0c6"},  # by size
    {"grouped": "#56b4e9", "hrrn": "#7d9bb5", "boost": "#8fa8ff"},  # by size among other things
    {"edf": "#8a3f6c", "least_slack": "#b58fd6"},  # by deadline
    {"vtc": "#00573f", "drr": "#5c8a00", "wfq": "#66c9a9"},  # by tenant
    {"mlfq": "#7f4f24", "gittins": "#b08d57", "tie": "#4a3b28"},  # by size that is not known
    {"express": "#d55e00"},
)
_POLICY_STYLES = {
    policy: {"color": color, "marker": marker, "linestyle": line}
    for family in _FAMILIES
    for (policy, color), marker, line in zip(family.items(), "os^D", ("-", "--", ":", "-."), strict=False)
}
POLICY_COLORS = {policy: _POLICY_STYLES[policy]["color"] for policy in POLICY_NAMES}
DARK, LIGHT = "#404040", "#b3b3b3"
"""A pair for what is no policy: median and tail, calibrated or not."""
CATEGORY_COLORS = dict(zip(CATEGORIES, sns.color_palette("viridis", 5)[:4], strict=True))  # from short to long
TIER_COLORS = {"premium": "#b2182b", "standard": "#4393c3", "batch": "#bdbdbd"}
CALIBRATION_COLORS = {"uncalibrated": LIGHT, "calibrated": DARK}


def policy_style(policy: str) -> dict[str, str]:
    """Colour, marker and line style of a policy, for `plot`: no two share a colour, and no two of a family a marker.

    The colours of the paper's five and of Express are those of Okabe and Ito (2008), which the colour-blind can tell
    apart.

    Parameters:
        policy: its name, arguments behind a dash ignored (`aging-rate0.1`).
    """
    return dict(_POLICY_STYLES[policy.partition("-")[0]])


def side_styles(policies: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The style of each side of a comparison, for `plot`: its policy's colour, another line where one before it has the
    same policy.

    Parameters:
        policies: of each side, in the order of the legend.
    """
    lines: dict[str, list[str]] = {policy: ["-", "--", ":", "-."] for policy in policies.values()}
    return {
        side: {"color": POLICY_COLORS[policy], "linestyle": lines[policy].pop(0), "label": side}
        for side, policy in policies.items()
    }


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


def batchings_of(frame: pd.DataFrame) -> list[str]:
    """The batchings that are there, the paper's first."""
    return [batching for batching in ("static", "continuous") if batching in set(frame.batching)]


def by_policy(runs: pd.DataFrame, column: str) -> list[tuple[str, pd.Series]]:
    """The column of each policy that is there, in the project's order of policies."""
    return [(policy, values) for policy in POLICY_NAMES if len(values := runs.loc[runs.policy == policy, column])]


def panels(
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


def log_tail(axis: plt.Axes) -> None:
    axis.set_yscale("log")
    axis.set_ylim(bottom=5e-4)
    axis.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    axis.yaxis.set_minor_formatter(NullFormatter())


def legend_below(figure: Figure, axis: plt.Axes, **options) -> None:
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(
        unique.values(), unique.keys(), loc="outside lower center", ncols=len(unique), frameon=False, **options
    )


def legend_right(figure: Figure, axis: plt.Axes) -> None:
    """Where there are too many for a line below."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=10)


def neighbours(points: pd.DataFrame, apart: tuple[float, float]) -> list[tuple[list[str], tuple[float, float]]]:
    """Names whose dots lie together, and where to write them.

    Parameters:
        points: two measures by name.
        apart: shares of the two axes at which two dots are two.
    """
    shares = (points - points.min()) / (points.max() - points.min()).clip(lower=1e-9)
    groups: list[list[str]] = []
    for name, place in shares.iterrows():
        near = [group for group in groups if ((shares.loc[group[0]] - place).abs() < apart).all()]
        if near:
            near[0].append(name)
        else:
            groups.append([name])
    return [(group, tuple(points.loc[group[0]])) for group in groups]
