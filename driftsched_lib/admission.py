"""Admission: who is rejected at arrival, and why, so that the admitted can be served in time.

A check is called with a request and its estimate, the time (s), and the estimated tokens queued by tier, the best tier
first.  It returns None to admit the request, or the reason why it is rejected.
"""

from collections.abc import Callable, Mapping

from driftsched_lib.requests import Request
from driftsched_lib.validation import positive

Check = Callable[[Request, float, Mapping[str, float]], str | None]
MAX_FULL_BUCKETS = 64  # remembered beyond twice those that are not full, so that forgetting is O(1), amortised


class TokenBuckets:
    """Give each tenant a token budget: a bucket that fills at a rate up to a depth and pays for each request.

    A request is admitted if its estimated total is in the bucket, or if the bucket is full; it then owes the rest.  So
    a tenant gets at most `burst_tokens + seconds * tokens_per_s`, plus what its last request had beyond the depth.

    Parameters:
        tokens_per_s: what a tenant may have in the long run, by tier.
        burst_tokens: depth of its bucket by tier; it starts full.
    """

    def __init__(self, tokens_per_s: Mapping[str, float], burst_tokens: Mapping[str, float]):
        self.tokens_per_s = {tier: positive(f"tokens_per_s of {tier}", rate) for tier, rate in tokens_per_s.items()}
        self.burst_tokens = {tier: positive(f"burst_tokens of {tier}", depth) for tier, depth in burst_tokens.items()}
        self._levels: dict[str, tuple[float, float]] = {}  # by tenant: tokens in the bucket, and when they were counted
        self._forget_at = MAX_FULL_BUCKETS

    def __call__(self, request: Request, now: float, queued_tokens: Mapping[str, float]) -> str | None:
        depth = self.burst_tokens[request.tier]
        level, counted_s = self._levels.get(request.tenant, (depth, now))
        level = min(depth, level + (now - counted_s) * self.tokens_per_s[request.tier])
        size = request.estimate.total_tokens
        if level < min(size, depth):
            return f"token budget of {request.tenant} is spent"
        self._levels[request.tenant] = (level - size, now)
        if len(self._levels) > self._forget_at:
            self._levels = {
                tenant: bucket for tenant, bucket in self._levels.items() if not self._is_full(*bucket, now)
            }
            self._forget_at = 2 * len(self._levels) + MAX_FULL_BUCKETS
        return None

    def _is_full(self, level: float, at: float, now: float) -> bool:
        """Return whether a bucket is full in each tier, as that of an unknown tenant is."""
        return all(level + (now - at) * self.tokens_per_s[tier] >= depth for tier, depth in self.burst_tokens.items())


class LoadShedding:
    """Reject a request when the work before it takes longer than its tier can wait.

    That work is what is queued of its tier and the better ones.  So the last tier is shed first, and the best only when
    it alone is too much.

    Parameters:
        tokens_per_s: what the engine makes with all its slots taken.
        max_wait_s: what each tier can wait, as its TTFT objective; infinite for a tier that is never shed.
    """

    def __init__(self, tokens_per_s: float, max_wait_s: Mapping[str, float]):
        self.tokens_per_s = positive("tokens_per_s", tokens_per_s)
        self.max_wait_s = dict(max_wait_s)
        if not all(wait >= 0 for wait in max_wait_s.values()):
            raise ValueError(f"max_wait_s is {dict(max_wait_s)}, none may be below 0")

    def __call__(self, request: Request, now: float, queued_tokens: Mapping[str, float]) -> str | None:
        tiers = list(queued_tokens)
        ahead = sum(queued_tokens[tier] for tier in tiers[: tiers.index(request.tier) + 1])
        max_wait_s = self.max_wait_s[request.tier]
        if ahead / self.tokens_per_s > max_wait_s:
            return f"more than {max_wait_s:g} s of work before a {request.tier} request"
        return None


def admission_check(
    tokens_per_s: float,
    budgets: tuple[Mapping[str, float], Mapping[str, float]] | None,
    max_wait_s: Mapping[str, float] | None,
) -> Check | None:
    """Return one check: load shedding, then token budgets, which spend and so come last; None if neither is given.

    Parameters are those of `LoadShedding` and, as a pair, of `TokenBuckets`.
    """
    checks: list[Check] = [] if max_wait_s is None else [LoadShedding(tokens_per_s, max_wait_s)]
    checks += [] if budgets is None else [TokenBuckets(*budgets)]

    def check(request: Request, now: float, queued_tokens: Mapping[str, float]) -> str | None:
        return next(filter(None, (ask(request, now, queued_tokens) for ask in checks)), None)

    return check if checks else None
