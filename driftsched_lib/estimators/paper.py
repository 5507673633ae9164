"""The paper's estimator: static, or calibrated by an exponential moving average."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from driftsched_lib.estimators.base import MAX_TOKENS, Feedback, checked_base
from driftsched_lib.estimators.interval import IntervalEstimator, State
from driftsched_lib.requests import BASE_TOKENS, TIERS, Estimate, Request, Tiers
from driftsched_lib.validation import in_range, positive


@dataclass
class PaperState(State):
    """The bias and the interval of each category."""

    bias: dict[str, Annotated[float, Field(ge=0, le=MAX_TOKENS)]]


class PaperEstimator(IntervalEstimator):
    """Estimate by the category's base length, times a learnt bias, the tier's safety factor and an input factor.

    `output = int(base[category] * bias[category] * safety[tier] * min(max_input_factor, 1 + input / input_scale))`.
    After each output `bias <- (1 - alpha) * bias + alpha * clip(length / base)`, per category, in O(1).
    Source: arXiv 2606.02982, adaptive token estimation.  The interval is this project's, and so is one exception: a
    limit below `base * bias` bounds the estimate, and an output that ended there teaches nothing (see `usual`).  In the
    paper all limits are the bases.

    Parameters:
        base_tokens: expected output length by category before anything is observed (tokens).
        calibrate: whether biases are learnt; else each stays 1.
        alpha: weight of the newest observation, in (0, 1].
        clip: lower and upper bound of one measured ratio.
        max_input_factor: upper bound of the input factor.
        input_scale: input length that would double the estimate without that bound (tokens).
        tiers: tiers by name, for their safety factors.

    >>> request = Request("1", 0.0, "?", "acme", "premium", 256, category="summary", input_tokens=100)
    >>> estimator = PaperEstimator(alpha=0.1)
    >>> estimator.estimate(request).output_tokens  # 256 * 1 * 1.2 * 1.1 = 337.92
    337
    >>> estimator.observe(request, 128)
    Feedback(bias_before=1.0, measured=0.5, bias_after=0.9500000000000001)
    """

    state_: PaperState

    def __init__(
        self,
        base_tokens: Mapping[str, int] = BASE_TOKENS,
        calibrate: bool = True,
        alpha: float = 0.1,
        clip: tuple[float, float] = (0.25, 3.0),
        max_input_factor: float = 1.5,
        input_scale: float = 1000.0,
        tiers: Tiers = TIERS,
    ):
        super().__init__(base_tokens)
        low, high = clip
        if not 0 <= low < high <= MAX_TOKENS:
            raise ValueError(f"clip is {clip}, it must be two rising numbers from 0 to {MAX_TOKENS:,}")
        self.clip = low, high  # YAML gives a list
        self.calibrate = calibrate
        self.alpha = in_range("alpha", alpha, 0, 1)
        self.max_input_factor = in_range("max_input_factor", max_input_factor, 0, 1000)
        self.input_scale = positive("input_scale", input_scale)
        self.tiers = tiers
        self.state_ = PaperState(self.state_.intervals, dict.fromkeys(base_tokens, 1.0))

    def estimate(self, request: Request) -> Estimate:
        base = checked_base(self.base_tokens, request)
        point, usual = self.expect(request, base), self.usual(request, base)
        output = int(point if request.max_tokens >= usual else min(point, request.max_tokens))
        return self._around(request, point, output, self.state_.bias[request.category], base)

    def expect(self, request: Request, base: int) -> float:
        input_factor = min(self.max_input_factor, 1.0 + request.input_tokens / self.input_scale)
        return base * self.state_.bias[request.category] * self.tiers[request.tier].safety * input_factor

    def usual(self, request: Request, base: int) -> float:
        return base * self.state_.bias[request.category]

    def learn(self, request: Request, base: int, length: int) -> Feedback:
        low, high = self.clip
        bias = self.state_.bias
        before = bias[request.category]
        measured = min(max(length / base, low), high)
        if self.calibrate:
            bias[request.category] = (1 - self.alpha) * before + self.alpha * measured
        return Feedback(before, measured, bias[request.category])
