"""Measures against small cases worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from driftsched_lib.experiments import metrics
from driftsched_lib.requests import Tier

PLAIN = {"request_id": "0", "phase": "only", "tenant": "a", "tier": "standard", "category": "report"}
PLAIN |= {"outcome": "completed", "arrival_s": 0.0, "dispatch_s": 0.0, "first_token_s": 1.0, "finish_s": 2.0}
PLAIN |= {f"{name}_tokens": 10 for name in ("input", "prompt", "output", "max", "actual", "estimated")}
PLAIN |= {"estimated_total_tokens": 20}


def frame(rows, **shared):
    """Return completed requests with plain values where a test does not care."""
    return pd.DataFrame([PLAIN | shared | row for row in rows])


def test_jains_index_and_max_min_shares_by_hand():
    assert metrics.jain_index([3, 3, 3]) == pytest.approx(1)
    assert metrics.jain_index([5, 0, 0, 0]) == pytest.approx(1 / 4)
    assert metrics.jain_index([1, 2]) == pytest.approx(9 / 10)
    demands, weights = np.array([100.0, 10.0, 100.0]), np.array([2.0, 1.0, 1.0])
    assert metrics.max_min_shares(100.0, demands, weights).tolist() == [60.0, 10.0, 30.0]
    assert metrics.max_min_shares(500.0, demands, weights).tolist() == demands.tolist()


def test_latencies_by_hand():
    row = {"arrival_s": 1.0, "dispatch_s": 2.0, "first_token_s": 4.0, "finish_s": 9.0, "output_tokens": 6}
    row["engine_first_token_s"] = 4.0
    held_back = {"first_token_s": 4.0, "engine_first_token_s": 1.0, "finish_s": 4.0, "output_tokens": 1}
    rows = frame([row, held_back, {"outcome": "cancelled"}, {"outcome": "rejected", "dispatch_s": None}])
    row, held_back = metrics.latencies(rows, 0.5, 0.3).itertuples()
    assert held_back.ttft_s == held_back.e2e_s == 4.0
    assert (row.queue_wait_s, row.ttft_s, row.e2e_s, row.tpot_s) == (1.0, 3.0, 8.0, 1.0)
    assert row.slowdown == pytest.approx(8.0 / (0.5 + 5 * 0.3))
    assert (held_back.tpot_s, held_back.slowdown) == (3.0, 4.0 / 0.5)


def served(tenant, times, **fields):
    """Return a request of ten tokens for each time, which has ended by then."""
    return [{"tenant": tenant, "arrival_s": 0.0, "first_token_s": t - 1.0, "finish_s": t} | fields for t in times]


def test_fairness_is_of_what_was_served_by_the_last_arrival_over_a_max_min_share():
    late = {"tenant": "a", "arrival_s": 10.0, "first_token_s": 90.0, "finish_s": 99.0}
    everyone = frame([*served("a", [1, 2, 3, 4]), *served("b", [2, 50]), *served("c", [5]), late])
    fair = [40 / 30, 10 / 20, 10 / 10]  # of 60 that were served; c asked for 10, b for 20, and a has the rest
    assert metrics.tenant_fairness(everyone) == pytest.approx(metrics.jain_index(fair))


def test_fairness_goes_by_weight_and_by_half_served_requests():
    half = {"arrival_s": 10.0, "first_token_s": 8.0, "finish_s": 12.0}
    rows = [half | {"tenant": "a", "tier": "premium", "output_tokens": 60}]
    rows += [half | {"tenant": "b", "tier": "batch", "output_tokens": 20}]
    assert metrics.tenant_fairness(frame(rows), {"premium": 3.0, "batch": 1.0}) == pytest.approx(1.0)
    assert metrics.tenant_fairness(frame(rows)) == pytest.approx(metrics.jain_index([30 / 20, 10 / 20]))


def test_phases_count_by_what_was_served():
    fair = [*served("a", [1, 2], phase="fair"), *served("b", [1, 2], phase="fair")]
    never = {"tenant": "b", "phase": "unfair", "outcome": "expired", "output_tokens": None, "max_tokens": 10}
    unfair = [*served("a", [1], phase="unfair"), never | {"arrival_s": 5.0, "first_token_s": None}]
    late = {"phase": "fair", "arrival_s": 9.0, "first_token_s": 9.0, "finish_s": 99.0, "tenant": "a"}
    expected = (40 * metrics.jain_index([1, 1]) + 10 * metrics.jain_index([10 / 5, 0])) / 50
    assert metrics.tenant_fairness(frame([*fair, *unfair, late])) == pytest.approx(expected)


def test_job_class_bounds_are_inclusive_and_flips_compare_neighbours_of_one_category_and_tier():
    def classes(requests):
        return metrics.job_classes(requests, [128, 512])

    totals = [1, 128, 129, 512, 513]
    bounds = classes(frame([{"estimated_total_tokens": total} for total in totals]).assign(arrival_s=range(5)))
    assert bounds.job_class.tolist() == ["short", "short", "medium", "medium", "long"]
    totals = [("report", 100), ("summary", 600), ("report", 200), ("report", 201), ("summary", 601)]
    rows = [{"category": name, "estimated_total_tokens": total} for name, total in totals]
    requests = frame(rows, actual_tokens=110).assign(arrival_s=range(5))
    assert classes(requests).flip.tolist() == [False, False, True, False, False]
    assert classes(requests).misjudged.tolist() == [False, True, True, True, True]  # each came to 120: short
    assert classes(requests[::-1]).flip.tolist() == classes(requests).flip.tolist()
    assert not classes(requests.assign(tier=["premium", "batch", "batch", "batch", "batch"])).flip.any()


def test_summary_by_hand():
    errors = [{"finish_s": 2.0, "estimated_tokens": 8, "longest_itl_s": 0.5}, {"finish_s": 3.0, "longest_itl_s": 1.5}]
    rows = [*errors, {"finish_s": 4.0, "estimated_tokens": 14, "longest_itl_s": 2.5}]
    row = metrics.summarize(frame([*rows, {"outcome": "expired"}]), 1.0, 0.1, [128, 512])
    assert (row["requests"], row["completed"], row["expired"], row["rejected"]) == (4, 3, 1, 0)
    assert (row["p50_e2e_s"], row["mean_e2e_s"]) == (3.0, 3.0)
    assert row["output_tokens_per_s"] == pytest.approx(30 / 4)
    assert (row["mean_itl_s"], row["p99_longest_itl_s"]) == pytest.approx((2 / 9, 2.48))
    assert (row["mae_tokens"], row["rmse_tokens"]) == pytest.approx((2.0, np.sqrt(20 / 3)))


def test_a_run_in_which_nothing_completed_has_a_row():
    none = dict.fromkeys(["output_tokens", "dispatch_s", "first_token_s", "actual_tokens"]) | {"outcome": "failed"}
    row = metrics.summarize(frame([none]).convert_dtypes(), 1.0, 0.1, [128, 512])
    assert row.keys() == metrics.summarize(frame([{}]), 1.0, 0.1, [128, 512]).keys()
    assert (row["requests"], row["completed"], row["failed"], row["job_class_flips"]) == (1, 0, 1, 0)
    assert all(pd.isna(row[name]) for name in ("p99_e2e_s", "mean_queue_wait_s", "output_tokens_per_s", "jain_index"))


def test_latency_table_averages_over_seeds():
    runs = [frame([{"finish_s": 10.0 * seed}] * 3, seed=seed, batching="static", policy="fifo") for seed in (1, 3)]
    once = runs[0].assign(policy="sjf")  # it completed nothing in the other seed
    table = metrics.latency_table(metrics.latencies(pd.concat([*runs, once]), 1.0, 0.1))["E2E (s)", "P99"]
    assert table["static", "fifo"] == pytest.approx(20.0) and np.isnan(table["static", "sjf"])


def test_tails_by_hand():
    setting = {"batching": "static", "estimator": "paper", "rate": 1.0, "tier": "batch"}
    rows = [("fifo", 1, 0.0, 2.0, 4.0), ("fifo", 1, 1.0, 6.0, 8.0), ("sjf", 1, 0.0, 10.0, 14.0)]
    rows += [("fifo", 2, 0.0, 1.0, 2.0), ("sjf", 2, 0.0, 1.0, 4.0), ("sjf", 2, 0.0, None, None)]
    requests = pd.DataFrame(rows, columns=["policy", "seed", "arrival_s", "dispatch_s", "finish_s"]).assign(**setting)
    requests["outcome"] = requests.dispatch_s.isna().map({True: "expired", False: "completed"})
    found = metrics.tails(requests, ["tier"])
    assert found.longest_wait_s.tolist() == [5.0, 10.0, 1.0, 1.0] and found.p99_e2e_s.tolist() == [6.97, 14.0, 2.0, 4.0]
    never = requests.assign(outcome="expired", dispatch_s=np.nan, finish_s=9.0)  # they waited all the same
    starved = metrics.tails(never, ["tier"])
    assert starved.longest_wait_s.tolist() == [9.0] * 4 and starved.p99_e2e_s.isna().all()


def batches(*lengths):
    rows = [(i, tokens) for i, batch in enumerate(lengths) for tokens in batch]
    shared = {"run": "r", "phase": "p", "arrival_s": 0.0, "finish_s": 2.0}
    return pd.DataFrame(rows, columns=["batch_id", "output_tokens"]).assign(**shared)


def test_busy_time_barrier_waste_and_throughput_by_hand():
    requests = frame([{"arrival_s": a, "finish_s": b} for a, b in [(0, 4), (1, 2), (3, 6), (10, 11), (10.5, 12)]])
    assert metrics.busy_s(requests) == pytest.approx(6 + 2)
    assert metrics.barrier_waste(batches([10, 10], [5])) == 0
    assert metrics.barrier_waste(batches([10, 5], [4, 4])) == pytest.approx(5 / 28)
    assert metrics.throughput(batches([10, 5], [4, 4])) == pytest.approx(23 / 2)


def table(*rows):
    columns = ["tenant", "tier", "outcome", "arrival_s", "dispatch_s", "first_token_s", "finish_s"]
    return pd.DataFrame(rows, columns=[*columns, "prompt_tokens", "output_tokens"])


REQUESTS = table(
    ("a", "premium", "completed", 0.0, 1.0, 2.0, 6.0, 10, 4),
    ("a", "premium", "completed", 0.0, 6.0, 7.0, 9.0, 10, 2),
    ("b", "batch", "completed", 1.0, 2.0, 3.0, 10.0, 20, 7),
    ("b", "batch", "rejected", 1.0, None, None, 1.0, None, None),
    ("c", "batch", "expired", 2.0, None, None, 20.0, None, None),
)


def test_attainment_counts_what_was_never_served_as_missed_and_its_wait_ends_with_it():
    tiers = {"premium": Tier(ttft_slo_s=2.0, e2e_slo_s=9.0), "batch": Tier(ttft_slo_s=5.0, e2e_slo_s=9.0)}
    assert metrics.met_slos(REQUESTS, tiers).tolist() == [True, False, True, False, False]
    tiers |= {"batch": Tier(ttft_slo_s=5.0, e2e_slo_s=8.9)}
    assert metrics.met_slos(REQUESTS, tiers).tolist() == [True, False, False, False, False]
    assert metrics.queue_waits(REQUESTS).tolist() == [1.0, 6.0, 1.0, 0.0, 18.0]


def test_service_is_the_input_at_the_first_token_and_the_output_evenly_from_there():
    service = metrics.service_over_time(REQUESTS, [0.0, 2.0, 4.0, 6.0, 8.0, 20.0])
    assert service.a.tolist() == [0.0, 10.0, 14.0, 18.0, 30.0, 32.0]
    assert service.b.tolist() == pytest.approx([0.0, 0.0, 22.0, 26.0, 30.0, 34.0])
    weighted = metrics.service_over_time(REQUESTS, [20.0], weights={"premium": 4, "batch": 2})
    assert weighted.iloc[0].to_dict() == {"a": 3.0 + 20 / 4, "b": 7.0 + 20 / 2, "c": 0.0}
    held_back = REQUESTS.assign(first_token_s=REQUESTS.finish_s, engine_first_token_s=REQUESTS.first_token_s)
    pd.testing.assert_frame_equal(metrics.service_over_time(held_back, service.index), service)


def test_the_difference_is_among_tenants_that_had_a_request_queued_all_the_time():
    requests = table(
        ("a", "premium", "completed", 0.0, 4.0, 4.0, 8.0, 0, 4),
        ("a", "premium", "completed", 0.0, 0.0, 0.0, 4.0, 0, 8),
        ("b", "premium", "completed", 0.0, 2.0, 2.0, 8.0, 0, 6),
        ("b", "premium", "completed", 2.0, 8.0, 8.0, 9.0, 0, 1),
        ("c", "premium", "completed", 1.0, 5.0, 5.0, 9.0, 0, 1),
    )
    differences = metrics.service_difference(requests, 2.0)
    assert differences.index.tolist() == [2.0, 4.0, 6.0, 8.0, 10.0]
    assert differences.backlogged.tolist() == [2, 3, 1, 1, 0]
    assert differences.difference.tolist()[:2] == [8.0, 8.0] and differences.difference[2:].isna().all()
    halved = metrics.service_difference(requests, 2.0, weights={"premium": 2})
    assert np.nanmax(halved.difference) == 4.0
    with pytest.raises(ValueError, match="interval_s is 0"):
        metrics.service_difference(requests, 0)
    starved = requests.assign(outcome=requests.outcome.where(requests.tenant != "b", "expired"))
    assert metrics.service_difference(starved.convert_dtypes(), 2.0).difference.tolist()[:2] == [8.0, 8.0]
