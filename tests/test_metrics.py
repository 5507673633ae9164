"""Measures against small cases worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from driftsched_lib.experiments.metrics import (
    busy_s,
    jain_index,
    job_class,
    job_classes,
    latencies,
    latency_table,
    max_min_shares,
    summarize,
    tenant_fairness,
)


def frame(rows, **shared):
    """Completed requests with plain values where a test does not care."""
    defaults = {
        "request_id": "0",
        "phase": "only",
        "tenant": "a",
        "tier": "standard",
        "category": "report",
        "outcome": "completed",
        "arrival_s": 0.0,
        "dispatch_s": 0.0,
        "first_token_s": 1.0,
        "finish_s": 2.0,
        "input_tokens": 10,
        "prompt_tokens": 10,
        "output_tokens": 10,
        "max_tokens": 10,
        "actual_tokens": 10,
        "estimated_tokens": 10,
        "estimated_total_tokens": 20,
    }
    return pd.DataFrame([defaults | shared | row for row in rows])


def test_jain_index_from_equal_to_one_for_all():
    assert jain_index([3, 3, 3]) == pytest.approx(1)
    assert jain_index([5, 0, 0, 0]) == pytest.approx(1 / 4)
    assert jain_index([1, 2]) == pytest.approx(9 / 10)


def test_latencies_by_hand():
    [row] = latencies(
        frame([{"arrival_s": 1.0, "dispatch_s": 2.0, "first_token_s": 4.0, "finish_s": 9.0, "output_tokens": 6}]),
        0.5,
        0.3,
    ).itertuples()
    assert (row.queue_wait_s, row.ttft_s, row.e2e_s, row.tpot_s) == (1.0, 3.0, 8.0, 1.0)
    assert row.slowdown == pytest.approx(8.0 / (0.5 + 5 * 0.3))


def test_one_token_has_the_time_that_it_was_held_back():
    [row] = latencies(frame([{"first_token_s": 1.0, "finish_s": 4.0, "output_tokens": 1}]), 0.5, 0.3).itertuples()
    assert (row.tpot_s, row.slowdown) == (3.0, 4.0 / 0.5)


def test_only_completed_requests_have_latencies():
    assert (
        latencies(frame([{}, {"outcome": "cancelled"}, {"outcome": "rejected", "dispatch_s": None}]), 1, 1).shape[0]
        == 1
    )


def served(tenant, times, **fields):
    """A request of ten tokens for each time, which has ended by then."""
    rows = [{"tenant": tenant, "arrival_s": 0.0, "first_token_s": t - 1.0, "finish_s": t} for t in times]
    return [row | fields for row in rows]


def test_fairness_is_of_what_was_served_by_the_last_arrival_over_a_max_min_share():
    late = {"tenant": "a", "arrival_s": 10.0, "first_token_s": 90.0, "finish_s": 99.0}
    everyone = frame([*served("a", [1, 2, 3, 4]), *served("b", [2, 50]), *served("c", [5]), late])
    fair = [40 / 30, 10 / 20, 10 / 10]  # of 60 that were served; c asked for 10, b for 20, and a has the rest
    assert tenant_fairness(everyone) == pytest.approx(jain_index(fair))


def test_fairness_goes_by_weight_and_by_half_served_requests():
    half = {"arrival_s": 10.0, "first_token_s": 8.0, "finish_s": 12.0}
    rows = [half | {"tenant": "a", "tier": "premium", "output_tokens": 60}]
    rows += [half | {"tenant": "b", "tier": "batch", "output_tokens": 20}]
    assert tenant_fairness(frame(rows), {"premium": 3.0, "batch": 1.0}) == pytest.approx(1.0)
    assert tenant_fairness(frame(rows)) == pytest.approx(jain_index([30 / 20, 10 / 20]))


def test_phases_count_by_what_was_served():
    fair = [*served("a", [1, 2], phase="fair"), *served("b", [1, 2], phase="fair")]
    never = {"tenant": "b", "phase": "unfair", "outcome": "expired", "output_tokens": None, "max_tokens": 10}
    unfair = [*served("a", [1], phase="unfair"), never | {"arrival_s": 5.0, "first_token_s": None}]
    late = [
        {"phase": phase, "arrival_s": 9.0, "first_token_s": 9.0, "finish_s": 99.0, "tenant": "a"} for phase in ("fair",)
    ]
    expected = (40 * jain_index([1, 1]) + 10 * jain_index([10 / 5, 0])) / 50
    assert tenant_fairness(frame(fair + unfair + late)) == pytest.approx(expected)


def test_max_min_shares_give_to_none_more_than_it_asks_for():
    demands, weights = np.array([100.0, 10.0, 100.0]), np.array([2.0, 1.0, 1.0])
    assert max_min_shares(100.0, demands, weights).tolist() == [60.0, 10.0, 30.0]
    assert max_min_shares(500.0, demands, weights).tolist() == demands.tolist()


def test_busy_time_leaves_gaps_out():
    requests = frame([{"arrival_s": a, "finish_s": b} for a, b in [(0, 4), (1, 2), (3, 6), (10, 11), (10.5, 12)]])
    assert busy_s(requests) == pytest.approx(6 + 2)


def test_job_class_bounds_are_inclusive():
    assert job_class(pd.Series([1, 128, 129, 512, 513]), [128, 512]).tolist() == [
        "short",
        "short",
        "medium",
        "medium",
        "long",
    ]


def test_flips_compare_neighbours_of_one_category_and_tier():
    totals = [("report", 100), ("summary", 600), ("report", 200), ("report", 201), ("summary", 601)]
    requests = frame(
        [
            {"category": category, "estimated_total_tokens": total, "arrival_s": i, "actual_tokens": 110}
            for i, (category, total) in enumerate(totals)
        ]
    )
    classes = job_classes(requests, [128, 512])
    assert classes.flip.tolist() == [False, False, True, False, False]
    assert classes.misjudged.tolist() == [False, True, True, True, True]  # each came to 120: short
    assert job_classes(requests[::-1], [128, 512]).flip.tolist() == classes.flip.tolist()
    assert not job_classes(requests.assign(tier=["premium", "batch", "batch", "batch", "batch"]), [128, 512]).flip.any()


def test_summary_by_hand():
    rows = [
        {"finish_s": 2.0 + i, "estimated_tokens": 10 + error, "longest_itl_s": 0.5 + i}
        for i, error in enumerate((-2, 0, 4))
    ]
    row = summarize(frame([*rows, {"outcome": "expired"}]), 1.0, 0.1, [128, 512])
    assert (row["requests"], row["completed"], row["expired"], row["rejected"]) == (4, 3, 1, 0)
    assert (row["p50_e2e_s"], row["mean_e2e_s"]) == (3.0, 3.0)
    assert row["output_tokens_per_s"] == pytest.approx(30 / 4)
    assert (row["mean_itl_s"], row["p99_longest_itl_s"]) == pytest.approx((2 / 9, 2.48))
    assert (row["mae_tokens"], row["rmse_tokens"]) == pytest.approx((2.0, np.sqrt(20 / 3)))


def test_a_run_in_which_nothing_completed_has_a_row():
    none = {
        "outcome": "failed",
        "output_tokens": None,
        "dispatch_s": None,
        "first_token_s": None,
        "actual_tokens": None,
    }
    row = summarize(frame([none]).convert_dtypes(), 1.0, 0.1, [128, 512])
    assert row.keys() == summarize(frame([{}]), 1.0, 0.1, [128, 512]).keys()
    assert (row["requests"], row["completed"], row["failed"], row["job_class_flips"]) == (1, 0, 1, 0)
    assert all(pd.isna(row[name]) for name in ("p99_e2e_s", "mean_queue_wait_s", "output_tokens_per_s", "jain_index"))


def test_latency_table_averages_over_seeds():
    runs = [frame([{"finish_s": 10.0 * seed}] * 3, seed=seed, batching="static", policy="fifo") for seed in (1, 3)]
    table = latency_table(latencies(pd.concat(runs), 1.0, 0.1))
    assert table.loc[("static", "fifo"), ("E2E (s)", "P99")] == pytest.approx(20.0)
