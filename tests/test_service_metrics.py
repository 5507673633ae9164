"""Objectives met, longest waits and service over time, on tables small enough to work out by hand."""

import numpy as np
import pandas as pd
import pytest
from driftsched_lib.experiments.service_metrics import (
    longest_waits,
    service_difference,
    service_over_time,
    slo_attainment,
)

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
SLO_S = {"premium": 2.0, "standard": 2.0, "batch": 5.0}


def test_attainment_counts_what_was_never_served_as_missed():
    by_tier = slo_attainment(REQUESTS, SLO_S, dict.fromkeys(SLO_S, 9.0))
    assert by_tier.requests.to_dict() == {"premium": 2, "batch": 3}
    assert by_tier.ttft_met.to_dict() == {"premium": 0.5, "batch": pytest.approx(1 / 3)}
    assert by_tier.e2e_met.to_dict() == {"premium": 1.0, "batch": pytest.approx(1 / 3)}
    assert by_tier.met.to_dict() == {"premium": 0.5, "batch": pytest.approx(1 / 3)}
    assert by_tier.goodput_per_s.to_dict() == {"premium": 1 / 20, "batch": 1 / 20}
    everyone = slo_attainment(REQUESTS, SLO_S, dict.fromkeys(SLO_S, 9.0), by=())
    assert everyone.requests.tolist() == [5] and everyone.met.tolist() == [0.4]
    assert len(slo_attainment(REQUESTS, SLO_S, SLO_S, by=("tier", "tenant"))) == 3


def test_the_longest_wait_of_one_never_dispatched_ends_with_it():
    assert longest_waits(REQUESTS).to_dict() == {
        ("premium", "a"): 6.0,
        ("batch", "b"): 1.0,
        ("batch", "c"): 18.0,
    }


def test_service_is_the_input_at_the_first_token_and_the_output_evenly_from_there():
    service = service_over_time(REQUESTS, [0.0, 2.0, 4.0, 6.0, 8.0, 20.0])
    assert service.a.tolist() == [0.0, 10.0, 14.0, 18.0, 30.0, 32.0]
    assert service.b.tolist() == pytest.approx([0.0, 0.0, 22.0, 26.0, 30.0, 34.0])
    weighted = service_over_time(REQUESTS, [20.0], weights={"premium": 4, "batch": 2}, input_price=0.0)
    assert weighted.iloc[0].to_dict() == {"a": 3.0, "b": 7.0}


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
    halved = service_difference(requests, 2.0, weights=dict.fromkeys(SLO_S, 2))
    assert np.nanmax(halved.difference) == 4.0
    with pytest.raises(ValueError, match="interval_s is 0"):
        service_difference(requests, 0)
