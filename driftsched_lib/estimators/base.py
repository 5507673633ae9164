"""The face of an output-length estimator, and what an observation teaches."""

from dataclasses import dataclass
from typing import Protocol

from driftsched_lib.requests import Estimate, Request


@dataclass(slots=True)
class Feedback:
    """What one observation changed: the bias before it, the measured ratio, the bias after it."""

    bias_before: float
    measured: float
    bias_after: float


class Estimator(Protocol):
    """Estimates a request whose `category`, `tier` and `input_tokens` are known, and learns from what it came to.

    `observe` returns what changed where the estimator is one bias a category, else None.
    """

    def estimate(self, request: Request) -> Estimate: ...

    def observe(self, request: Request, output_tokens: int) -> Feedback | None: ...
