"""Sizes known only as a distribution; where the estimate is a single length, each of these is SJF."""

from math import ceil, fsum, inf

from driftsched_lib.policies.base import KeyedQueue, possible_tokens
from driftsched_lib.requests import Request
from driftsched_lib.validation import not_negative


class Gittins(KeyedQueue):
    """Largest Gittins index first: the best chance of an end per token spent (Gittins, 1979).

    A request that has not run has the index `max over t of P(size <= t) / E[min(size, t)]`, over the possible totals
    `t`.  It is the one that minimises the mean response time where running requests may be preempted.  Here none is:
    then the whole size has to be paid whatever it turns out to be, and the best index is `1 / E[size]`, which is TIE
    with no weight on the tail.  The difference is what the missing preemption costs.

    Cost: O(log n), and the number of quantiles.
    """

    def key(self, request: Request) -> float:
        totals = possible_tokens(request)
        tokens_per_end, ended, left = inf, 0.0, len(totals)
        for i, total in enumerate(totals, start=1):
            ended += total
            left -= 1
            if (tokens := (ended + left * total) / i) < tokens_per_end:
                tokens_per_end = tokens
        return tokens_per_end


class TailInflatedExpectation(KeyedQueue):
    """Smallest tail-inflated expectation first: `E[size] + weight * E[size | size in its largest tail]` (TIE).

    Source: Zheng et al., "Scheduling LLM Inference with Uncertainty-Aware Output Length Predictions", 2026
    (arXiv 2604.00499), with the expectations over the estimate's quantiles in the place of a log-t distribution.  There
    the weight moves between 0.1 and 0.5 with the length of the queue, and waiting shrinks the score; here the weight
    is fixed and nothing bounds the wait of a long request.

    Cost: O(log n), and the number of quantiles.

    Parameters:
        weight: of the tail's mean, 0 for the mean alone (SEPT, shortest expected processing time).
        tail: the share of the distribution that is its tail, as many quantiles as make it up.
    """

    def __init__(self, weight: float = 0.3, tail: float = 0.1):
        if not 0 < tail <= 1:
            raise ValueError(f"tail is {tail}, it must be above 0 and at most 1")
        super().__init__()
        self.weight = not_negative("weight", weight)
        self.tail = tail

    def key(self, request: Request) -> float:
        totals = possible_tokens(request)
        largest = totals[-ceil(self.tail * len(totals)) :]
        return fsum(totals) / len(totals) + self.weight * fsum(largest) / len(largest)
