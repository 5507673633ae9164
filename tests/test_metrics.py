"""Measures against small cases worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from driftsched_lib.experiments.metrics import (
    barrier_waste,
    busy_s,
    jain_index,
    job_classes,
    latencies,
    latency_table,
    max_min_shares,
    met_slos,
    queue_waits,
    service_difference,
    service_over_time,
    summarize,
    tails,
    tenant_fairness,
    throughput,
)
from driftsched_lib.requests import Tier

PLAIN = {"request_id": "0", "phase": "only", "tenant": "a", "tier": "standard", "category": "report"}
PLAIN |= {"outcome": "completed", "arrival_s": 0.0, "dispatch_s": 0.0, "first_token_s": 1.0, "finish_s": 2.0}
PLAIN |= {f"{name}_tokens": 10 for name in ("input", "prompt", "output", "max", "actual", "estimated")}
PLAIN |= {"estimated_total_tokens": 20}


def frame(rows, **shared):
    """Completed requests with plain values where a test does not care."""
    return pd.DataFrame([PLAIN | shared | row for row in rows])


def test_jain_index_from_equal_to_one_for_all():
    assert jain_index([3, 3, 3]) == pytest.approx(1)
    assert jain_index([5, 0, 0, 0]) == pytest.approx(1 / 4)
    assert jain_index([1, 2]) == pytest.approx(9 / 10)


def test_latencies_by_hand():
    row = {"arrival_s": 1.0, "dispatch_s": 2.0, "first_token_s": 4.0, "finish_s": 9.0, "output_tokens": 6}
    [row] = latencies(
        frame([row, {"outcome": "cancelled"}, {"outcome": "rejected", "dispatch_s": None}]), 0.5, 0.3
    ).itertuples()
    assert (row.queue_wait_s, row.ttft_s, row.e2e_s, row.tpot_s) == (1.0, 3.0, 8.0, 1.0)
    assert row.slowdown == pytest.approx(8.0 / (0.5 + 5 * 0.3))


def test_one_token_has_the_time_that_it_was_held_back():
    [row] = latencies(frame([{"first_token_s": 1.0, "finish_s": 4.0, "output_tokens": 1}]), 0.5, 0.3).itertuples()
    assert (row.tpot_s, row.slowdown) == (3.0, 4.0 / 0.5)


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
    late = {"phase": "fair", "arrival_s": 9.0, "first_token_s": 9.0, "finish_s": 99.0, "tenant": "a"}
    expected = (40 * jain_index([1, 1]) + 10 * jain_index([10 / 5, 0])) / 50
    assert tenant_fairness(frame([*fair, *unfair, late])) == pytest.approx(expected)


def test_max_min_shares_give_to_none_more_than_it_asks_for():
    demands, weights = np.array([100.0, 10.0, 100.0]), np.array([2.0, 1.0, 1.0])
    assert max_min_shares(100.0, demands, weights).tolist() == [60.0, 10.0, 30.0]
    assert max_min_shares(500.0, demands, weights).tolist() == demands.tolist()


def test_busy_time_leaves_gaps_out():
    requests = frame([{"arrival_s": a, "finish_s": b} for a, b in [(0, 4), (1, 2), (3, 6), (10, 11), (10.5, 12)]])
    assert busy_s(requests) == pytest.approx(6 + 2)


def test_job_class_bounds_are_inclusive():
    totals = [1, 128, 129, 512, 513]
    requests = frame([{"estimated_total_tokens": total, "arrival_s": i} for i, total in enumerate(totals)])
    assert job_classes(requests, [128, 512]).job_class.tolist() == ["short", "short", "medium", "medium", "long"]


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
    none = dict.fromkeys(["output_tokens", "dispatch_s", "first_token_s", "actual_tokens"]) | {"outcome": "failed"}
    row = summarize(frame([none]).convert_dtypes(), 1.0, 0.1, [128, 512])
    assert row.keys() == summarize(frame([{}]), 1.0, 0.1, [128, 512]).keys()
    assert (row["requests"], row["completed"], row["failed"], row["job_class_flips"]) == (1, 0, 1, 0)
    assert all(pd.isna(row[name]) for name in ("p99_e2e_s", "mean_queue_wait_s", "output_tokens_per_s", "jain_index"))


def test_latency_table_averages_over_seeds():
    runs = [frame([{"finish_s": 10.0 * seed}] * 3, seed=seed, batching="static", policy="fifo") for seed in (1, 3)]
    table = latency_table(latencies(pd.concat(runs), 1.0, 0.1))
    assert table.loc[("static", "fifo"), ("E2E (s)", "P99")] == pytest.approx(20.0)


def test_tails_by_hand():
    setting = {"batching": "static", "estimator": "paper", "rate": 1.0, "tier": "batch"}
    rows = [("fifo", 1, 0.0, 2.0, 4.0), ("fifo", 1, 1.0, 6.0, 8.0), ("sjf", 1, 0.0, 10.0, 14.0)]
    rows += [("fifo", 2, 0.0, 1.0, 2.0), ("sjf", 2, 0.0, 1.0, 4.0), ("sjf", 2, 0.0, None, None)]
    requests = pd.DataFrame(rows, columns=["policy", "seed", "arrival_s", "dispatch_s", "finish_s"]).assign(**setting)
    requests["outcome"] = requests.dispatch_s.isna().map({True: "expired", False: "completed"})
    found = tails(requests, ["tier"])
    assert found.longest_wait_s.tolist() == [5.0, 10.0, 1.0, 1.0] and found.p99_e2e_s.tolist() == [6.97, 14.0, 2.0, 4.0]


def batches(*lengths):
    rows = [(i, tokens) for i, batch in enumerate(lengths) for tokens in batch]
    return pd.DataFrame(rows, columns=["batch_id", "output_tokens"]).assign(
        run="r", phase="p", arrival_s=0.0, finish_s=2.0
    )


def test_barrier_waste_and_throughput_by_hand():
    assert barrier_waste(batches([10, 10], [5])) == 0
    assert barrier_waste(batches([10, 5], [4, 4])) == pytest.approx(5 / 28)
    assert throughput(batches([10, 5], [4, 4])) == pytest.approx(23 / 2)


COLUMNS = ["tenant", "tier", "outcome", "arrival_s", "dispatch_s", "first_token_s", "finish_s"]
COLUMNS += ["prompt_tokens", "output_tokens"]


def table(*rows):
    return pd.DataFrame(rows, columns=COLUMNS)


REQUESTS = table(
    ("a", "premium", "completed", 0.0, 1.0, 2.0, 6.0, 10, 4),
    ("a", "premium", "completed", 0.0, 6.0, 7.0, 9.0, 10, 2),
    ("b", "batch", "completed", 1.0, 2.0, 3.0, 10.0, 20, 7),
    ("b", "batch", "rejected", 1.0, None, None, 1.0, None, None),
    ("c", "batch", "expired", 2.0, None, None, 20.0, None, None),
)


def test_attainment_counts_what_was_never_served_as_missed():
    tiers = {"premium": Tier(ttft_slo_s=2.0, e2e_slo_s=9.0), "batch": Tier(ttft_slo_s=5.0, e2e_slo_s=9.0)}
    assert met_slos(REQUESTS, tiers).tolist() == [True, False, True, False, False]
    tiers |= {"batch": Tier(ttft_slo_s=5.0, e2e_slo_s=8.9)}
    assert met_slos(REQUESTS, tiers).tolist() == [True, False, False, False, False]


def test_the_wait_of_a_request_never_dispatched_ends_with_it():
    assert queue_waits(REQUESTS).tolist() == [1.0, 6.0, 1.0, 0.0, 18.0]


def test_service_is_the_input_at_the_first_token_and_the_output_evenly_from_there():
    service = service_over_time(REQUESTS, [0.0, 2.0, 4.0, 6.0, 8.0, 20.0])
    assert service.a.tolist() == [0.0, 10.0, 14.0, 18.0, 30.0, 32.0]
    assert service.b.tolist() == pytest.approx([0.0, 0.0, 22.0, 26.0, 30.0, 34.0])
    weighted = service_over_time(REQUESTS, [20.0], weights={"premium": 4, "batch": 2})
    assert weighted.iloc[0].to_dict() == {"a": 3.0 + 20 / 4, "b": 7.0 + 20 / 2}


def test_the_difference_is_among_tenants_that_had_a_request_queued_all_the_time():
    requests = table(
        ("a", "premium", "completed", 0.0, 4.0, 4.0, 8.0, 0, 4),
        ("a", "premium", "completed", 0.0, 0.0, 0.0, 4.0, 0, 8),
        ("b", "premium", "completed", 0.0, 2.0, 2.0, 8.0, 0, 6),
        ("b", "premium", "completed", 2.0, 8.0, 8.0, 9.0, 0, 1),
        ("c", "premium", "completed", 1.0, 5.0, 5.0, 9.0, 0, 1),
    )
    differences = service_difference(requests, 2.0)
    assert differences.index.tolist() == [2.0, 4.0, 6.0, 8.0, 10.0]
    assert differences.backlogged.tolist() == [2, 3, 1, 1, 0]
    assert (
        differences.difference.tolist()[:2] == [8.0, 8.0] and differences.difference.isna().tolist()[2:] == [True] * 3
    )
    halved = service_difference(requests, 2.0, weights={"premium": 2})
    assert np.nanmax(halved.difference) == 4.0
    with pytest.raises(ValueError, match="interval_s is 0"):
        service_difference(requests, 0)
