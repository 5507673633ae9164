"""Deadlines from the tiers' service level objectives (SLOs)."""

from driftsched_lib.policies.base import KeyedQueue
from driftsched_lib.requests import TIERS, Request, Tiers
from driftsched_lib.validation import not_negative


class EarliestDeadline(KeyedQueue):
    """Earliest deadline first: the request whose time to first token is due first (Liu and Layland, 1973).

    Where all start in any order at a steady pace and are here already, it meets every deadline that any order meets.
    As requests come later, and a slot once given is not taken back, it may miss one that waiting would have met.  Under
    overload it fails as a whole: what is late stays first, makes the next late in turn, and soon each request is served
    just after its deadline.  None starves: it is passed only by those that came at most the difference of two
    objectives later.

    Cost: O(log n).
    """

    def __init__(self, tiers: Tiers = TIERS):
        super().__init__()
        self.ttft_slo_s = {name: tier.ttft_slo_s for name, tier in tiers.items()}

    def key(self, request: Request) -> float:
        return request.arrival_s + self.ttft_slo_s[request.tier]


class LeastSlack(KeyedQueue):
    """The request with the least time to spare before it must start, if its last token is to be in time.

    That is as long before the end-to-end objective is due as the estimated output takes.  The slack of all shrinks
    alike, so the key is the latest start.  Under overload it fails as `EarliestDeadline` does, and of a tier the long
    requests, which have less slack, go first: the reverse of SJF.

    Source: least laxity first (Mok, 1983), asked only where a slot is free.  Cost: O(log n).

    Parameters:
        s_per_token: seconds that a running request takes for an output token.
    """

    def __init__(self, s_per_token: float = 0.03, tiers: Tiers = TIERS):
        super().__init__()
        self.e2e_slo_s = {name: tier.e2e_slo_s for name, tier in tiers.items()}
        self.s_per_token = not_negative("s_per_token", s_per_token)

    def key(self, request: Request) -> float:
        return request.arrival_s + self.e2e_slo_s[request.tier] - self.s_per_token * request.estimate.output_tokens
