"""The paper's estimator: static, or calibrated by an exponential moving average."""

from collections.abc import Mapping

from driftsched_lib.estimators.base import Feedback
from driftsched_lib.requests import TIERS, Estimate, Request

BASE_TOKENS = {"short_qa": 64, "summary": 256, "technical": 384, "report": 512}
SAFETY = {"premium": 1.2, "standard": 1.0, "batch": 0.8}


class PaperEstimator:
    """The paper's estimator: a base length a category, times a learnt bias, a safety factor and an input factor.

    `output = int(base[category] * bias[category] * safety[tier] * min(max_input_factor, 1 + input / input_scale))`.
    On completion `measured = clip(actual / base, *clip)` and `bias <- (1 - alpha) * bias + alpha * measured`
    (arXiv 2606.02982, adaptive token estimation).  With `calibrate=False` every bias stays 1.

    Parameters:
        base_tokens: tokens by category.
        safety: factor by tier.
        alpha: weight of the newest observation, in (0, 1].
        clip: bounds of one measured ratio.
        input_scale: input tokens that would double the estimate, were it not for `max_input_factor`.

    Raises:
        KeyError: a category without a base.
        ValueError: a parameter out of range, or an observed length below zero.
    """

    def __init__(
        self,
        base_tokens: Mapping[str, int] = BASE_TOKENS,
        safety: Mapping[str, float] = SAFETY,
        calibrate: bool = True,
        alpha: float = 0.1,
        clip: tuple[float, float] = (0.25, 3.0),
        max_input_factor: float = 1.5,
        input_scale: float = 1000.0,
    ):
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha is {alpha}, it must be above 0 and at most 1")
        if not 0 <= clip[0] < clip[1]:
            raise ValueError(f"clip is {clip}, it must be two rising numbers, none below 0")
        if any(base < 1 for base in base_tokens.values()):
            raise ValueError(f"base_tokens is {dict(base_tokens)}, each base must be at least one token")
        if set(safety) != set(TIERS):
            raise ValueError(f"safety is {dict(safety)}, it must name {', '.join(TIERS)}, each once")
        if not input_scale > 0:
            raise ValueError(f"input_scale is {input_scale}, it must be above 0")
        self.base_tokens = dict(base_tokens)
        self.safety = dict(safety)
        self.calibrate = calibrate
        self.alpha = alpha
        self.clip = clip
        self.max_input_factor = max_input_factor
        self.input_scale = input_scale
        self.bias_ = dict.fromkeys(self.base_tokens, 1.0)

    def estimate(self, request: Request) -> Estimate:
        base = self.base_tokens[request.category]
        bias = self.bias_[request.category]
        input_factor = min(self.max_input_factor, 1.0 + request.input_tokens / self.input_scale)
        output = int(base * bias * self.safety[request.tier] * input_factor)
        return Estimate(output, request.input_tokens + output, bias, base)

    def observe(self, request: Request, output_tokens: int) -> Feedback:
        if output_tokens < 0:
            raise ValueError(f"request {request.request_id!r}: {output_tokens} output tokens observed")
        low, high = self.clip
        before = self.bias_[request.category]
        measured = min(max(output_tokens / self.base_tokens[request.category], low), high)
        if self.calibrate:
            self.bias_[request.category] = (1 - self.alpha) * before + self.alpha * measured
        return Feedback(before, measured, self.bias_[request.category])
