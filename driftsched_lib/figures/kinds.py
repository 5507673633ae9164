"""One helper for each kind of picture.

A table of intervals has the columns `middle`, `low` and `high`.  A side is a policy, or a setting of one, by name.
Every helper draws the rows of one panel.
"""

from collections.abc import Callable, Sequence
from warnings import catch_warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import NullFormatter, PercentFormatter
from scipy.stats import ecdf

from driftsched_lib.figures.style import GREEN, GREY, Looks

ENDS = ["middle", "low", "high"]
PERCENT = PercentFormatter(1, decimals=0)


def panels(
    frame: pd.DataFrame,
    draw: Callable[..., object],
    by: tuple[str | None, str | None],
    labels: tuple[str, str | None] = ("", ""),
    size: tuple[float, float] = (5.2, 3.3),
    legend: Looks | None = None,
    marker: str = "",
    share: tuple[bool | str, bool | str] = (True, True),
    **options: object,
) -> Figure:
    """Return small multiples, in order of appearance, with a legend below.

    Parameters:
        draw: is given axes, the rows of one panel, and the other options.
        by: the columns whose values make columns and rows of panels.
        labels: of both axes; if that of y is None, the values of the panels' rows are the labels.
        size: width and height of one panel (inches).
        legend: what it names: lines, or markers; all grey sides are one entry.
        share: x and y axes, as `sharex` and `sharey` of `seaborn.FacetGrid`.
    """
    if frame.empty:
        figure = plt.figure(figsize=(size[0], 1))
        figure.text(0.5, 0.5, "nothing to compare", ha="center")
        return figure
    width = max(size[0], 7 / (frame[by[0]].nunique() if by[0] else 1))
    grid = {"height": size[1], "aspect": width / size[1], "sharex": share[0], "sharey": share[1], "despine": False}
    with plt.rc_context({"figure.constrained_layout.use": False}):  # seaborn would warn that it sets another layout
        grid = sns.FacetGrid(frame, col=by[0], row=by[1], **grid)
    grid.figure.set_layout_engine("constrained")
    for (i, j, _), part in grid.facet_data():
        draw(grid.axes[i, j], part, **options)
    title = ["{col_name}"] * (by[0] is not None) + ["{row_name}"] * (by[1] is not None and labels[1] is not None)
    grid.set_titles(", ".join(title), size=11)
    grid.set_axis_labels(*labels)
    for axis, name in zip(grid.axes[:, 0], grid.row_names if labels[1] is None else (), strict=False):
        axis.set_ylabel(name)
    entries = {"others" if look["color"] == GREY else name: look for name, look in (legend or {}).items()}
    more = {"linestyle": "", "marker": marker, "markersize": 7} if marker else {}
    handles = [Line2D([], [], label=name, **(look | more)) for name, look in entries.items()]
    if handles:
        grid.figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 7), frameon=False)
    return grid.figure


def caption(figure: Figure, text: str) -> Figure:
    """Say below a figure whose decisions and whose seconds it shows, how many seeds, and which interval."""
    if figure.legends:
        figure.legends[0].set_title(text, prop={"size": 9})
    else:
        figure.supxlabel(text, fontsize=9)
    return figure


def differing(frame: pd.DataFrame, by: str, column: str, within: Sequence[str] = ()) -> pd.DataFrame:
    """Return the rows of those panels, values of `by`, in which a column differs; all rows, if it differs in none."""
    differs = frame.groupby([by, *within])[column].transform("nunique") > 1
    differs = differs.groupby(frame[by]).transform("any")
    return frame[differs] if differs.any() else frame


def spread(intervals: pd.Series) -> pd.DataFrame:
    """Return a table of `Interval`s, with the index of the series."""
    return pd.DataFrame([(i.estimate, i.low, i.high) for i in intervals], intervals.index, ENDS)


def _palette(looks: Looks) -> dict[str, object]:
    return {"hue_order": list(looks), "palette": {name: look["color"] for name, look in looks.items()}, "legend": False}


def bars(axis: Axes, part: pd.DataFrame, x: str, hue: str, looks: Looks, fmt: str = "", **order: list[str]) -> None:
    """Draw a bar per row, with a line from end to end where the table has ends, and its height if `fmt` is given."""
    ends = [column for column in ENDS if column in part]
    rows = part.melt([x, hue], ends, value_name="value")  # of the three rows seaborn draws the median and the range
    of = {"estimator": "median", "errorbar": ("pi", 100), "err_kws": {"linewidth": 1}, "saturation": 1}
    sns.barplot(rows, x=x, y="value", hue=hue, ax=axis, **of, **order, **_palette(looks))
    for drawn in axis.containers if fmt else ():
        axis.bar_label(drawn, fmt=fmt, fontsize=9)


