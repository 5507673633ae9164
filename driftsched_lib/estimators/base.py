"""The face of an output-length estimator, what an observation teaches, and what none accepts."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, log
from typing import Any, Protocol, final

from driftsched_lib.requests import Estimate, Request

BASE_TOKENS = {"short_qa": 64, "summary": 256, "technical": 384, "report": 512}
LONGEST = 10_000_000
"""Tokens; a longer output is taken for a fault of whoever counted it."""
LEAST_VARIANCE = 1e-4
"""Of a log length, where an estimator divides by it: a spread of one percent."""


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
    names the request, for a category without a base and for a length that is no whole number from 0 to `LONGEST`.
    """

    state_: Any

    def estimate(self, request: Request) -> Estimate: ...

    def observe(self, request: Request, output_tokens: int) -> Feedback | None: ...


def checked_bases(base_tokens: Mapping[str, int]) -> dict[str, int]:
    """A copy of the bases, each a finite number of at least one token."""
    if not base_tokens or not all(1 <= base <= LONGEST for base in base_tokens.values()):
        raise ValueError(f"base_tokens is {dict(base_tokens)}, each base must be at least one token")
    return dict(base_tokens)


def base_of(base_tokens: Mapping[str, int], request: Request) -> int:
    """The base of a request's category."""
    try:
        return base_tokens[request.category]
    except KeyError:
        known = ", ".join(base_tokens)
        message = f"request {request.request_id!r}: category is {request.category!r}, it may be one of {known}"
        raise ValueError(message) from None


def checked_length(request: Request, output_tokens: int) -> int:
    """An observed length as an int; whole numbers of other types (numpy's, 12.0) are taken."""
    try:
        if isfinite(output_tokens) and 0 <= output_tokens <= LONGEST and output_tokens == int(output_tokens):
            return int(output_tokens)
    except TypeError:
        pass
    raise ValueError(
        f"request {request.request_id!r}: {output_tokens!r} output tokens observed, "
        f"it must be a whole number from 0 to {LONGEST:,}"
    )


def in_range(name: str, value: float, low: float, high: float) -> float:
    """A parameter that must be above `low` and at most `high`."""
    if not low < value <= high:
        raise ValueError(f"{name} is {value}, it must be above {low:g} and at most {high:g}")
    return value


def log_ratio(length: int, base: int) -> float:
    """log(length / base), what most estimators learn; an empty output counts as one token."""
    return log(max(length, 1) / base)
