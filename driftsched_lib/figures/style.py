"""The project's one style: colours, names and orders that all figures share."""

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import cycle

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

from driftsched_lib.requests import CATEGORIES

Looks = Mapping[str, Mapping[str, str]]
"""Colour, and where it matters line style, by name, in the order of the legend."""
_POLICIES = {
    "fifo": ("FIFO", "#000000", "-"),
    "priority": ("Priority", "#e69f00", "-"),
    "weighted": ("Weighted", "#009e73", "--"),
    "sjf": ("SJF", "#0072b2", "-"),
    "aging": ("Aging", "#cc79a7", ":"),
    "grouped": ("Grouped", "#56b4e9", "--"),
    "sjf_aging": ("SJF with aging", "#003f63", "--"),
    "sjf_sigmoid": ("SJF, sigmoid", "#4d5fd1", ":"),
    "hrrn": ("HRRN", "#7d9bb5", "--"),
    "boost": ("Boost", "#8fa8ff", ":"),
    "edf": ("EDF", "#8a3f6c", "-"),
    "least_slack": ("Least slack", "#b58fd6", "--"),
    "vtc": ("VTC", "#00573f", "-"),
    "drr": ("DRR", "#5c8a00", "--"),
    "wfq": ("WFQ", "#66c9a9", ":"),
    "mlfq": ("MLFQ", "#7f4f24", "-"),
    "gittins": ("Gittins", "#b08d57", "--"),
    "tie": ("TIE", "#4a3b28", ":"),
    "srpt": ("SRPT", "#00a0c6", "-."),
    "express": ("Express", "#d55e00", "-"),
}
"""Name, colour and line; those of the paper and Express have colours of Okabe and Ito (2008)."""
POLICY_NAMES = {policy: name for policy, (name, _, _) in _POLICIES.items()}
MAIN_POLICIES = {"fifo", "priority", "weighted", "sjf", "aging", "express"}
MAX_COLORED = 8
"""In a figure of more policies, the built-in ones that are not the main ones are grey."""
DARK, LIGHT, GREY, GREEN = "#404040", "#b3b3b3", "#a0a0a0", "#009e73"
CALIBRATION = {"uncalibrated": {"color": LIGHT}, "calibrated": {"color": DARK}}
_COLORS = {policy: color for policy, (_, color, _) in _POLICIES.items()}
_COLORS |= {"premium": "#b2182b", "standard": "#4393c3", "batch": "#bdbdbd"}
_COLORS |= dict(zip(CATEGORIES, sns.color_palette("viridis", 5).as_hex(), strict=False))  # from short to long
_FREE = cycle(["#e7298a", "#7570b3", "#66a61e", "#a6761d", "#1f4e79", "#8c2d04"])
_LINES = ("-", "--", ":", "-.")
_free_color = cache(lambda name: next(_FREE))


def color_of(name: str) -> str:
    """Return the colour of a policy, tier or category; an unknown name gets the next free colour, and keeps it."""
    return _COLORS.get(name) or _free_color(name)


def looks_of(names: Iterable[str], known: Iterable[str] = ()) -> Looks:
    """Return the looks of the distinct names: the `known` ones first, then the others as they appear."""
    names, known = dict.fromkeys(names), list(known)
    ordered = sorted(names, key=lambda name: known.index(name) if name in known else len(known))
    return {name: {"color": color_of(name)} for name in ordered}


def policy_names(policies: Iterable[str]) -> dict[str, str]:
    """Return a readable name per policy, in the project's order; one of a user's own is called as its class.

    Options (`aging-rate=0.1`) are named only if the same policy comes more than once.
    """
    parts, known = [policy.partition("-") for policy in dict.fromkeys(policies)], list(POLICY_NAMES)
    parts.sort(key=lambda part: known.index(part[0]) if part[0] in known else len(known))
    variants, names = Counter(base for base, _, _ in parts), {}
    for base, dash, options in parts:
        name = POLICY_NAMES.get(base) or base.rpartition(":")[2].rpartition(".")[2]
        names[base + dash + options] = f"{name} ({options})" if options and variants[base] > 1 else name
    return names


def side_looks(policies: Mapping[str, str]) -> Looks:
    """Return the look per side of a comparison: its policy's, and another line if the policy comes again.

    Parameters:
        policies: the policy per side, in the order of the legend.
    """
    looks, seen = {}, Counter()
    for side, policy in policies.items():
        base = policy.partition("-")[0]
        grey = len(policies) > MAX_COLORED and base in POLICY_NAMES and base not in MAIN_POLICIES
        line = _LINES.index(_POLICIES[base][2]) if base in _POLICIES else 0
        line = _LINES[(line + seen[base]) % len(_LINES)]
        looks[side] = {"color": GREY if grey else color_of(base), "linestyle": line}
        seen[base] += 1
    return looks


def by_side(frame: pd.DataFrame) -> tuple[pd.DataFrame, Looks]:
    """Return the frame with the name of each policy as `side`, static batching first, and the look per side."""
    names = policy_names(frame.policy)
    if "batching" in frame:
        frame = frame.sort_values("batching", ascending=False, kind="stable")
    return frame.assign(side=frame.policy.map(names)), side_looks({name: policy for policy, name in names.items()})


def use_style() -> None:
    """Set the project's style: for screens and print, legible at half size."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    plt.rcParams |= {"figure.dpi": 90, "figure.constrained_layout.use": True, "grid.alpha": 0.5, "lines.linewidth": 2}
    plt.rcParams |= {
        "axes.titleweight": "bold",
        "axes.titlesize": 11,
        "axes.labelsize": 11,
        "axes.titlelocation": "left",
    }
    plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False}
