"""Parameters of the load: who sends what, how long it is, and when it arrives."""

from collections.abc import Mapping
from math import isclose
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from driftsched_lib.estimators.base import BaseTokens
from driftsched_lib.requests import BASE_TOKENS, TIERS, Category
from driftsched_lib.validation import FileName, Name, NotNegative, Positive, Validated
from driftsched_lib.workloads.drift import LEARNING_MIX, SCENARIOS, STRESS_MIX
from driftsched_lib.workloads.traces import FIELDS, FORMATS, UNITS, GapVariation

PAPER_PHASES: dict[str, dict[str, Any]] = {
    "learning": {"share": 1 / 3, "mix": LEARNING_MIX, "gap_s": [0.05, 0.15]},
    "stress": {"share": 2 / 3, "mix": STRESS_MIX, "gap_s": [0.005, 0.03], "pause_s": 15.0},
}


def _sum_to_1(shares: Any) -> Any:
    """Return a mix, or phases, whose shares sum to 1."""
    total = sum(shares.values()) if isinstance(shares, dict) else sum(phase.share for phase in shares)
    if not isclose(total, 1, rel_tol=0, abs_tol=1e-9 if isinstance(shares, dict) else 1e-6):
        raise ValueError(f"the shares must sum to 1, they sum to {total:g}")
    return shares


def _gap_s(gap_s: list[float]) -> list[float]:
    if gap_s[0] > gap_s[1] or gap_s[1] == 0:
        raise ValueError(f"must be two rising numbers of seconds, the second above 0, not {gap_s}")
    return gap_s


class Phase(Validated):
    """A stretch of the load with its own category mix and arrival rate; `learning` and `stress` default to the paper's.

    Attributes:
        share, mix: share of all requests, and of each category among its own.
        gap_s: bounds of the uniform gaps between arrivals.
        load_factor: stretches the gaps until outputs at their limits offer this multiple of the engine's capacity.
        pause_s: from the end of the phase before.
        lengths: a file as in data/traces, for prompts and outputs, under one limit.  The category, whatever the `mix`,
            is the first whose base holds the output: it tells an estimator more than a real prompt does.
        arrival_cv: coefficient of variation of gamma-distributed gaps of the same mean: 1 is Poisson, more is bursts.
    """

    name: str
    share: Annotated[Positive, Field(le=1)] = 1.0
    mix: Annotated[dict[Category, NotNegative], AfterValidator(_sum_to_1)] = dict.fromkeys(BASE_TOKENS, 0.25)
    gap_s: Annotated[list[NotNegative], Field(min_length=2, max_length=2), AfterValidator(_gap_s)] = [0.005, 0.03]
    load_factor: Positive | None = None
    pause_s: NotNegative = 0.0
    lengths: FileName | None = None
    arrival_cv: GapVariation | None = None

    @model_validator(mode="before")
    @classmethod
    def _as_in_the_paper(cls, values: Any) -> Any:
        return PAPER_PHASES.get(values.get("name"), {}) | values if isinstance(values, dict) else values


Phases = Annotated[list[Phase], Field(min_length=1), AfterValidator(_sum_to_1)]


class TraceParams(Validated):
    """A request trace in one of the formats of `traces`.

    Attributes:
        columns: names of the columns, by `traces.FIELDS`, where they are not those of the format.
        time_unit: of times that are numbers; null for milliseconds in `mooncake`, seconds elsewhere.
        skip: good rows that are left out at its beginning.
        speedup, load_factor: divide its times by it, or stretch them to this ratio of offered load to capacity.
        on_bad_row, default_tier: `skip` reports a bad row; a row has that tier if it names no tier or known tenant.
    """

    file: FileName
    format: Literal[tuple(FORMATS)]  # type: ignore[valid-type]
    columns: dict[Literal[FIELDS], str] | None = None  # type: ignore[valid-type]
    time_unit: Literal[tuple(UNITS)] | None = None  # type: ignore[valid-type]
    skip: Annotated[int, Field(ge=0, le=10**12)] = 0
    speedup: Positive = 1.0
    load_factor: Positive | None = None
    on_bad_row: Literal["skip", "refuse"] = "refuse"
    default_tier: Name = "standard"

    @model_validator(mode="after")
    def _one_clock(self) -> Self:
        if self.load_factor is not None and self.speedup != 1.0:
            raise ValueError("a load_factor stretches the times whatever the speedup: give one of them")
        return self


