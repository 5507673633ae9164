"""Parameters of the scheduler: how requests are classified, estimated, queued, admitted and batched."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from driftsched_lib.estimators import EstimatorName
from driftsched_lib.policies import POLICIES, PolicyName
from driftsched_lib.requests import TIERS, Tier
from driftsched_lib.validation import Count, Name, NotNegative, OneOrMore, Positive, Validated, choice


class AdmissionParams(Validated):
    """Who is rejected at arrival, by tier; see `admission`.

    Attributes:
        tokens_per_s, burst_tokens: the budget of each tenant, estimated input and output together; null for none.
        max_wait_s: a request is shed when the work queued before it takes the engine longer than this; `.inf` for a
            tier that is never shed, null to shed none.
    """

    tokens_per_s: dict[Name, Positive] | None = None
    burst_tokens: dict[Name, Positive] | None = None
    max_wait_s: dict[Name, Annotated[float, Field(ge=0)]] | None = None

    @model_validator(mode="after")
    def _whole_budget(self) -> Self:
        if (self.tokens_per_s is None) != (self.burst_tokens is None):
            raise ValueError("tokens_per_s and burst_tokens make one budget: give both")
        return self


class SchedulerParams(Validated):
    """How requests are classified, estimated, queued, admitted and batched.

    Attributes:
        vary_estimates_for: policies that are run with each estimator, token counter and calibration.  The order of the
            others does not depend on them, so they are run with the first of each.
        batch_size, batch_wait_s: a static batch closes when it is full, or so long after its first request.
        queue_capacity: requests that may be queued; null for no limit.
        tiers: by name, the best first.
    """

    policies: OneOrMore[PolicyName] = ["fifo", "priority", "weighted", "sjf", "aging"]
    estimators: OneOrMore[EstimatorName] = ["paper"]
    calibration: OneOrMore[bool] = [True, False]
    token_counter: OneOrMore[Literal["whitespace", "tokenizer"]] = ["whitespace", "tokenizer"]
    vary_estimates_for: list[str] = ["sjf"]
    batching: OneOrMore[Literal["static", "continuous"]] = ["static"]
    batch_size: Count = 32
    batch_wait_s: NotNegative = 0.01
    queue_capacity: Count | None = None
    admission: AdmissionParams | None = None
    classifier: Literal["keywords", "text"] = "keywords"
    tiers: Annotated[dict[Name, Tier], Field(min_length=1)] = dict(TIERS)

    @model_validator(mode="after")
    def _known_names(self) -> Self:
        names = dict.fromkeys([*POLICIES, *(policy.name for policy in self.policies)])
        for name in self.vary_estimates_for:
            if name not in names:
                raise ValueError(f"vary_estimates_for: {choice(name, names)}")
        for name, by_tier in (self.admission.model_dump() if self.admission else {}).items():
            if by_tier is not None and set(by_tier) != set(self.tiers):
                raise ValueError(f"admission.{name}: it must name {', '.join(self.tiers)}, each once")
        return self
