"""What flows through DriftSched: a `Request` goes in, an `Estimate` is attached, a `Record` comes out."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import Annotated, Literal, final

from pydantic import Field

from driftsched_lib.validation import Positive, Validated


class Tier(Validated):
    """What a tier is promised.  Its rank is its place among the tiers, of which the first is the best.

    Attributes:
        weight: share of the engine, and cost of a second of waiting, relative to other tiers.
        safety: factor on the paper's estimates (section Token budget).
        ttft_slo_s, e2e_slo_s: objectives, from the arrival to the first and to the last token.
    """

    weight: Positive = 1.0
    safety: Annotated[float, Field(gt=0, le=1000)] = 1.0
    ttft_slo_s: Annotated[float, Field(gt=0)] = inf
    e2e_slo_s: Annotated[float, Field(gt=0)] = inf


Tiers = Mapping[str, Tier]
"""Tiers by name, the best first."""
TIERS: Tiers = {
    "premium": Tier(weight=5, safety=1.2, ttft_slo_s=5.0, e2e_slo_s=30.0),
    "standard": Tier(weight=3, safety=1.0, ttft_slo_s=15.0, e2e_slo_s=60.0),
    "batch": Tier(weight=2, safety=0.8, ttft_slo_s=60.0, e2e_slo_s=240.0),
}
"""The paper's tiers with its turns and safety factors; the objectives are this project's."""
Category = Literal["short_qa", "summary", "technical", "report"]
BASE_TOKENS: Mapping[str, int] = {"short_qa": 64, "summary": 256, "technical": 384, "report": 512}
"""The paper's categories, with the output length that is expected of each and is also its limit (tokens)."""
CATEGORIES = tuple(BASE_TOKENS)


class Outcome(StrEnum):
    """How a submitted request ends; each request ends in exactly one of these."""

    COMPLETED = "completed"
    REJECTED = "rejected"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    FAILED = "failed"


@final
@dataclass(slots=True)
class Estimate:
    """What is believed of a request before it runs, in tokens as the run's token counter counts them.

    Attributes:
        output_tokens: the expected output length, which policies use.
        total_tokens: input and output together.
        base_tokens, bias: the expectation without learning, and the factor learnt on it.
        low_tokens, high_tokens: an interval that holds 90% of the outputs; None if the estimator gives none.
        quantiles: rising output lengths, the middles of equally likely slices; None if the estimator gives none.
    """

    output_tokens: int
    total_tokens: int
    bias: float
    base_tokens: int
    low_tokens: float | None = None
    high_tokens: float | None = None
    quantiles: tuple[float, ...] | None = None


@dataclass(slots=True)
class Request:
    """One request for text.  The client sends the first group of fields; the second is filled in while it is served.

    Attributes:
        arrival_s: seconds since the start of the run.
        max_tokens: the client's limit of the output.
        job_type: the load generator's label, which no scheduler may read.
        fixed_output_tokens: the exact output length, where the experiment fixes it; None lets the model end by itself.
        prompt_tokens: the exact prompt length, where the load gives it; it is `input_tokens` then, in any accounting.
        deadline_s: a request that is still queued at this time expires; None for never.
        cancel_s: the client gives up at this time, queued or running; None for never.
        temperature: of the sampling; None for the engine's.
        dispatch_s: when it was first given to the engine.
        num_output_tokens, first_token_s: of a preempted request, its output tokens so far, and when the first came.
        preemptions: how often the policy preempted it.
    """

    request_id: str
    arrival_s: float
    prompt: str
    tenant: str
    tier: str
    max_tokens: int
    job_type: str = ""
    phase: str = ""
    fixed_output_tokens: int | None = None
    prompt_tokens: int | None = None
    deadline_s: float | None = None
    cancel_s: float | None = None
    temperature: float | None = None

    category: str = ""
    input_tokens: int = 0
    estimate: Estimate = None  # type: ignore[assignment]  # the scheduler sets it before a policy sees the request
    dispatch_s: float | None = None
    batch_id: int | None = None
    batch_size: int | None = None
    num_output_tokens: int = 0
    first_token_s: float | None = None
    preemptions: int = 0

    def __post_init__(self) -> None:
        for length in (self.max_tokens, self.fixed_output_tokens, self.prompt_tokens):
            if length is not None and length < 1:
                raise ValueError(f"request {self.request_id!r}: a length is {length}, it must be at least one token")
        if self.temperature is not None and not 0 <= self.temperature < inf:
            raise ValueError(f"request {self.request_id!r}: temperature is {self.temperature}, it must be at least 0")


@final
@dataclass(slots=True)
class Output:
    """What an engine returns for a finished request.

    Attributes:
        tokens: number of generated token ids.
        words: whitespace-separated words of the generated text; None if the engine makes no text.
        error: why the engine could not finish the request; None if it did.
        longest_itl_s: the longest time between two tokens, where each is seen.
    """

    request: Request
    prompt_tokens: int
    tokens: int
    words: int | None
    first_token_s: float | None
    finish_s: float
    error: str | None = None
    longest_itl_s: float | None = None


@dataclass(slots=True)
class Record:
    """One row of `requests.parquet`: what is known of a submitted request once it has ended.

    Times are seconds since the start of the run.  `input_tokens`, `estimated_tokens` and `actual_tokens` are in the
    run's token accounting; `prompt_tokens` and `output_tokens` are the engine's.  `measured_bias` is the clipped ratio
    that the estimator learnt from, `bias_before` and `bias_after` its state around that observation.  The client gets
    its first token at `first_token_s`, which in static batches is `finish_s`: the engine made it before.
    """

    request_id: str
    phase: str
    tenant: str
    tier: str
    job_type: str
    category: str
    outcome: Outcome
    reason: str
    arrival_s: float
    dispatch_s: float | None
    first_token_s: float | None
    engine_first_token_s: float | None
    longest_itl_s: float | None
    finish_s: float
    max_tokens: int
    input_tokens: int
    prompt_tokens: int | None
    output_tokens: int | None
    output_words: int | None
    actual_tokens: int | None
    estimated_tokens: int | None
    estimated_total_tokens: int | None
    base_tokens: int | None
    estimated_low_tokens: float | None
    estimated_high_tokens: float | None
    bias: float | None
    bias_before: float | None
    measured_bias: float | None
    bias_after: float | None
    batch_id: int | None
    batch_size: int | None
    preemptions: int