def _numbered(tenants: Any) -> Any:
    """Return so many tenants with the default tiers in turn, if it is a number."""
    if isinstance(tenants, int):
        return {f"tenant-{i:03}": list(TIERS)[i % len(TIERS)] for i in range(tenants)}
    return tenants


class Spread(Validated):
    """Lognormal output lengths: their mean as a share of the limit, at which they are cut off, and their CV."""

    mean_share: Positive
    cv: Annotated[float, Field(ge=0, le=100)]


class WorkloadParams(Validated):
    """The load.  The defaults are the paper's: tenants drawn uniformly, and two phases.

    Attributes:
        tenants: the tier of each, or how many there are.
        zipf, noisy: the k-th tenant sends in proportion to k ** -zipf, the first one `noisy` times its share.
        label_prefix: put the paper's prefix before each prompt, which tells a keyword classifier the category.
        phases, trace: phases whose shares of the requests sum to 1, or a trace in their place.
        drift: a scenario of `drift`: it decides lengths or, where outputs end by themselves, prompts.
        length_scale: multiplies all lengths, so that an engine of another speed gets the same experiment.
        base_tokens: expected output length of each category, which is also its limit.
        output_length: an output ends at its `limit`, by itself (`natural`), or at a length drawn from the `spread`.
        recorded_lengths: a file of natural outputs, at whose lengths outputs are fixed.
        queue_timeout_s: a request expires after so long in the queue; null for never.
    """

    tenants: Annotated[dict[Name, Name], Field(min_length=1), BeforeValidator(_numbered)] = {
        f"tenant-{tier}": tier for tier in TIERS
    }
    zipf: NotNegative = 0.0
    noisy: Positive = 1.0
    label_prefix: bool = True
    phases: Phases = [Phase(name=name) for name in PAPER_PHASES]
    trace: TraceParams | None = None
    drift: Literal[tuple(SCENARIOS)] | None = None  # type: ignore[valid-type]
    length_scale: Positive = 1.0
    base_tokens: BaseTokens = BASE_TOKENS  # type: ignore[assignment]
    output_length: Literal["limit", "natural", "spread"] = "limit"
    spread: Spread = Spread(mean_share=0.6, cv=0.5)
    recorded_lengths: FileName | None = None
    queue_timeout_s: Positive | None = None

    @model_validator(mode="after")
    def _one_source_of_lengths(self) -> Self:
        if self.trace is not None and (self.output_length != "limit" or self.drift is not None):
            raise ValueError("a trace decides the lengths, so output_length may be limit and drift null")
        if any(phase.lengths for phase in self.phases) and (self.output_length != "limit" or self.drift is not None):
            raise ValueError("a phase's lengths fix the outputs, so output_length may be limit and drift null")
        if self.drift is not None and self.output_length == "spread":
            raise ValueError("drift decides the lengths, so output_length may be limit or natural")
        if self.recorded_lengths is not None and self.output_length != "natural":
            raise ValueError("recorded_lengths are of natural outputs, so output_length may be natural alone")
        return self

    @property
    def ends_by_itself(self) -> bool:
        """Return whether nobody knows an output's length before it is generated."""
        return self.output_length == "natural" and self.recorded_lengths is None

    @property
    def tenant_shares(self) -> list[float] | None:
        """Return each tenant's share of the requests; None for equal shares."""
        if not self.zipf and self.noisy == 1.0:
            return None
        shares = [self.noisy, *(k**-self.zipf for k in range(2, len(self.tenants) + 1))]
        return [share / sum(shares) for share in shares]

    def tokens(self, length: float) -> int:
        """Return a length at this load's scale, at least one token."""
        return max(1, round(length * self.length_scale))

    @property
    def max_tokens(self) -> Mapping[str, int]:
        """Return the limit and base length of an output, by category."""
        return {category: self.tokens(base) for category, base in self.base_tokens.items()}
