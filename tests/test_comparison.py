"""Paired differences and their intervals."""

from dataclasses import astuple

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from driftsched_lib.studies import compare
from driftsched_lib.studies.scorecard import DIRECTION_ONLY, NOT_REPRODUCED, REPRODUCED, verdict

NEW, OLD = {"policy": "new"}, {"policy": "old"}


def two_policies(rng, factor=0.6, seeds=3, n=300, noise=0.3):
    """Return the same requests under two policies, the new one faster by a factor, rows in no order."""
    rows = []
    for seed in range(seeds):
        base = rng.lognormal(0, 1, n)
        for policy, scale in (("old", 1.0), ("new", factor)):
            rows += [(seed, str(i), policy, s) for i, s in enumerate(base * scale * rng.lognormal(0, noise, n))]
    return shuffled(rows)


def shuffled(rows):
    return pd.DataFrame(rows, columns=["seed", "request_id", "policy", "e2e_s"]).sample(frac=1, random_state=1)


def test_an_exact_change_is_found_exactly_as_requests_are_paired():
    frame = two_policies(np.random.default_rng(1), noise=0.0)
    for statistic in (compare.mean, compare.rms, compare.quantile(0.5), compare.quantile(0.99)):
        change = compare.relative_change(frame, "e2e_s", statistic, NEW, OLD)
        assert (change.estimate, change.low, change.high) == pytest.approx((-0.4, -0.4, -0.4))
    without = frame[~((frame.policy == "new") & frame.request_id.astype(int).lt(100))]
    assert compare.relative_change(without, "e2e_s", compare.mean, NEW, OLD).estimate == pytest.approx(-0.4)
    with pytest.raises(ValueError, match="no request was completed under all of"):
        compare.relative_change(frame, "e2e_s", compare.mean, {"policy": "none"}, OLD)


def one_run(values):
    return shuffled([(1, str(i), "new", value) for i, value in enumerate(values)])


def width(frame, **options):
    interval = compare.bootstrap(frame, "e2e_s", compare.mean, [NEW], **options)
    return interval.high - interval.low


@pytest.mark.parametrize(("confidence", "z"), [(0.95, 1.960), (0.90, 1.645)])
def test_independent_requests_give_the_textbooks_interval(confidence, z):
    frame = one_run(np.random.default_rng(4).normal(size=1000))
    expected = 2 * z * frame.e2e_s.std() / np.sqrt(len(frame))
    assert width(frame, block=1, resamples=4000, confidence=confidence) == pytest.approx(expected, rel=0.08)


def test_neighbours_that_met_the_same_queue_widen_the_interval():
    frame = one_run(np.sin(np.arange(1000) / 50))
    assert width(frame, block=50) > 3 * width(frame, block=1)


def test_a_difference_and_one_setting_agree_with_plain_means():
    frame = two_policies(np.random.default_rng(3))
    means, alone = frame.groupby("policy").e2e_s.mean(), compare.bootstrap(frame, "e2e_s", compare.mean, [NEW])
    difference = compare.bootstrap(frame, "e2e_s", compare.mean, [NEW, OLD], lambda new, old: new - old)
    assert difference.estimate == pytest.approx(means["new"] - means["old"])
    assert alone.estimate == pytest.approx(means["new"]) and alone.low < alone.estimate < alone.high


VERDICTS = {
    REPRODUCED: [(-0.41, -0.45, -0.38), (-0.33, -0.36, -0.30), (-0.52, -0.90, -0.01)],  # in the band, however wide
    DIRECTION_ONLY: [(-0.20, -0.25, -0.15), (-0.70, -0.72, -0.68), (-0.28, -0.55, -0.01)],
    NOT_REPRODUCED: [(-0.40, -0.90, 0.01), (0.40, 0.30, 0.50), (0.0, 0.0, 0.0), (-0.42, -np.inf, np.inf)],
}


@pytest.mark.parametrize("expected", VERDICTS)
def test_verdicts(expected):
    assert {verdict(-0.42, compare.Interval(*interval)) for interval in VERDICTS[expected]} == {expected}
    without_a_number = NOT_REPRODUCED if expected == NOT_REPRODUCED else REPRODUCED
    assert {verdict(-1, compare.Interval(*each), np.inf) for each in VERDICTS[expected]} == {without_a_number}