def tails(axis: Axes, part: pd.DataFrame, column: str, looks: Looks) -> None:
    """Draw the share of requests above each value per side, on a log scale.

    The band is the range over seeds; without seeds it is the 95% interval of the empirical distribution.
    """
    for side, mine in part.astype({column: float}).groupby("side"):
        sns.ecdfplot(mine, x=column, complementary=True, **looks[side], ax=axis)
        band = {"color": looks[side]["color"], "alpha": 0.12, "linewidth": 0}
        if "seed" in mine:
            above = np.geomspace(1, 1 / len(mine), 300)
            runs = [run.quantile(1 - above) for _, run in mine.groupby("seed")[column]]
            axis.fill_betweenx(above, np.min(runs, axis=0), np.max(runs, axis=0), **band)
        else:
            curve = ecdf(mine[column]).sf
            with catch_warnings(action="ignore"):  # there is no interval where none or all are above
                low, high = curve.confidence_interval()
            axis.fill_between(curve.quantiles, low.probabilities, high.probabilities, step="post", **band)
    log_share(axis)


def log_share(axis: Axes) -> None:
    """Give the y axis a log scale of shares, in percent."""
    axis.set(yscale="log", ylim=(5e-4, 1.2))
    axis.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    axis.yaxis.set_minor_formatter(NullFormatter())


def lines(
    axis: Axes, part: pd.DataFrame, x: str, looks: Looks, goal: tuple[float, float] | None = None, **options: object
) -> None:
    """Draw `middle` over `x` per side, with a band from `low` to `high` where the table has one."""
    for side, line in part.groupby("side", sort=False):
        axis.plot(line[x], line.middle, **({"linewidth": 1.7} | looks[side] | options))
        if "low" in line:
            axis.fill_between(line[x], line.low, line.high, color=looks[side]["color"], alpha=0.15, linewidth=0)
    if goal is not None:
        axis.axhspan(*goal, color=GREEN, alpha=0.12, linewidth=0)


def forest(axis: Axes, part: pd.DataFrame, looks: Looks, fmt: str = "") -> None:
    """Draw a dot per interval with a line from end to end, rows in the order of `looks`, and a line at zero.

    Parameters:
        part: with a column `row`, and `lane` for several intervals per row: those of the first lane are filled.
        fmt: format of the middle at the right edge; empty for none.
    """
    rows, lanes = list(looks), list(part.lane.unique()) if "lane" in part else [""]
    for item in part.to_dict("records"):
        lane, color = lanes.index(item.get("lane", "")), looks[item["row"]]["color"]
        y = rows.index(item["row"]) + 0.3 * (lane - (len(lanes) - 1) / 2)
        if np.isfinite([item["low"], item["high"]]).all():
            axis.plot([item["low"], item["high"]], [y, y], color=color, linewidth=1.6)
        axis.plot(item["middle"], y, "o", color=color, markerfacecolor="white" if lane else color, markersize=6)
        if fmt:
            text = f"{item.get('lane', '')}  {item['middle']:{fmt}}"
            axis.text(1.02, y, text, transform=axis.get_yaxis_transform(), va="center", fontsize=9)
    axis.axvline(0, color="black", linewidth=1)
    if fmt.endswith("%"):
        axis.xaxis.set_major_formatter(PERCENT)
    axis.set_yticks(range(len(rows)), rows)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)


def dots(axis: Axes, part: pd.DataFrame, x: str, y: str, hue: str, looks: Looks, **order: Sequence[str]) -> None:
    """Draw a dot per run, the groups of `hue` beside each other, and a bar at each group's median."""
    options = {"x": x, "y": y, "hue": hue, "ax": axis, **order, **_palette(looks)}
    across = pd.api.types.is_numeric_dtype(part[x])
    sns.stripplot(part, **options, dodge=True, jitter=False, size=3.5, alpha=0.5)
    bar = {"linestyle": "none", "marker": "|" if across else "_", "markersize": 9, "markeredgewidth": 2}
    sns.pointplot(part, **options, **bar, estimator="median", errorbar=None, dodge=0.8 * (1 - 1 / len(looks)))
    axis.grid(axis="y" if across else "x", visible=False)


def against(axis: Axes, part: pd.DataFrame, x: str, y: str, hue: str, looks: Looks) -> None:
    """Draw a dot per row, and the diagonal on which both are equal."""
    sns.scatterplot(part, x=x, y=y, hue=hue, s=9, alpha=0.35, linewidth=0, ax=axis, **_palette(looks))
    axis.axline((1, 1), (2, 2), color="black", linewidth=1)


def name_dots(axis: Axes, names: pd.DataFrame) -> None:
    """Write each `name` right of its dot at `x` and `y`; it moves up until it lies on no other name."""
    axis.figure.draw_without_rendering()
    taken = []
    for dot in names.sort_values("y").itertuples():
        style = {"textcoords": "offset points", "fontsize": 9.5, "color": dot.color, "va": "center"}
        style["path_effects"] = [withStroke(linewidth=3, foreground="white")]
        text, lift = axis.annotate(dot.name, (dot.x, dot.y), (8, 0), **style), 0
        while any(text.get_window_extent().overlaps(box) for box in taken):
            lift += 2
            text.set_position((8, lift))
        taken.append(text.get_window_extent())
