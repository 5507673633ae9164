"""What a ranking says: which settings are ahead, by how much, and whether the real engine agrees."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from driftsched_lib.figures.style import POLICY_COLORS, POLICY_NAMES


def ranking(table: pd.DataFrame, name: str) -> Figure:
    """Each policy with its best estimator: the objective itself, and its difference from FIFO in the same windows.

    Parameters:
        table: of `recommend.ranked`.
        name: the objective's, with its unit.
    """
    shown = table.drop_duplicates("policy")
    figure, axes = _panels(0.3 * len(shown) + 1.3, name)
    _objective_and_difference(axes, shown)
    _name(axes[0], shown, table)
    for axis in axes:
        axis.xaxis.set_major_locator(MaxNLocator(6))
    return figure


def confirmation(simulated: pd.DataFrame, real: pd.DataFrame, name: str) -> Figure:
    """The settings that met the real engine, beside what the simulator says of them for the same windows: the
    objective, and its difference from FIFO.

    Parameters:
        simulated, real: of `recommend.ranked`, with the same settings.
        name: the objective's, with its unit.
    """
    simulated = real[["policy", "estimator"]].merge(simulated, how="left")
    figure, axes = _panels(0.5 * len(real) + 1.6, name)
    _objective_and_difference(axes, simulated, at=-0.14, filled=False)
    _objective_and_difference(axes, real, at=0.14)
    axes[0].set_xlim(left=0)
    axes[0].plot([], [], "o", color="#555555", markerfacecolor="white", label="simulated")
    axes[0].plot([], [], "o", color="#555555", label="real engine")
    _name(axes[0], real, real)
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=10)
    return figure


def _panels(height: float, name: str) -> tuple[Figure, np.ndarray]:
    """For an objective, and for its difference from FIFO."""
    figure, axes = plt.subplots(1, 2, figsize=(10.5, height), sharey=True)
    axes[0].set_xlabel(name)
    axes[1].set_xlabel(f"difference from FIFO: {name}")
    axes[1].axvline(0, color="#666666", linewidth=1)
    return figure, axes


def _objective_and_difference(axes: np.ndarray, shown: pd.DataFrame, **style) -> None:
    _intervals(axes[0], shown, "mean", "low", "high", **style)
    _intervals(axes[1], shown, "against_fifo", "against_fifo_low", "against_fifo_high", **style)


def _name(axis: plt.Axes, shown: pd.DataFrame, table: pd.DataFrame) -> None:
    """A row's policy and, where it was run with several, its arguments and its estimator; the first on top."""
    names, estimators = [], table.policy.value_counts()
    variants = pd.Series(table.policy.unique()).str.partition("-")[0].value_counts()
    for row in shown.itertuples():
        policy, dash, arguments = row.policy.partition("-")
        estimator = f" · {row.estimator}" if estimators[row.policy] > 1 else ""
        names.append(POLICY_NAMES[policy] + (f" ({arguments})" if dash and variants[policy] > 1 else "") + estimator)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)


def _intervals(
    axis: plt.Axes, shown: pd.DataFrame, middle: str, low: str, high: str, at: float = 0.0, filled: bool = True
) -> None:
    """A dot and a line a row; the best in its own colour, for order is what is shown."""
    for place, row in enumerate(shown.to_dict("records")):
        color = POLICY_COLORS[row["policy"].partition("-")[0]]
        if np.isfinite([row[low], row[high]]).all():
            axis.plot([row[low], row[high]], [place + at] * 2, color=color, linewidth=1.5)
        axis.plot(row[middle], place + at, "o", color=color, markerfacecolor=color if filled else "white", markersize=6)
    axis.grid(axis="y", visible=False)
