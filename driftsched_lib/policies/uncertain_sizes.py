"""Policies that use the distribution of a size; where it is a single length, Gittins and TIE are SJF."""

from math import ceil, exp, expm1, fsum, inf, log

from driftsched_lib.policies.base import KeyedQueue, example_order, example_request, possible_tokens  # noqa: F401
from driftsched_lib.requests import Request
from driftsched_lib.validation import in_range, not_negative, positive


class Gittins(KeyedQueue):
    """Serve the largest Gittins index first: the best chance to end per token spent.

    The index of a request that has not run is `max over t of P(size <= t) / E[min(size, t)]`, over the possible totals
    `t`.  It minimises the mean response time if requests may be preempted.  Here they are not; then the best index is
    `1 / E[size]`, which is TIE with `weight=0`.  Source: Gittins, 1979.  Cost: O(log n), and the number of quantiles.

    >>> example_order(Gittins(), example_request("sure", 20), example_request("bet", 50, quantiles=(1, 1, 100, 100)))
    ['bet', 'sure']
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
    """Serve the smallest `E[size] + weight * E[size | size is in its largest tail]` first (TIE).

    `tail` is the tail's share, above 0 and at most 1.  A `weight` of 0 is shortest expected processing time (SEPT).
    Nothing bounds the wait of a long request.  Source: Zheng et al., 2026 (arXiv 2604.00499), who use a log-t
    distribution, a weight that follows the queue's length, and aging.  Cost: O(log n), and the number of quantiles.

    >>> bet = example_request("bet", 50, quantiles=(1, 1, 100, 100))
    >>> example_order(TailInflatedExpectation(), bet, example_request("sure", 60))
    ['sure', 'bet']
    """

    def __init__(self, weight: float = 0.3, tail: float = 0.1):
        super().__init__()
        self.weight = not_negative("weight", weight)
        self.tail = in_range("tail", tail, 0, 1)

    def key(self, request: Request) -> float:
        totals = possible_tokens(request)
        largest = totals[-ceil(self.tail * len(totals)) :]
        return fsum(totals) / len(totals) + self.weight * fsum(largest) / len(largest)


class Boost(KeyedQueue):
    """Serve in order of arrival, but each request counts as `log(m / (m - 1)) / decay` seconds older than it is.

    `m` is the mean of `exp(decay * size / tokens_per_s)` over the possible sizes, with the engine's rate when all slots
    are taken.  If `decay`, per second, is that of the tail of response times, no order by arrival and size makes this
    tail fall faster.  Towards 0 it becomes SJF, a large one is FIFO.  A request is passed only by those that arrive
    within the difference of two boosts.  Source: Yu and Scully, "Strongly Tail-Optimal Scheduling in the Light-Tailed
    M/G/1", 2024.  Cost: O(log n), and the number of quantiles.

    >>> example_order(Boost(), example_request("old", 400), example_request("new", 20, arrival_s=9.0))
    ['new', 'old']
    """

    def __init__(self, decay: float = 0.02, tokens_per_s: float = 1000.0):
        super().__init__()
        self.decay = positive("decay", decay)
        self.tokens_per_s = positive("tokens_per_s", tokens_per_s)

    def key(self, request: Request) -> float:
        totals, rate = possible_tokens(request), self.decay / self.tokens_per_s
        largest = totals[-1]
        log_mean = rate * largest + log(fsum([exp(rate * (total - largest)) for total in totals]) / len(totals))
        return request.arrival_s + log(-expm1(-log_mean)) / self.decay
