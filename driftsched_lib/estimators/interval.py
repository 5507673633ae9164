"""Intervals and quantiles around any point estimate, by adaptive conformal inference."""

from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Annotated, Any

from pydantic import Field

from driftsched_lib.estimators.base import Censored, Feedback, checked_base, checked_bases, checked_length
from driftsched_lib.requests import BASE_TOKENS, Estimate, Request

CAPACITY = 100
SLICES = 10
_MIDDLES = [[int((i + 0.5) / SLICES * n) for i in range(SLICES)] for n in range(CAPACITY + 1)]  # by number of values
MISS_RATE = 0.1
STEP = 0.05  # settles within a few hundred outcomes; a tenth of it makes intervals a few percent narrower
MAX_LEVEL = 0.5
MIN_RATIOS = round(2 / MISS_RATE) - 1  # for finite ends at `MISS_RATE`; with fewer the level does not move


@dataclass
class SlidingWindow:
    """The last `CAPACITY` lengths, or ratios of lengths, oldest first; also in order, so that any quantile is O(1)."""

    values: list[Annotated[float, Field(ge=0, le=1e9)]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if len(self.values) > CAPACITY:
            raise ValueError(f"{len(self.values)} values in a window of {CAPACITY}")
        self.ordered = sorted(self.values)

    def __len__(self) -> int:
        return len(self.values)

    def add(self, value: float) -> None:
        values, ordered = self.values, self.ordered
        if len(values) == CAPACITY:
            del ordered[bisect_left(ordered, values.pop(0))]
        values.append(value)
        insort(ordered, value)

    def slices(self) -> list[float] | None:
        """Return the middle values of `SLICES` equal slices, rising; None for fewer values than slices."""
        ordered = self.ordered
        return [ordered[i] for i in _MIDDLES[len(ordered)]] if len(ordered) >= SLICES else None


@dataclass
class AdaptiveInterval:
    """An interval that holds 90% of the outcomes, with poor points and under drift too.

    At level a it reaches from the a / 2 to the 1 - a / 2 quantile of the last ratios of outcome to point (split
    conformal, corrected for their number).  After each outcome `a <- a + STEP * (MISS_RATE - missed)`: misses widen the
    next intervals.  At a <= 0 the interval is everything; outcomes that are all alike, never missed, raise a to at most
    `MAX_LEVEL`.  Source: Gibbs and Candes, Adaptive Conformal Inference Under Distribution Shift (2021), equation 2.
    """

    level: Annotated[float, Field(ge=-1, le=MAX_LEVEL)] = MISS_RATE
    ratios: SlidingWindow = field(default_factory=SlidingWindow)

    def bounds(self) -> tuple[float, float]:
        """Return the lowest and highest ratio; 0 and infinity if the window is too small for the level."""
        ordered, side = self.ratios.ordered, self.level / 2
        low = int((len(ordered) + 1) * side)  # as many from below as from above
        return (ordered[low - 1], ordered[-low]) if low >= 1 else (0.0, inf)

    def around(self, point: float, max_tokens: int) -> tuple[float, float]:
        """Return the interval around a point (tokens), half a token wider per side because lengths are whole."""
        low, high = self.bounds()
        return max(0.0, min(max_tokens, point * low - 0.5)), min(point * high + 0.5, max_tokens)

    def learn(self, ratio: float, missed: bool) -> None:
        if len(self.ratios) >= MIN_RATIOS:
            self.level = min(self.level + STEP * (MISS_RATE - missed), MAX_LEVEL)
        self.ratios.add(ratio)


@dataclass
class State:
    """What any `IntervalEstimator` learns: one interval per category.  A subclass extends it by its own fields."""

    intervals: dict[str, AdaptiveInterval]


class IntervalEstimator(ABC):
    """Base of the estimators that learn: checks input, and keeps an adaptive interval per category around the point.

    A subclass says what it expects of a request (`expect`) and learns from its length (`learn`).  An outcome is missed
    if the interval that the request would get *now* misses it.  Judged by the interval given at admission, levels swing
    wider in longer queues.  To be saved, a subclass extends `State` by what it learns (see `base.Estimator`).

    All have one rule for an output that ended at its limit (`base.Censored`).  If the limit is below what is `usual`,
    the output teaches nothing and is no miss.  Otherwise its length is learnt, and is a miss above the interval.  So a
    censored length is replaced by the larger of itself and its expectation.  Buckley and James (Linear Regression with
    Censored Data, 1979) take the mean beyond it, but then health probes would raise estimates: their outputs are not
    long ones cut off.  The price is a bias.  Where many clients have limits a little below what is usual, only their
    shorter outputs are learnt; estimates sink, at most to those limits.

    Parameters:
        base_tokens: expected output length by category before anything is observed (tokens).

    Raises:
        ValueError: a base is below one token.

    >>> class Last(IntervalEstimator):
    ...     length = None
    ...     def expect(self, request, base):
    ...         return self.length or base
    ...     def learn(self, request, base, length):
    ...         self.length = length
    >>> request = Request("1", 0.0, "Summarize DNS.", "acme", "standard", max_tokens=256, category="summary")
    >>> estimator = Last()
    >>> estimator.observe(request, 90)
    >>> estimator.estimate(request).output_tokens
    90
    """

    state_: Any

    def __init__(self, base_tokens: Mapping[str, int] = BASE_TOKENS):
        self.base_tokens = checked_bases(base_tokens)
        self.state_ = State({category: AdaptiveInterval() for category in self.base_tokens})

    @abstractmethod
    def expect(self, request: Request, base: int) -> float:
        """Return the output length expected of a request whose category has this base (tokens); learn nothing."""

    @abstractmethod
    def learn(self, request: Request, base: int, length: int) -> Feedback | None:
        """Take in an output of `length` tokens, `Censored` if it ended at its limit."""

    def usual(self, request: Request, base: int) -> float:
        """Return the length (tokens) below which a limit cuts what is usual: what is expected, unless overridden."""
        return self.expect(request, base)

    def estimate(self, request: Request) -> Estimate:
        base = checked_base(self.base_tokens, request)
        point = max(self.expect(request, base), 1.0)
        return self._around(request, point, round(min(point, request.max_tokens)), point / base, base)

    def observe(self, request: Request, output_tokens: int) -> Feedback | None:
        base = checked_base(self.base_tokens, request)
        length = checked_length(request, output_tokens)
        if isinstance(length, Censored) and request.max_tokens < self.usual(request, base):
            return None
        interval = self.state_.intervals[request.category]
        point = max(self.expect(request, base), 1.0)
        low, high = interval.around(point, request.max_tokens)
        interval.learn(length / point, not low <= length <= high)
        return self.learn(request, base, length)

    def _around(self, request: Request, point: float, output: int, bias: float, base: int) -> Estimate:
        """Return an estimate whose interval and quantiles are the recent ratios of outcome to point, times this one."""
        interval, limit = self.state_.intervals[request.category], request.max_tokens
        low, high = interval.around(point, limit)
        ratios = interval.ratios.slices()
        quantiles = None if ratios is None else tuple([x if (x := point * r) < limit else limit for r in ratios])
        return Estimate(output, request.input_tokens + output, bias, base, low, high, quantiles)
