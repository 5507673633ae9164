"""Policies that take a slot back from a running request."""

from collections.abc import Iterable

from driftsched_lib.policies.base import KeyedQueue, not_negative
from driftsched_lib.requests import Request


class ShortestRemaining(KeyedQueue):
    """Shortest remaining processing time first (SRPT), on estimates: the fewest output tokens yet to come.

    A running request gives its place to the first queued one if that has fewer tokens to come, the recomputation of
    what the running one has in the KV cache counted on top.  One that has outlived its estimate counts as about to
    end and is left alone, so estimates that are too short cost no preemption, and nothing is preempted for ever; but
    nothing bounds the wait of a long request.

    Source: Schrage, "A Proof of the Optimality of the Shortest Remaining Processing Time Discipline", 1968: no policy
    has a lower mean response time on one server whose sizes are known and whose preemptions are free.

    Cost: O(log n), and O(running requests) where one might give its place.

    Parameters:
        recompute: output tokens whose time a token takes that is computed again.
    """

    preemptive = True

    def __init__(self, recompute: float = 0.1):
        super().__init__()
        self.recompute = not_negative("recompute", recompute)

    def key(self, request: Request) -> float:
        return tokens_to_come(request)

    def victim(self, running: Iterable[Request], now: float) -> Request | None:
        longest = max(running, key=tokens_to_come, default=None)
        if longest is None or not len(self):
            return None
        again = longest.input_tokens + longest.made_tokens
        gain = tokens_to_come(longest) - tokens_to_come(self.peek(now))
        return longest if gain > self.recompute * again else None


def tokens_to_come(request: Request) -> int:
    """The estimated output less what has been made of it, at least one token."""
    return max(1, request.estimate.output_tokens - request.made_tokens)
