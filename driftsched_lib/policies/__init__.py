"""Dispatch policies.  A policy is a queue: what it pops next is its whole meaning.

The face follows vLLM's `RequestQueue` (add, pop, peek, remove, len, iter).  Where the order of two queued requests
never changes, a policy is one key function over the shared heap of `KeyedQueue`; only what needs state is more.
"""

from driftsched_lib.policies.base import KeyedQueue, Policy
from driftsched_lib.policies.deadlines import EarliestDeadline, LeastSlack
from driftsched_lib.policies.express import Express
from driftsched_lib.policies.grouped import Grouped
from driftsched_lib.policies.paper import AgingPriority, Fifo, Priority, ShortestJobFirst, Weighted
from driftsched_lib.policies.preemptive import MultilevelFeedback, ShortestRemaining
from driftsched_lib.policies.size_and_wait import (
    AgingShortestJobFirst,
    Boost,
    Hrrn,
    SigmoidShortestJobFirst,
)
from driftsched_lib.policies.tenants import DeficitRoundRobin, VirtualTokenCounter, WeightedFairQueueing
from driftsched_lib.policies.uncertain_sizes import Gittins, TailInflatedExpectation
from driftsched_lib.validation import component

POLICIES = {
    "fifo": Fifo,
    "priority": Priority,
    "weighted": Weighted,
    "sjf": ShortestJobFirst,
    "aging": AgingPriority,
    "grouped": Grouped,
    "sjf_aging": AgingShortestJobFirst,
    "sjf_sigmoid": SigmoidShortestJobFirst,
    "hrrn": Hrrn,
    "boost": Boost,
    "edf": EarliestDeadline,
    "least_slack": LeastSlack,
    "vtc": VirtualTokenCounter,
    "drr": DeficitRoundRobin,
    "wfq": WeightedFairQueueing,
    "mlfq": MultilevelFeedback,
    "gittins": Gittins,
    "tie": TailInflatedExpectation,
    "srpt": ShortestRemaining,
    "express": Express,
}

PolicyName = component(POLICIES, shared=("tiers",))
"""A policy in parameters; `tiers` are given when it is built."""

__all__ = [
    "POLICIES",
    "AgingPriority",
    "AgingShortestJobFirst",
    "Boost",
    "DeficitRoundRobin",
    "EarliestDeadline",
    "Express",
    "Fifo",
    "Gittins",
    "Grouped",
    "Hrrn",
    "KeyedQueue",
    "LeastSlack",
    "MultilevelFeedback",
    "Policy",
    "PolicyName",
    "Priority",
    "ShortestJobFirst",
    "ShortestRemaining",
    "SigmoidShortestJobFirst",
    "TailInflatedExpectation",
    "VirtualTokenCounter",
    "Weighted",
    "WeightedFairQueueing",
]
