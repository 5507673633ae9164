"""One helper for each kind of picture.

A table of intervals has the columns `middle`, `low` and `high`.  A side is a policy, or a setting of one, by name.
Every helper draws the rows of one panel.
"""

from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, PercentFormatter

from driftsched_lib.figures.style import GREY, Looks

ENDS = ["middle", "low", "high"]
PERCENT = PercentFormatter(1, decimals=0)


def panels(
    frame: pd.DataFrame,
    draw: Callable[[Axes, pd.DataFrame], object],
    labels: tuple[str, str] = ("", ""),
    size: tuple[float, float] = (5.2, 3.3),
    legend: Looks | None = None,
    **facets: object,
) -> Figure:
    """Return small multiples, in order of appearance, with a legend below in which all grey sides are one entry.

    Parameters:
        size: width and height of one panel (inches).
        facets: `col`, `row` and other arguments of `seaborn.FacetGrid`.
    """
    if frame.empty:
        (figure := plt.figure(figsize=(size[0], 1))).suptitle("nothing to compare")
        return figure
    width = max(size[0], 7 / (frame[facets["col"]].nunique() if "col" in facets else 1))
    grid = sns.FacetGrid(frame, height=size[1], aspect=width / size[1], margin_titles=True, despine=False, **facets)
    grid.figure.set_layout_engine("constrained")
    for (i, j, _), part in grid.facet_data():
        draw(grid.axes[i, j], part)
    grid.set_titles(row_template="{row_name}", col_template="{col_name}", size=11)
    grid.set_axis_labels(*labels)
    shown = {"others" if look["color"] == GREY else name: look for name, look in (legend or {}).items()}
    keys = [Line2D([], [], label=name, marker="o" * (not look["linestyle"]), **look) for name, look in shown.items()]
    if keys:
        grid.figure.legend(handles=keys, loc="outside lower center", ncols=min(len(keys), 7), frameon=False)
    return grid.figure


def differing(frame: pd.DataFrame, by: str, column: str, within: Sequence[str] = ()) -> pd.DataFrame:
    """Return the rows of those panels, values of `by`, in which a column differs; all rows, if it differs in none."""
    differs = (frame.groupby([by, *within])[column].transform("nunique") > 1).groupby(frame[by]).transform("any")
    return frame[differs] if differs.any() else frame


def spread(intervals: pd.Series) -> pd.DataFrame:
    """Return a table of `Interval`s, with the index of the series."""
    return pd.DataFrame([(i.estimate, i.low, i.high) for i in intervals], intervals.index, ENDS)


def palette(looks: Looks) -> dict[str, object]:
    """Return the arguments that give a seaborn plot these looks, without a legend of its own."""
    return {"hue_order": list(looks), "palette": {name: look["color"] for name, look in looks.items()}, "legend": False}


def bars(axis: Axes, part: pd.DataFrame, x: str, hue: str, looks: Looks, fmt: str = "", **order: list[str]) -> None:
    """Draw a bar per row, with a line from end to end where the table has ends, and its height if `fmt` is given."""
    rows = part.melt([x, hue], part.columns.intersection(ENDS))  # of the three rows seaborn draws median and range
    of = {"estimator": "median", "errorbar": ("pi", 100), "err_kws": {"linewidth": 1}, "saturation": 1}
    sns.barplot(rows, x=x, y="value", hue=hue, ax=axis, **of, **order, **palette(looks))
    for drawn in axis.containers if fmt else ():
        axis.bar_label(drawn, fmt=fmt, fontsize=9)


def log_share(axis: Axes) -> None:
    """Give the y axis a log scale of shares, in percent."""
    axis.set(yscale="log", ylim=(5e-4, 1.2))
    axis.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    axis.yaxis.set_minor_formatter(NullFormatter())


def lines(axis: Axes, part: pd.DataFrame, x: str, looks: Looks, **options: object) -> None:
    """Draw `middle` over `x` per side, with a band from `low` to `high`."""
    for side, line in part.groupby("side", sort=False):
        axis.plot(line[x], line.middle, linewidth=1.7, **looks[side], **options)
        axis.fill_between(line[x], line.low, line.high, color=looks[side]["color"], alpha=0.15, linewidth=0)


def forest(axis: Axes, part: pd.DataFrame, looks: Looks, percent: bool = False) -> None:
    """Draw a dot per interval with a line from end to end, in its `row` of `looks`, and a line at zero.

    A column `lane` puts several intervals into a row: those of the first lane are filled.  With `percent`, axis and
    middles are in percent, and each middle stands at the right edge.
    """
    rows, lanes = list(looks), list(part.lane.unique()) if "lane" in part else [""]
    for item in part.to_dict("records"):
        lane, color = lanes.index(item.get("lane", "")), looks[item["row"]]["color"]
        y = rows.index(item["row"]) + 0.3 * (lane - (len(lanes) - 1) / 2)
        axis.plot([item["low"], item["high"]], [y, y], color=color, linewidth=1.6)
        axis.plot(item["middle"], y, "o", color=color, markerfacecolor="white" if lane else color, markersize=6)
        if percent:
            text = f"{item.get('lane', '')}  {item['middle']:+.0%}"
            axis.text(1.02, y, text, transform=axis.get_yaxis_transform(), va="center", fontsize=9)
            axis.xaxis.set_major_formatter(PERCENT)
    axis.axvline(0, color="black", linewidth=1)
    axis.set_yticks(range(len(rows)), rows)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)


def dots(axis: Axes, part: pd.DataFrame, x: str, y: str, hue: str, looks: Looks, order: Sequence[str]) -> None:
    """Draw a dot per run, the groups of `hue` above each other, and a bar at each group's median."""
    options = {"x": x, "y": y, "hue": hue, "ax": axis, "order": order, **palette(looks)}
    sns.stripplot(part, **options, dodge=True, jitter=False, size=3.5, alpha=0.5)
    bar = {"linestyle": "none", "marker": "|", "markersize": 9, "markeredgewidth": 2}
    sns.pointplot(part, **options, **bar, estimator="median", errorbar=None, dodge=0.8 * (1 - 1 / len(looks)))
    axis.grid(axis="y", visible=False)
