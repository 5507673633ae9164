"""The paper's estimator: static, or calibrated by an exponential moving average."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from driftsched_lib.estimators.base import MAX_TOKENS, Feedback, checked_base
from driftsched_lib.estimators.conformal import AdaptiveInterval, ConformalEstimator, new_intervals
from driftsched_lib.requests import BASE_TOKENS, TIERS, Estimate, Request, Tiers
from driftsched_lib.validation import in_range


@dataclass
class PaperState:
    """The bias and the interval of each category."""

    bias: dict[str, Annotated[float, Field(ge=0, le=MAX_TOKENS)]]
    intervals: dict[str, AdaptiveInterval]


class PaperEstimator(ConformalEstimator):
    """The paper's estimator: a base length a category, times a learnt bias, a safety factor and an input factor.

    `output = int(base[category] * bias[category] * safety[tier] * min(max_input_factor, 1 + input / input_scale))`.
    On completion `measured = clip(actual / base, *clip)` and `bias <- (1 - alpha) * bias + alpha * measured`
    (arXiv 2606.02982, adaptive token estimation).  With `calibrate=False` every bias stays 1.  The interval is ours.

    Parameters:
        base_tokens: tokens by category.
        tiers: by their safety factors.
        alpha: weight of the newest observation, in (0, 1].
        clip: bounds of one measured ratio.
        input_scale: input tokens that would double the estimate, were it not for `max_input_factor`.

    Raises:
        ValueError: a parameter out of range, a category without a base, or an observed length that is none.
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
        if not 0 <= clip[0] < clip[1] <= MAX_TOKENS:
            raise ValueError(f"clip is {clip}, it must be two rising numbers from 0 to {MAX_TOKENS:,}")
        if not input_scale > 0:
            raise ValueError(f"input_scale is {input_scale}, it must be above 0")
        self.tiers = tiers
        self.safety = {name: tier.safety for name, tier in tiers.items()}
        self.calibrate = calibrate
        self.alpha = in_range("alpha", alpha, 0, 1)
        self.clip = clip
        self.max_input_factor = in_range("max_input_factor", max_input_factor, 0, 1000)
        self.input_scale = input_scale
        self.state_ = PaperState(dict.fromkeys(self.base_tokens, 1.0), new_intervals(self.base_tokens))

    def estimate(self, request: Request) -> Estimate:
        base = checked_base(self.base_tokens, request)
        point = self._expect(request, base)
        return self._around(request, point, int(point), self.state_.bias[request.category], base)

    def _expect(self, request: Request, base: int) -> float:
        input_factor = min(self.max_input_factor, 1.0 + request.input_tokens / self.input_scale)
        return base * self.state_.bias[request.category] * self.safety[request.tier] * input_factor

    def _learn(self, request: Request, base: int, length: int) -> Feedback:
        low, high = self.clip
        bias = self.state_.bias
        before = bias[request.category]
        measured = min(max(length / base, low), high)
        if self.calibrate:
            bias[request.category] = (1 - self.alpha) * before + self.alpha * measured
        return Feedback(before, measured, bias[request.category])
