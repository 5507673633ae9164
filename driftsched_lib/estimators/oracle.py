"""The bound on all estimators: it knows what nobody can."""

from collections.abc import Mapping

from driftsched_lib.estimators.base import checked_base, checked_bases, checked_length
from driftsched_lib.requests import BASE_TOKENS, Estimate, Request


class Oracle:
    """Knows the length at which the experiment pins a request's output, in the engine's tokens.

    Under whitespace accounting its unit is not that of what is observed; the order of requests is right all the same.

    Raises:
        ValueError: a request whose output ends by itself, or what every estimator refuses.
    """

    state_ = None

    def __init__(self, base_tokens: Mapping[str, int] = BASE_TOKENS):
        self.base_tokens = checked_bases(base_tokens)

    def estimate(self, request: Request) -> Estimate:
        base, length = checked_base(self.base_tokens, request), request.fixed_output_tokens
        if length is None:
            raise ValueError(f"request {request.request_id!r}: the oracle knows pinned output lengths alone")
        return Estimate(length, request.input_tokens + length, length / base, base, length, length, (float(length),))

    def observe(self, request: Request, output_tokens: int) -> None:
        """There is nothing to learn."""
        checked_base(self.base_tokens, request)
        checked_length(request, output_tokens)