@pytest.mark.parametrize("seeds", [2, 3, 12])
def test_seeds_give_students_interval_and_one_run_says_that_it_is_one(seeds):
    rng = np.random.default_rng(5)
    runs = [one_run(rng.normal(level, 1, 200)).assign(seed=seed) for seed, level in enumerate(rng.normal(9, 1, seeds))]
    by_hand = compare.mean_interval([each.e2e_s.mean() for each in runs])
    interval = compare.bootstrap(pd.concat(runs), "e2e_s", compare.mean, [NEW])
    assert astuple(interval) == pytest.approx(astuple(by_hand)) and "run" not in f"{interval:.2f}"
    alone = compare.bootstrap(runs[0], "e2e_s", compare.mean, [NEW])
    assert alone.one_run and f"{alone:.2f}".endswith(f"{alone.high:.2f}] (conditional on one run)")


def test_requests_not_completed_on_all_sides_are_counted():
    """Of 200 requests the old policy completed 160, the new one 120, both 100."""
    rows = [(1, str(i), "old", 1.0) for i in range(160)] + [(1, str(i), "new", 1.0) for i in range(60, 180)]
    frame = shuffled(rows)
    frame["completed_share"] = frame.policy.map({"old": 160 / 200, "new": 120 / 200})
    change = compare.relative_change(frame, "e2e_s", compare.mean, NEW, OLD)
    assert change.left_out == pytest.approx(0.5)
    assert "50.0% of requests left out: not completed on all sides" in f"{change:+.0%}"
    assert "left out" not in f"{compare.bootstrap(frame.drop(columns='completed_share'), 'e2e_s', compare.mean, [OLD])}"
    with pytest.raises(ValueError, match="several runs of a seed"):
        compare.relative_change(pd.concat([frame, frame]), "e2e_s", compare.mean, NEW, OLD)


ROWS = [("fifo", 1, 10.0), ("fifo", 2, 20.0), ("sjf", 2, 10.0), ("sjf", 1, 5.0), ("drr", 1, 8.0), ("drr", 2, 14.0)]
SUMMARY = pd.DataFrame(ROWS, columns=["policy", "seed", "p50_e2e_s"])
SJF, FIFO = {"policy": "sjf"}, {"policy": "fifo"}


def test_changes_are_paired_by_seed():
    [row] = compare.changes(SUMMARY, FIFO, {"SJF": SJF}, ["p50_e2e_s"]).itertuples()
    assert (row.setting, row.change, row.low, row.high) == ("SJF", -0.5, -0.5, -0.5)
    assert compare.paired_change(SUMMARY, "p50_e2e_s", SJF, FIFO, relative=False).estimate == -7.5
    with pytest.raises(ValueError, match="selects 2 runs of 1 seeds"):
        compare.paired_change(SUMMARY.assign(seed=1), "p50_e2e_s", SJF, FIFO)


def test_the_share_of_a_gap_against_students_test():
    drr = {"policy": "drr"}
    share = compare.share_of_gap(SUMMARY, "p50_e2e_s", drr, FIFO, SJF)  # two seeds cannot tell a gap of 5 and 10 from 0
    assert (share.estimate, share.low, share.high) == (pytest.approx(8 / 15), -np.inf, np.inf)
    times = pd.DataFrame({"fifo": [30.0, 28.0, 33.0], "drr": [24.0, 23.0, 25.0], "sjf": [20.0, 17.0, 22.0]})
    three = times.rename_axis("seed").reset_index().melt("seed", var_name="policy", value_name="p50_e2e_s")
    share = compare.share_of_gap(three, "p50_e2e_s", drr, FIFO, SJF)
    assert share.estimate == pytest.approx((6 + 5 + 8) / (10 + 11 + 11))
    for end in (share.low, share.high):
        left = times.fifo - times.drr - end * (times.fifo - times.sjf)
        assert ttest_1samp(left, 0).pvalue == pytest.approx(0.05)
