"""Deadlines from the tiers' service level objectives (SLOs)."""

from driftsched_lib.policies.base import KeyedQueue, example_order, example_request  # noqa: F401
from driftsched_lib.requests import TIERS, Request, Tiers
from driftsched_lib.validation import not_negative


class EarliestDeadline(KeyedQueue):
    """Serve the request whose time to first token is due first (EDF).

    If all requests are here and start at a steady pace, it meets every deadline that any order meets.  Under overload,
    late requests stay first and make the next ones late.  None starves: a request is passed only by those that arrive
    at most the difference of two objectives later.  Source: Liu and Layland, 1973.  Cost: O(log n).

    >>> example_order(EarliestDeadline(), example_request("b", tier="batch"), example_request("p", arrival_s=50.0))
    ['p', 'b']
    """

    def __init__(self, tiers: Tiers = TIERS):
        super().__init__()
        self.ttft_slo_s = {name: tier.ttft_slo_s for name, tier in tiers.items()}

    def key(self, request: Request) -> float:
        return request.arrival_s + self.ttft_slo_s[request.tier]


class LeastSlack(KeyedQueue):
    """Serve the request that must start first to end within its tier's end-to-end objective.

    Its estimated output takes `s_per_token` seconds per token.  So within a tier long requests go first, the reverse of
    SJF.  Under overload it fails as `EarliestDeadline` does.  Source: least laxity first (Mok, 1983), applied when a
    slot is free.  Cost: O(log n).

    >>> example_order(LeastSlack(), example_request("short", 20), example_request("long", 400))
    ['long', 'short']
    """

    def __init__(self, s_per_token: float = 0.03, tiers: Tiers = TIERS):
        super().__init__()
        self.e2e_slo_s = {name: tier.e2e_slo_s for name, tier in tiers.items()}
        self.s_per_token = not_negative("s_per_token", s_per_token)

    def key(self, request: Request) -> float:
        return request.arrival_s + self.e2e_slo_s[request.tier] - self.s_per_token * request.estimate.output_tokens
