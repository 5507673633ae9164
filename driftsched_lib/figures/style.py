"""The project's style: colours, names and orders that all figures share."""

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import cycle

import pandas as pd
import seaborn as sns

from driftsched_lib.requests import CATEGORIES

Looks = Mapping[str, Mapping[str, str]]
"""Colour and line style (empty for dots and bars) by name, in the order of the legend."""
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
CALIBRATION = {"uncalibrated": {"color": LIGHT, "linestyle": ""}, "calibrated": {"color": DARK, "linestyle": ""}}
COLORS = {policy: color for policy, (_, color, _) in _POLICIES.items()}
COLORS |= {"premium": "#b2182b", "standard": "#4393c3", "batch": "#bdbdbd"}
COLORS |= dict(zip(CATEGORIES, sns.color_palette("viridis", 5).as_hex(), strict=False))  # from short to long
_FREE = cycle(["#e7298a", "#7570b3", "#66a61e", "#a6761d", "#1f4e79", "#8c2d04"])
_LINES = ("-", "--", ":", "-.")


def color_of(name: str) -> str:
    """Return the colour of a policy, tier or category; an unknown name gets the next free colour, and keeps it."""
    return COLORS.get(name) or COLORS.setdefault(name, next(_FREE))


def looks_of(names: Iterable[str], known: Iterable[str]) -> Looks:
    """Return looks of dots or bars for the distinct names: the `known` ones first, then the others as they appear."""
    ordered = sorted(dict.fromkeys(names), key=lambda name: (*known, name).index(name))
    return {name: {"color": color_of(name), "linestyle": ""} for name in ordered}


def policy_names(policies: Iterable[str]) -> dict[str, str]:
    """Return a readable name per policy, in the project's order; a user's own has the name of its class.

    Options (`aging-rate=0.1`) are named only if the same policy comes more than once.
    """
    parts = [policy.partition("-") for policy in dict.fromkeys(policies)]
    variants, names = Counter(base for base, _, _ in parts), {}
    for base, dash, options in sorted(parts, key=lambda part: (*POLICY_NAMES, part[0]).index(part[0])):
        name = POLICY_NAMES.get(base) or base.rpartition(":")[2].rpartition(".")[2]
        names[base + dash + options] = f"{name} ({options})" if options and variants[base] > 1 else name
    return names


def side_looks(policies: Mapping[str, str]) -> Looks:
    """Return the look per side, given its policy: the policy's own, and another line if the policy comes again."""
    looks, seen = {}, Counter()
    for side, policy in policies.items():
        base = policy.partition("-")[0]
        _, color, line = _POLICIES.get(base) or ("", color_of(base), "-")
        if len(policies) > MAX_COLORED and base in POLICY_NAMES and base not in MAIN_POLICIES:
            color = GREY
        looks[side] = {"color": color, "linestyle": _LINES[(_LINES.index(line) + seen[base]) % len(_LINES)]}
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
    axes = {"titleweight": "bold", "titlesize": 11, "titlelocation": "left", "labelsize": 11}
    axes = {f"axes.{name}": value for name, value in (axes | {"spines.top": False, "spines.right": False}).items()}
    more = {"figure.dpi": 90, "grid.alpha": 0.5, "lines.linewidth": 2}
    sns.set_theme(style="whitegrid", palette="colorblind", rc=axes | more)
