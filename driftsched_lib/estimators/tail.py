"""An uncertain size in one number: the expectation of a heavy-tailed length, inflated by its tail."""

from bisect import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import exp, log
from typing import Annotated

import numpy as np
from pydantic import Field
from scipy.special import stdtrit

from driftsched_lib.estimators.base import MIN_VARIANCE, checked_base
from driftsched_lib.estimators.regression import Regression, RegressionState
from driftsched_lib.requests import BASE_TOKENS, Estimate, Request
from driftsched_lib.validation import in_range

DEGREES_OF_FREEDOM = 3.5
TAIL = 0.1
SCALE_GAIN = 0.05
_HALF = 200
_LEVELS = (np.arange(_HALF) + 0.5) / _HALF
_MIDDLES = stdtrit(DEGREES_OF_FREEDOM, np.concatenate([_LEVELS * (1 - TAIL), 1 - TAIL + _LEVELS * TAIL]))
"""Standard t values in the middle of slices of probability, as many in the tail as below it."""
_MEAN = np.repeat([(1 - TAIL) / _HALF, TAIL / _HALF], _HALF)
_TAIL_MEAN = np.repeat([0.0, 1 / _HALF], _HALF)
_STEPS = 50
"""A scale is rounded to steps of one percent, so many in a unit of the log of its square, so that few are computed."""


@dataclass
class TailState(RegressionState):
    """What the regression learns, and the squared scale of the log-t distribution a category."""

    scales: dict[str, Annotated[float, Field(gt=0, le=2000)]]  # whose longest lengths a float can hold


class TailInflatedExpectation(Regression):
    """The Tail Inflated Expectation of a log-t distribution, E[X] + beta * CVaR[X], as the size to order requests by.

    log X is Student's t with 3.5 degrees of freedom; CVaR is the mean of the longest tenth; X ends at the request's
    limit.  Source: Zheng et al., Scheduling LLM Inference with Uncertainty-Aware Output Length Predictions
    (arXiv 2604.00499, equations 11 and 12).  There a fine-tuned encoder gives location and scale of each prompt; here
    the location is the regression's, the scale is fitted online a category, by the expectation-maximisation step of
    the t distribution.  There beta goes from 0.1 to 0.5 with the length of the queue, which an estimator does not know.

    The point is larger than the expected length on purpose, so its bias is not 0; interval and quantiles are those of
    the regression.

    Parameters:
        base_tokens: tokens by category.
        beta: weight of the tail.
        least_gain, day_s: as in `Regression`.
    """

    state_: TailState

    def __init__(
        self,
        base_tokens: Mapping[str, int] = BASE_TOKENS,
        beta: float = 0.1,
        least_gain: float = 0.02,
        day_s: float = 86400.0,
    ):
        super().__init__(base_tokens, least_gain, day_s)
        self.beta = in_range("beta", beta, 0, 100)
        state = self.state_
        self.state_ = TailState(state.weights, state.levels, state.intervals, dict.fromkeys(self.base_tokens, 0.1))

    def estimate(self, request: Request) -> Estimate:
        base, limit = checked_base(self.base_tokens, request), float(request.max_tokens)
        location = self._expect(request, base)
        step = round(_STEPS * log(self.state_.scales[request.category]))
        ratios, below, above = _sums(step, self.beta)
        ended = bisect(ratios, limit / location)
        inflated = min(max(location * below[ended] + limit * above[ended], 1.0), limit)
        return self._around(request, min(max(location, 1.0), limit), round(inflated), inflated / base, base)

    def _learn(self, request: Request, base: int, length: int) -> None:
        squared = self.state_.scales[request.category]
        residual = self._innovation(request, base, length) ** 2
        n = DEGREES_OF_FREEDOM
        weighed = (n + 1) * squared / (n * squared + residual) * residual
        self.state_.scales[request.category] = max(MIN_VARIANCE, squared + SCALE_GAIN * (weighed - squared))


@lru_cache(maxsize=256)
def _sums(step: int, beta: float) -> tuple[list[float], list[float], list[float]]:
    """Of the log-t distribution of this scale: ratios, rising, and for each number of them that lie below a limit, the
    weighted sum of those and the weights of the others."""
    ratios, weights = np.exp(exp(step / (2 * _STEPS)) * _MIDDLES), _MEAN + beta * _TAIL_MEAN
    below, gone = np.cumsum([0.0, *(weights * ratios)]), np.cumsum([0.0, *weights])
    return ratios.tolist(), below.tolist(), (gone[-1] - gone).tolist()
