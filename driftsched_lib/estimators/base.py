"""The face of an output-length estimator, what an observation teaches, and what none accepts."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, inf, log
from typing import Annotated, Any, Protocol, final

from pydantic import AfterValidator, Field

from driftsched_lib.requests import BASE_TOKENS, Category, Estimate, Request

MAX_TOKENS = 10_000_000
"""Tokens; a longer output is taken for a fault of whoever counted it."""
MIN_VARIANCE = 1e-4
"""Of a log length, where an estimator divides by it: a spread of one percent."""
MAX_LOG_RATIO = 20.0
"""Of a log ratio that an estimator believes in: above that of `MAX_TOKENS`, and far below what overflows."""
MAX_LOG = 100.0
"""Of a part of one, which others may cancel."""


def _all_categories(base_tokens: dict[str, int]) -> dict[str, int]:
    if missing := sorted(set(BASE_TOKENS) - set(base_tokens)):
        raise ValueError(f"a base for {', '.join(missing)} is missing")
    return base_tokens


BaseTokens = Annotated[dict[Category, Annotated[int, Field(ge=1, le=MAX_TOKENS)]], AfterValidator(_all_categories)]
"""The expected output length of each category, in parameters (tokens)."""

# The types of what is learnt say what each number may be, and `estimator_state` reads no file that holds another.
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


class Estimator(Protocol):
    """Estimates a request by what is known at admission, and learns from what it came to.

    Known are `category`, `tier`, `tenant`, `input_tokens`, `max_tokens`, `prompt` and `arrival_s`.  A constructor takes
    plain parameters and keeps each under its own name; all that is learnt is in `state_`, a dataclass of numbers, lists
    and mappings, so that one function can write any estimator to a file (`estimator_state`).

    `observe` returns what changed where the estimator is one bias a category, else None.  Both raise ValueError, which
    names the request, and learn nothing, for what `checked_base` and `checked_length` refuse.
    """

    state_: Any

    def estimate(self, request: Request) -> Estimate: ...

    def observe(self, request: Request, output_tokens: int) -> Feedback | None: ...


def checked_bases(base_tokens: Mapping[str, int]) -> dict[str, int]:
    """A copy of the bases, each a finite number of at least one token."""
    if not base_tokens or not all(1 <= base <= MAX_TOKENS for base in base_tokens.values()):
        raise ValueError(f"base_tokens is {dict(base_tokens)}, each base must be at least one token")
    return dict(base_tokens)


def checked_base(base_tokens: Mapping[str, int], request: Request) -> int:
    """The base of a request's category, once the request is one that can be learnt from.

    Raises:
        ValueError: its category has no base, or a number known at admission is not finite, or too small for one.
    """
    if not 0 <= request.arrival_s < inf:
        raise _refusal(request, "arrival_s", 0)
    if not 0 <= request.input_tokens < inf:
        raise _refusal(request, "input_tokens", 0)
    if not 1 <= request.max_tokens < inf:
        raise _refusal(request, "max_tokens", 1)
    try:
        return base_tokens[request.category]
    except KeyError:
        known = ", ".join(base_tokens)
        message = f"request {request.request_id!r}: category is {request.category!r}, it may be one of {known}"
        raise ValueError(message) from None


def _refusal(request: Request, name: str, least: int) -> ValueError:
    value = getattr(request, name)
    return ValueError(f"request {request.request_id!r}: {name} is {value}, it must be finite, {least} or more")


def checked_length(request: Request, output_tokens: int) -> int:
    """An observed length as an int; whole numbers of other types (numpy's, 12.0) are taken.

    More than the request's limit is taken for the limit, where an engine stops: what was counted beyond it is the
    counter's.

    Raises:
        ValueError: it is no whole number from 0 to `MAX_TOKENS`.
    """
    try:
        length = int(output_tokens)
    except (TypeError, ValueError, OverflowError):
        length = -1
    if length != output_tokens or not 0 <= length <= MAX_TOKENS:
        raise ValueError(
            f"request {request.request_id!r}: {output_tokens!r} output tokens observed, "
            f"it must be a whole number from 0 to {MAX_TOKENS:,}"
        )
    return length if length < request.max_tokens else request.max_tokens


def log_ratio(length: int, base: int) -> float:
    """log(length / base), what most estimators learn; an empty output counts as one token."""
    return log(max(length, 1) / base)


def checked_sum(total: float, count: float) -> None:
    """Refuses a sum of so many log ratios whose mean could be none."""
    if not abs(total) <= MAX_LOG * count:
        raise ValueError(f"{count} log ratios cannot sum to {total}")


def grown(base: int, ratio: float) -> float:
    """The length whose `log_ratio` is this, held within what a length can be."""
    return base * exp(min(max(ratio, -MAX_LOG_RATIO), MAX_LOG_RATIO))
