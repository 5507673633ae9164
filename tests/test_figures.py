"""Figures hold what they are given, whatever its size and names, and no policy looks like another."""

from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from driftsched_lib import figures
from driftsched_lib.figures.style import POLICY_NAMES, policy_names, side_looks
from driftsched_lib.policies import POLICIES
from driftsched_lib.requests import TIERS


@pytest.fixture(autouse=True)
def closed():
    figures.use_style()
    yield
    plt.close("all")


def completed(policies, tiers):
    """Requests of three policies; the last tier, drawn last, and the last policy's tail are the longest."""
    rng, parts = np.random.default_rng(1), []
    for batching in ("static", "continuous"):
        for policy, scale in zip(policies, (1.0, 1.2, 3.0), strict=True):
            for seed in (1, 2):
                tier = np.array(tiers)[np.arange(300) % len(tiers)]
                e2e_s = scale * rng.exponential(1 + 4 * (tier == tiers[-1]))
                columns = {"batching": batching, "policy": policy, "seed": seed, "run": f"{batching}{policy}{seed}"}
                parts.append(pd.DataFrame({"request_id": range(300), "tier": tier, "e2e_s": e2e_s, **columns}))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def done():
    return completed(("fifo", "priority", "sjf"), tuple(TIERS))


@pytest.fixture(scope="module")
def foreign():
    """The same of a user's own policies and four tiers of other names."""
    return completed(
        ("fifo", "my_module:LongestFirst", "__main__:test.<locals>.Mine"), ("gold", "silver", "tin", "lead")
    )


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


@pytest.mark.parametrize("given", ["done", "foreign"])
@pytest.mark.parametrize("draw", [figures.change_against_fifo, figures.latency_by_tier, figures.e2e_tails])
def test_limits_hold_the_data_and_no_text_lies_on_another(draw, given, request):
    figure = draw(request.getfixturevalue(given))
    assert not overlapping_texts(figure)
    if draw is not figures.e2e_tails:  # whose tail ends at a share that is said
        assert not list(axes_that_cut(figure))


def test_the_first_policy_is_on_top_in_every_row(done):
    low, high = figures.latency_by_tier(done).axes[0].get_ylim()
    assert low > high


def test_queues_of_all_seeds_and_tiers_are_within_limits(foreign):
    samples = pd.DataFrame({"time_s": np.linspace(0, 9, 10), **dict.fromkeys(tiers := list(foreign.tier.unique()), 3)})
    depth = samples.merge(foreign[["run", "batching", "policy", "seed"]].drop_duplicates(), how="cross")
    depth.loc[depth.seed == 2, tiers] = 70
    figure = figures.queue_depth(depth)
    assert len(figure.axes) == 2 * len(tiers)
    assert figure.axes[0].get_ylim()[1] >= 70 and not list(axes_that_cut(figure))


def test_no_policy_looks_like_another_and_a_users_own_has_its_class_name():
    assert set(POLICY_NAMES) == set(POLICIES)
    looks = [side_looks({policy: policy})[policy]["color"] for policy in (*POLICIES, "a:B", "a:C")]
    assert len(set(looks)) == len(looks)
    assert side_looks({"": "aging-rate=0.1"})[""] == side_looks({"": "aging"})[""]
    names = policy_names(["my_module:LongestFirst", "aging-rate=0.1", "fifo", "aging"])
    assert list(names.values()) == ["FIFO", "Aging (rate=0.1)", "Aging", "LongestFirst"]
