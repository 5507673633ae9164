"""Figures hold what they are given, whatever its size, and no policy looks like another."""

from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from driftsched_lib import figures
from driftsched_lib.figures.style import POLICY_NAMES, policy_style
from driftsched_lib.policies import POLICIES
from driftsched_lib.requests import TIERS


@pytest.fixture(autouse=True)
def closed():
    figures.use_style()
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def done():
    """Requests of three policies; batch, drawn last, and SJF's tail are the longest."""
    rng, parts = np.random.default_rng(1), []
    for batching in ("static", "continuous"):
        for policy, scale in (("fifo", 1.0), ("priority", 1.2), ("sjf", 3.0)):
            for seed in (1, 2):
                tier = np.array(TIERS)[np.arange(300) % 3]
                e2e_s = scale * rng.exponential(1 + 4 * (tier == "batch"))
                columns = {"batching": batching, "policy": policy, "seed": seed, "run": f"{batching}{policy}{seed}"}
                parts.append(pd.DataFrame({"request_id": range(300), "tier": tier, "e2e_s": e2e_s, **columns}))
    return pd.concat(parts, ignore_index=True)


def axes_that_cut(figure):
    """Axes whose limits leave out a point of a line."""
    figure.canvas.draw()
    for axis in figure.axes:
        (left, right), (low, high) = sorted(axis.get_xlim()), sorted(axis.get_ylim())
        for line in axis.lines:
            x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
            inside = (x >= left) & (x <= right) & (y >= low) & (y <= high)
            if line.get_transform() == axis.transData and not inside.all():
                yield axis


def overlapping_texts(figure):
    """Pairs of texts that lie on each other."""
    figure.canvas.draw()
    texts = [text for axis in figure.axes for text in (*axis.texts, axis.title, axis._left_title, axis.xaxis.label)]
    boxes = {text.get_text(): text.get_window_extent() for text in texts if text.get_text() and text.get_visible()}
    return [pair for pair in combinations(boxes, 2) if boxes[pair[0]].overlaps(boxes[pair[1]])]


@pytest.mark.parametrize("draw", [figures.change_against_fifo, figures.latency_by_tier, figures.e2e_tails])
def test_limits_hold_the_data_and_no_text_lies_on_another(draw, done):
    figure = draw(done)
    assert not overlapping_texts(figure)
    if draw is not figures.e2e_tails:  # whose tail ends at a share that is said
        assert not list(axes_that_cut(figure))


def test_the_first_policy_is_on_top_in_every_row(done):
    low, high = figures.latency_by_tier(done).axes[0].get_ylim()
    assert low > high


def test_queues_of_all_seeds_are_within_limits(done):
    time_s = np.linspace(0, 9, 10)
    runs = done[["batching", "policy", "seed", "run"]].drop_duplicates()
    rows = runs.assign(key=0).merge(pd.DataFrame({"time_s": time_s, **dict.fromkeys(TIERS, 3)}).assign(key=0))
    rows.loc[rows.seed == 2, list(TIERS)] = 70
    figure = figures.queue_depth(rows)
    assert figure.axes[0].get_ylim()[1] >= 70 and not list(axes_that_cut(figure))


def test_no_policy_looks_like_another():
    assert set(POLICY_NAMES) == set(POLICIES)
    assert len({policy_style(policy)["color"] for policy in POLICIES}) == len(POLICIES)
    assert policy_style("aging-rate0.1") == policy_style("aging")
