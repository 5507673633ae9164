"""Six thousand requests per policy on a faulty engine; `--thorough` serves a million, and `soak.py` ten million."""

import gc

import pytest
import soak

from driftsched_lib.policies import POLICIES, Fifo
from driftsched_lib.requests import Outcome


@pytest.mark.parametrize("policy", POLICIES)
def test_one_outcome_each_in_flat_memory(policy, pytestconfig, monkeypatch):
    for name, value in {"BREAKS": 5e-4, "CAPACITY": 100, "TENANTS": 50}.items():  # a short run reaches these, too
        monkeypatch.setattr(soak, name, value)
    requests = 1_000_000 if pytestconfig.getoption("thorough") else 6_000
    outcomes, breakdowns = soak.soak(policy, requests)
    assert outcomes.total() == requests and set(outcomes) == set(Outcome) and breakdowns > 0


def test_a_leak_is_seen(monkeypatch):
    class Keeps(Fifo):
        def add(self, request):
            kept.append(request.request_id)
            super().add(request)
            if len(kept) == 9000:
                gc.collect()  # this garbage of others hides no leak

    kept = []
    monkeypatch.setitem(POLICIES, "keeps", Keeps)
    garbage = [[] for _ in range(100_000)]
    garbage.append(garbage)
    gc.freeze()
    gc.unfreeze()  # the garbage is in the oldest generation now, so it is not collected before then
    del garbage
    with pytest.raises(AssertionError, match="memory blocks kept"):
        soak.soak("keeps", 20_000)
