"""The bound on all estimators: the true length."""

from collections.abc import Mapping

from driftsched_lib.estimators.base import checked_base, checked_bases, checked_length
from driftsched_lib.requests import BASE_TOKENS, Estimate, Request


class Oracle:
    """Estimate the length at which the experiment fixes a request's output, in the engine's tokens.

    It learns nothing; O(1).  With whitespace accounting, observations have another unit; the order stays right.

    Parameters:
        base_tokens: base length by category (tokens), only reported.

    Raises:
        ValueError: an output ends by itself, or what every estimator refuses.

    >>> request = Request("1", 0.0, "?", "acme", "standard", 256, category="summary", fixed_output_tokens=90)
    >>> Oracle().estimate(request).output_tokens
    90
    """

    state_ = None

    def __init__(self, base_tokens: Mapping[str, int] = BASE_TOKENS):
        self.base_tokens = checked_bases(base_tokens)

    def estimate(self, request: Request) -> Estimate:
        base, length = checked_base(self.base_tokens, request), request.fixed_output_tokens
        if length is None:
            raise ValueError(f"request {request.request_id!r}: the oracle knows fixed output lengths only")
        return Estimate(length, request.input_tokens + length, length / base, base, length, length, (float(length),))

    def observe(self, request: Request, output_tokens: int) -> None:
        checked_base(self.base_tokens, request)
        checked_length(request, output_tokens)
