"""Estimator interface, feedback type and shared input checks."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, inf, log
from typing import Annotated, Any, Protocol, final

from pydantic import AfterValidator, Field

from driftsched_lib.requests import BASE_TOKENS, Category, Estimate, Request
from driftsched_lib.validation import choice

MAX_TOKENS = 10_000_000
"""Longest length that is believed (tokens); a longer one is a counting error."""
MIN_VARIANCE = 1e-4  # of a log length: a spread of one percent
MAX_LOG_RATIO = 20.0  # that an estimate uses: above that of `MAX_TOKENS`, far below what overflows
MAX_LOG = 100.0  # of one part of a log ratio; other parts may cancel it


def _all_categories(base_tokens: dict[str, int]) -> dict[str, int]:
    if missing := sorted(set(BASE_TOKENS) - set(base_tokens)):
        raise ValueError(f"a base for {', '.join(missing)} is missing")
    return base_tokens


BaseTokens = Annotated[dict[Category, Annotated[int, Field(ge=1, le=MAX_TOKENS)]], AfterValidator(_all_categories)]
"""The expected output length of each category, in parameters (tokens)."""

# The types of what is learnt give each number's range; `state` reads no file with a number outside it.
LogRatio = Annotated[float, Field(ge=-MAX_LOG, le=MAX_LOG)]
Variance = Annotated[float, Field(gt=0, le=1e6)]
Count = Annotated[int, Field(ge=0, le=10**12)]


@final
@dataclass(slots=True)
class Feedback:
    """What one observation changed: the bias before it, the measured ratio, the bias after it."""

    bias_before: float
    measured: float
    bias_after: float


class Censored(int):
    """The length (tokens) of an output that ended at its limit; without that limit it would be as long or longer.

    It is an `int` like any other length, so an estimator that does not ask for it still works.
    """

    __slots__ = ()


class Estimator(Protocol):
    """Estimates output lengths at admission and learns from outputs; your own may extend `IntervalEstimator`.

    Known at admission are `category`, `tier`, `tenant`, `input_tokens`, `max_tokens`, `prompt` and `arrival_s`.  To be
    saved, an estimator keeps each constructor argument under its own name, and all that it learns in `state_`, a
    dataclass of numbers, lists and mappings (None if it learns nothing).

    `observe` returns what changed if the estimator keeps one bias per category and learnt, else None.  Both raise
    ValueError and learn nothing if `checked_base` or `checked_length` refuses the request; the message names it.

    An output of `max_tokens` has a censored length, a lower bound.  The scheduler observes it as `Censored`, because it
    may have fewer words.  Cancelled and failed requests are not observed.
    """

    state_: Any

    def estimate(self, request: Request) -> Estimate: ...

    def observe(self, request: Request, output_tokens: int) -> Feedback | None: ...


def checked_bases(base_tokens: Mapping[str, int]) -> dict[str, int]:
    """Return a copy of the bases; ValueError unless each is a finite number of at least one token."""
    if not base_tokens or not all(1 <= base <= MAX_TOKENS for base in base_tokens.values()):
        raise ValueError(f"base_tokens is {dict(base_tokens)}, each base must be at least one token")
    return dict(base_tokens)


def checked_base(base_tokens: Mapping[str, int], request: Request) -> int:
    """Return the base of a request's category (tokens).

    Raises ValueError if it has none, or if a number known at admission is not finite or too small.
    """
    for name, least in (("arrival_s", 0), ("input_tokens", 0), ("max_tokens", 1)):
        if not least <= (value := getattr(request, name)) < inf:
            raise ValueError(f"request {request.request_id!r}: {name} is {value}, it must be finite, {least} or more")
    if request.category not in base_tokens:
        raise ValueError(f"request {request.request_id!r}: category {choice(request.category, base_tokens)}")
    return base_tokens[request.category]


def checked_length(request: Request, output_tokens: int) -> int:
    """Return an observed length, at most the request's limit; `Censored` if the output ended there.

    Raises ValueError unless it is whole and up to `MAX_TOKENS`.
    """
    try:
        length = int(output_tokens)
    except (TypeError, ValueError, OverflowError):
        length = -1
    if length != output_tokens or not 0 <= length <= MAX_TOKENS:
        fault = f"{output_tokens!r} output tokens observed, it must be a whole number from 0 to {MAX_TOKENS:,}"
        raise ValueError(f"request {request.request_id!r}: {fault}")
    if length < request.max_tokens and not isinstance(output_tokens, Censored):
        return length
    return Censored(min(length, request.max_tokens))


def log_ratio(length: int, base: int) -> float:
    """Return log(length / base), which most estimators learn; an empty output counts as one token."""
    return log(max(length, 1) / base)


def grown(base: int, ratio: float) -> float:
    """Return the length of this `log_ratio`, within what a length can be (tokens)."""
    return base * exp(min(max(ratio, -MAX_LOG_RATIO), MAX_LOG_RATIO))


def checked_sum(total: float, count: float) -> None:
    """Raise ValueError if this sum of so many log ratios has an impossible mean."""
    if not abs(total) <= MAX_LOG * count:
        raise ValueError(f"{count} log ratios cannot sum to {total}")
