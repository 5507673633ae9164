"""Dispatch policies.  A policy is a queue, as vLLM's `RequestQueue`; what it pops next is its whole meaning.

If the order of two queued requests never changes, a policy is one key function: a subclass of `KeyedQueue`.
"""

from driftsched_lib.policies.base import KeyedQueue, Policy
from driftsched_lib.policies.deadlines import EarliestDeadline, LeastSlack
from driftsched_lib.policies.express import Express
from driftsched_lib.policies.paper import AgingPriority, Fifo, Grouped, Priority, ShortestJobFirst, Weighted
from driftsched_lib.policies.preemptive import MultilevelFeedback, ShortestRemaining
from driftsched_lib.policies.size_and_wait import AgingShortestJobFirst, Hrrn, SigmoidShortestJobFirst
from driftsched_lib.policies.tenants import DeficitRoundRobin, VirtualTokenCounter, WeightedFairQueueing
from driftsched_lib.policies.uncertain_sizes import Boost, Gittins, TailInflatedExpectation
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

__all__ = ["POLICIES", "KeyedQueue", "Policy", "PolicyName"]
__all__ += [policy.__name__ for policy in POLICIES.values()]
