"""Intervals and distributions around any point estimate, by adaptive conformal inference."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Annotated, Any

from pydantic import Field

from driftsched_lib.estimators.base import Feedback, checked_base, checked_bases, checked_length
from driftsched_lib.estimators.sliding import Lengths, SlidingWindow
from driftsched_lib.requests import Estimate, Request

MISS_RATE = 0.1
STEP = 0.05
"""Large enough to be even within a few hundred outcomes; a tenth of it would make intervals a few percent narrower."""
MAX_LEVEL = 0.5
MIN_RATIOS = round(2 / MISS_RATE) - 1
"""What the window must hold for an interval at `MISS_RATE` to have ends; before, outcomes say nothing of the level."""


@dataclass
class AdaptiveInterval:
    """The interval that holds 90% of the ratios of outcome to point, whatever becomes of the point.

    The interval at level a reaches from the a / 2 to the 1 - a / 2 quantile of the last ratios (split conformal, with
    its correction for their number).  After each outcome `a <- a + STEP * (MISS_RATE - missed)`, so that misses
    make the next intervals wider and in the long run a share `MISS_RATE` is missed under any drift; at a <= 0 the
    interval is everything.  Source: Gibbs and Candes, Adaptive Conformal Inference Under Distribution Shift
    (2021), equation 2.

    Attributes:
        level: a.  Outcomes with atoms, such as outputs that all end at their limit, are missed less than `MISS_RATE`
            whatever the level; it stops at `MAX_LEVEL`, not to be far away when they spread again.
        ratios: the last outcomes over their points.
    """

    level: Annotated[float, Field(ge=-1, le=MAX_LEVEL)] = MISS_RATE
    ratios: Lengths = field(default_factory=SlidingWindow)

    def bounds(self) -> tuple[float, float]:
        """Lowest and highest ratio; 0 and infinity where the level asks for more than the window can say."""
        ordered, side = self.ratios.ordered, self.level / 2
        low = int((len(ordered) + 1) * side)  # as many from below as from above
        if low < 1:
            return 0.0, inf
        return ordered[low - 1], ordered[-low]

    def learn(self, ratio: float, missed: bool) -> None:
        if len(self.ratios.values) >= MIN_RATIOS:
            self.level = min(self.level + STEP * (MISS_RATE - missed), MAX_LEVEL)
        self.ratios.add(ratio)


class ConformalEstimator(ABC):
    """What the estimators share that learn: checked input, and an adaptive interval a category around their point.

    A subclass says what it expects of a request and learns from its length; its `state_` holds `intervals`, from
    `new_intervals`.  Whether an outcome was missed is judged by the interval that the request would be given now: the
    one that it was given at admission is as old as the request was long on its way, and a level that follows stale
    misses swings ever wider, the longer the queue.

    Parameters:
        base_tokens: tokens by category: what is expected before anything is observed.

    Raises:
        ValueError: a base below one token.
    """

    state_: Any

    def __init__(self, base_tokens: Mapping[str, int]):
        self.base_tokens = checked_bases(base_tokens)

    @abstractmethod
    def _expect(self, request: Request, base: int) -> float:
        """The output length expected of a request (tokens)."""

    @abstractmethod
    def _learn(self, request: Request, base: int, length: int) -> Feedback | None:
        """Take in that the output was `length` tokens long, right after `_expect` was asked about the same request."""

    def estimate(self, request: Request) -> Estimate:
        base = checked_base(self.base_tokens, request)
        point = min(max(self._expect(request, base), 1.0), float(request.max_tokens))
        return self._around(request, point, round(point), point / base, base)

    def observe(self, request: Request, output_tokens: int) -> Feedback | None:
        base = checked_base(self.base_tokens, request)
        length = checked_length(request, output_tokens)
        interval = self.state_.intervals[request.category]
        point = max(self._expect(request, base), 1.0)
        low, high = _tokens(interval, point, request.max_tokens)
        interval.learn(length / point, not low <= length <= high)
        return self._learn(request, base, length)

    def _around(self, request: Request, point: float, output: int, bias: float, base: int) -> Estimate:
        """An estimate whose interval and quantiles are the recent ratios of outcome to point, times this point."""
        interval, limit = self.state_.intervals[request.category], request.max_tokens
        low, high = _tokens(interval, point, limit)
        ratios = interval.ratios.slices()
        quantiles = None if ratios is None else tuple([x if (x := point * r) < limit else limit for r in ratios])
        return Estimate(output, request.input_tokens + output, bias, base, low, high, quantiles)


def new_intervals(base_tokens: Mapping[str, int]) -> dict[str, AdaptiveInterval]:
    """An interval a category that has seen nothing."""
    return {category: AdaptiveInterval() for category in base_tokens}


def _tokens(interval: AdaptiveInterval, point: float, max_tokens: int) -> tuple[float, float]:
    """An interval of lengths; half a token on each side, for lengths are whole."""
    low, high = interval.bounds()
    low, high = point * low - 0.5, point * high + 0.5
    if high > max_tokens:
        low, high = low if low < max_tokens else max_tokens, max_tokens
    return low if low > 0 else 0.0, high
