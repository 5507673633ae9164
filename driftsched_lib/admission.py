"""Admission: who is turned away at arrival, and why, so that those who are let in can be served in time.

A check is called with a request that has its estimate, the time, and the tokens queued by tier (estimated totals).  It
returns None to let the request in, or the reason why it is turned away.
"""

from collections.abc import Callable, Mapping

from driftsched_lib.requests import Request
from driftsched_lib.validation import positive

Check = Callable[[Request, float, Mapping[str, float]], str | None]


class TokenBuckets:
    """A budget of tokens for each tenant: a bucket that fills at a rate, up to a depth, and pays for each request.

    A request is let in when its estimated total is in the bucket, or, if it is larger than the bucket, when that is
    full: then the bucket owes the rest.  So a tenant gets at most `burst_tokens + seconds * tokens_per_s` in any
    stretch of time, and what the last request had beyond the depth.

    Parameters:
        tokens_per_s: what a tenant may have in the long run, by tier.
        burst_tokens: depth of its bucket by tier; it starts full.

    Raises:
        ValueError: a tier without a rate or depth, or one that is not above 0.
    """

    def __init__(self, tokens_per_s: Mapping[str, float], burst_tokens: Mapping[str, float]):
        self.tokens_per_s = _positive("tokens_per_s", tokens_per_s)
        self.burst_tokens = _positive("burst_tokens", burst_tokens)
        self._levels: dict[str, tuple[float, float]] = {}  # by tenant: tokens in the bucket, and when they were counted

    def __call__(self, request: Request, now: float, queued_tokens: Mapping[str, float]) -> str | None:
        depth = self.burst_tokens[request.tier]
        level, counted_s = self._levels.get(request.tenant, (depth, now))
        level = min(depth, level + (now - counted_s) * self.tokens_per_s[request.tier])
        size = request.estimate.total_tokens
        if level < min(size, depth):
            return f"token budget of {request.tenant} is spent"
        self._levels[request.tenant] = (level - size, now)
        return None


class LoadShedding:
    """Turns a request away when the work that goes before it takes longer than its tier can bear to wait.

    That work is taken to be what is queued of its tier and the better ones, as under a strict order of tiers; so the
    last tier is shed first, and premium only when premium alone is too much.

    Parameters:
        tokens_per_s: what the engine makes with all its slots taken.
        longest_wait_s: what a tier can bear, as its TTFT objective; infinite for a tier never shed.

    Raises:
        ValueError: a rate that is not above 0, or a tier without a wait.
    """

    def __init__(self, tokens_per_s: float, longest_wait_s: Mapping[str, float]):
        self.tokens_per_s = positive("tokens_per_s", tokens_per_s)
        self.longest_wait_s = dict(longest_wait_s)
        if not all(wait >= 0 for wait in longest_wait_s.values()):
            raise ValueError(f"longest_wait_s is {dict(longest_wait_s)}, none may be below 0")

    def __call__(self, request: Request, now: float, queued_tokens: Mapping[str, float]) -> str | None:
        tiers = list(queued_tokens)
        ahead = sum(queued_tokens[tier] for tier in tiers[: tiers.index(request.tier) + 1])
        longest = self.longest_wait_s[request.tier]
        if ahead / self.tokens_per_s > longest:
            return f"more than {longest:g} s of work before a {request.tier} request"
        return None


def _positive(name: str, by_tier: Mapping[str, float]) -> dict[str, float]:
    return {tier: positive(f"{name} of {tier}", value) for tier, value in by_tier.items()}


def in_turn(*checks: Check) -> Check:
    """One check that asks several in turn, and no further than the first that has a reason.

    A check that spends something, as a token bucket does, belongs last.
    """

    def check(request: Request, now: float, queued_tokens: Mapping[str, float]) -> str | None:
        return next(filter(None, (ask(request, now, queued_tokens) for ask in checks)), None)

    return check


def admission_check(
    tokens_per_s: float,
    budgets: tuple[Mapping[str, float], Mapping[str, float]] | None,
    longest_wait_s: Mapping[str, float] | None,
) -> Check | None:
    """Load shedding and token budgets, in this order, those that are given; None for neither.

    Parameters:
        tokens_per_s: of the engine; see `LoadShedding`.
        budgets: the arguments of `TokenBuckets`.
        longest_wait_s: see `LoadShedding`.
    """
    checks: list[Check] = []
    if longest_wait_s is not None:
        checks.append(LoadShedding(tokens_per_s, longest_wait_s))
    if budgets is not None:
        checks.append(TokenBuckets(*budgets))
    return in_turn(*checks) if checks else None
