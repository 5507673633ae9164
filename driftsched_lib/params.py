"""The parameters of an experiment: one validated model, whose lists span a grid of runs."""

import ast
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from driftsched_lib.checks import for_each_tier
from driftsched_lib.drift import SCENARIOS
from driftsched_lib.estimators import BASE_TOKENS, ESTIMATORS
from driftsched_lib.policies import POLICIES
from driftsched_lib.traces.read import FIELDS, FORMATS
from driftsched_lib.validation import (
    BaseTokens,
    Category,
    Component,
    Count,
    EstimatorName,
    FileName,
    GapVariation,
    NotNegative,
    OneOrMore,
    PolicyName,
    Positive,
    Tier,
    Validated,
    choice,
)


class Phase(Validated):
    """A stretch of the load with its own category mix and arrival rate.

    Gaps between arrivals are uniform in `gap_s`, or, with an `arrival_cv`, of a gamma distribution of the same mean and
    that coefficient of variation: 1 is Poisson, more is bursts.  With a `load_factor` they keep that shape but are
    stretched until the offered output tokens a second, every output at its limit, are that multiple of the engine's
    measured capacity.
    A phase begins when the one before it has drained and `pause_s` more seconds have passed.

    `lengths` is the file of a `LengthMix`, as in data/traces: prompts are filled up and outputs pinned to its lengths
    (times `length_scale`), and a request is of the first category whose base holds its output, whatever the `mix`.  The
    category then tells an estimator the order of magnitude, more than a real prompt does.
    """

    name: str
    share: Annotated[Positive, Field(le=1)]
    mix: dict[Category, NotNegative]
    gap_s: Annotated[list[NotNegative], Field(min_length=2, max_length=2)]
    load_factor: Positive | None = None
    pause_s: NotNegative = 0.0
    lengths: FileName | None = None
    arrival_cv: GapVariation | None = None

    @field_validator("mix")
    @classmethod
    def _sums_to_one(cls, mix: dict) -> dict:
        if abs(sum(mix.values()) - 1) > 1e-9:
            raise ValueError(f"the shares must sum to 1, they sum to {sum(mix.values()):g}")
        return mix

    @field_validator("gap_s")
    @classmethod
    def _rises(cls, gap_s: list[float]) -> list[float]:
        if gap_s[0] > gap_s[1] or gap_s[1] == 0:
            raise ValueError(f"must be two rising numbers of seconds, the second above 0, not {gap_s}")
        return gap_s


PAPER_PHASES = (
    Phase(
        name="learning",
        share=1 / 3,
        mix={"short_qa": 0.40, "summary": 0.25, "technical": 0.25, "report": 0.10},
        gap_s=[0.05, 0.15],
    ),
    Phase(
        name="stress",
        share=2 / 3,
        mix={"short_qa": 0.10, "summary": 0.20, "technical": 0.40, "report": 0.30},
        gap_s=[0.005, 0.03],
        pause_s=15.0,
    ),
)


class TraceParams(Validated):
    """A request trace, in one of the formats of `traces.read`.

    Attributes:
        columns: what the columns of a `csv` or `parquet` are called, where not as in `traces.read.FIELDS`.
        skip: good rows that are left out at its beginning.
        speedup: what its times are divided by.
        load_factor: output tokens offered over what the engine can make, which its times are stretched to; null for as
            they are.
        on_bad_row: leave it out, and say so, or refuse the trace.
    """

    file: FileName
    format: Literal[tuple(FORMATS)]  # type: ignore[valid-type]
    columns: dict[Literal[FIELDS], str] | None = None  # type: ignore[valid-type]
    skip: Annotated[int, Field(ge=0, le=10**12)] = 0
    speedup: Positive = 1.0
    load_factor: Positive | None = None
    on_bad_row: Literal["skip", "refuse"] = "refuse"

    @model_validator(mode="after")
    def _one_clock(self) -> "TraceParams":
        if self.load_factor is not None and self.speedup != 1.0:
            raise ValueError("a load_factor stretches the times whatever the speedup: give one of them")
        return self


class WorkloadParams(Validated):
    """The paper's load: tenants drawn uniformly, and phases whose shares of the requests sum to 1.

    A `trace` takes the place of the phases.  With a `zipf` above 0 the k-th tenant sends in proportion to k ** -zipf;
    the first sends `noisy` times its share.
    A `drift` is a scenario of `drift`, which then decides lengths, or, where outputs end by themselves, the prompts'
    wording.
    `label_prefix` puts the generator's prefix before each prompt, which tells a key-word classifier the category.
    """

    label_prefix: bool = True
    zipf: NotNegative = 0.0
    noisy: Positive = 1.0
    drift: Literal[tuple(SCENARIOS)] | None = None  # type: ignore[valid-type]
    tenants: Annotated[dict[str, Tier], Field(min_length=1)] = {
        "tenant-premium": "premium",
        "tenant-standard": "standard",
        "tenant-batch": "batch",
    }
    phases: Annotated[list[Phase], Field(min_length=1)] = list(PAPER_PHASES)
    trace: TraceParams | None = None

    @property
    def tenant_shares(self) -> list[float] | None:
        """What each tenant sends of the whole; None for the same from each."""
        if not self.zipf and self.noisy == 1.0:
            return None
        shares = [k**-self.zipf for k in range(1, len(self.tenants) + 1)]
        shares[0] *= self.noisy
        return [share / sum(shares) for share in shares]

    @field_validator("phases")
    @classmethod
    def _share_all(cls, phases: list[Phase]) -> list[Phase]:
        if abs(sum(phase.share for phase in phases) - 1) > 1e-6:
            raise ValueError(f"the shares must sum to 1, they sum to {sum(phase.share for phase in phases):g}")
        return phases


class Spread(Validated):
    """Output lengths pinned at draws from a lognormal, cut off at the request's limit.

    Attributes:
        mean_share: mean of the draws as a share of the limit.
        cv: their coefficient of variation, standard deviation over mean.
    """

    mean_share: Positive
    cv: Annotated[float, Field(ge=0, le=100)]


class AdmissionParams(Validated):
    """Who is turned away at arrival, by tier; see `admission`.

    Attributes:
        tokens_per_s, burst_tokens: the budget of each tenant, estimated input and output together; null for none.
        longest_wait_s: a request is shed when the work queued before it takes the engine longer than that, `.inf` for a
            tier never shed; null to shed none.
    """

    tokens_per_s: dict[Tier, Positive] | None = None
    burst_tokens: dict[Tier, Positive] | None = None
    longest_wait_s: dict[Tier, Annotated[float, Field(ge=0)]] | None = None

    @model_validator(mode="after")
    def _whole(self) -> "AdmissionParams":
        for name in ("tokens_per_s", "burst_tokens", "longest_wait_s"):
            if (values := getattr(self, name)) is not None:
                for_each_tier(name, values)
        if (self.tokens_per_s is None) != (self.burst_tokens is None):
            raise ValueError("tokens_per_s and burst_tokens are of one budget: give both")
        return self


class ServerParams(Validated):
    """A live server: its address up to `/v1`, how many requests may be with it at once, the longest that one may take,
    and the environment variable that holds its API key.  A strict one takes no `extensions`, vLLM's additions to
    OpenAI's: tenant and tier, and `min_tokens`, without which an output may end before its pinned length and fails.
    `max_num_batched_tokens` is what it was started with, vLLM's default unless told: only a profile of it asks.
    """

    url: Annotated[str, Field(pattern=r"^https?://[^/]+")]
    max_in_flight: Count
    timeout_s: Positive
    api_key_env: Annotated[str, Field(min_length=1)] | None = None
    extensions: bool = True
    max_num_batched_tokens: Count = 2048


class Params(Validated):
    """Everything that decides an experiment.  The defaults are the paper's; a list makes a dimension of the grid.

    Lengths (`base_tokens`, which are the outputs' limits too, and `job_class_tokens`) are the paper's times
    `length_scale`, so that an engine of another speed can be given the same experiment.  Requests arrive
    as fast as the phases say, times each of `rates`.  An output ends at its `limit`, by itself (`natural`), or at a
    length drawn from the `spread`.  `recorded_lengths` is a file of what natural outputs came to: each is pinned there.

    The `vllm` engine loads `model` with `engine_args`; `server` is where a live one has it.  The `simulated` one is
    `replicas` engines of a `profile`, in which `engine_args` replaces limits; a `router` gives each at most
    `max_outstanding` requests, null for as many as run at once, so that all others wait in the one queue.
    """

    engine: Literal["vllm", "simulated", "server"] = "vllm"
    model: FileName = "Qwen/Qwen1.5-1.8B-Chat"
    profile: FileName | None = None
    replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    router: Literal["round_robin", "least_requests", "least_estimated_tokens"] = "least_requests"
    max_outstanding: Count | None = None
    server: ServerParams | None = None
    engine_args: dict[str, Any] = {
        "dtype": "float16",
        "enforce_eager": True,
        "max_model_len": 2048,
        "max_num_seqs": 32,
        "gpu_memory_utilization": 0.70,
        "enable_prefix_caching": False,
    }
    temperature: NotNegative = 0.7
    output_length: Literal["limit", "natural", "spread"] = "limit"
    recorded_lengths: FileName | None = None
    spread: Spread = Spread(mean_share=0.6, cv=0.5)
    length_scale: Positive = 1.0
    base_tokens: BaseTokens = BASE_TOKENS  # type: ignore[assignment]
    job_class_tokens: Annotated[list[int], Field(min_length=2, max_length=2)] = [128, 512]
    classifier: Literal["keywords", "text"] = "keywords"

    batching: OneOrMore[Literal["static", "continuous"]] = ["static"]
    batch_size: Count = 32
    batch_wait_s: NotNegative = 0.01
    policies: OneOrMore[PolicyName] = ["fifo", "priority", "weighted", "sjf", "aging"]  # type: ignore[list-item]
    estimators: OneOrMore[EstimatorName] = ["paper"]  # type: ignore[list-item]
    calibration: OneOrMore[bool] = [True, False]
    token_counter: OneOrMore[Literal["whitespace", "tokenizer"]] = ["whitespace", "tokenizer"]
    vary_estimates_for: list[str] = ["sjf"]
    queue_capacity: Count | None = None
    queue_timeout_s: Positive | None = None
    admission: AdmissionParams | None = None

    rates: OneOrMore[Positive] = [1.0]
    seeds: OneOrMore[Annotated[int, Field(ge=0)]] = [1, 2, 3]
    requests: Count = 3000
    workload: WorkloadParams = WorkloadParams()
    cooling_s: NotNegative = 60.0
    queue_depth_interval_s: Positive = 1.0
    telemetry_interval_s: Positive = 0.2

    @model_validator(mode="after")
    def _fits_the_engine(self) -> "Params":
        if self.workload.trace is not None and (self.output_length != "limit" or self.workload.drift is not None):
            raise ValueError("workload.trace: it decides the lengths, so output_length may be limit and drift null")
        ends_by_itself = self.output_length == "natural" and self.recorded_lengths is None
        if self.engine == "simulated":
            if self.profile is None:
                raise ValueError("engine: the simulated engine needs a profile, a file as in data/profiles")
            if ends_by_itself:
                raise ValueError(
                    "output_length: no model ends an output of the simulated engine, so it may be limit or spread, or "
                    "natural with recorded_lengths"
                )
        elif self.profile is not None or self.replicas > 1:
            raise ValueError("engine: a profile and replicas are for the simulated engine")
        alone = self.engine == "simulated" and self.replicas == 1
        if not alone and (preemptive := [policy.name for policy in self.policies if POLICIES[policy.name].preemptive]):
            raise ValueError(
                f"policies: {', '.join(preemptive)} preempts: a single simulated engine can, and vLLM with the plug-in"
            )
        if (self.engine == "server") != (self.server is not None):
            raise ValueError("server: it says where engine: server is, and that alone")
        if self.engine == "server" and self.engine_args:
            raise ValueError("engine_args: a live server was started with its own, so it may be {} alone")
        if any(phase.lengths for phase in self.workload.phases) and self.output_length != "limit":
            raise ValueError("output_length: a phase's lengths pin the outputs, so it may be limit alone")
        if self.workload.drift is not None and self.output_length == "spread":
            raise ValueError("output_length: workload.drift decides the lengths, so it may be limit or natural")
        if self.recorded_lengths is not None and self.output_length != "natural":
            raise ValueError("recorded_lengths: they are of natural outputs, so output_length may be natural alone")
        if ends_by_itself and any(estimator.name == "oracle" for estimator in self.estimators):
            raise ValueError("estimators: the oracle knows pinned lengths alone, and natural ones are not")
        return self

    @field_validator("job_class_tokens")
    @classmethod
    def _rise(cls, bounds: list[int]) -> list[int]:
        if not 0 < bounds[0] < bounds[1]:
            raise ValueError(f"must be two rising numbers of tokens above 0, not {bounds}")
        return bounds

    @field_validator("vary_estimates_for")
    @classmethod
    def _known_policies(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in POLICIES:
                raise ValueError(choice(name, POLICIES))
        return names

    @classmethod
    def from_notebook(cls, namespace: Mapping[str, Any], params_file: str | Path) -> "Params":
        """A file's parameters under those that a notebook's parameter cells set, its own and the one papermill injects.

        Parameters:
            namespace: the notebook's `globals()`.
        """
        cells = [cell for cell in namespace["In"] if "params_file = " in cell or cell.startswith("# Parameters")]
        statements = [statement for cell in cells for statement in ast.parse(cell).body]
        names = {target.id for statement in statements for target in getattr(statement, "targets", [])}
        return cls.load(params_file, {name: namespace[name] for name in sorted(names - {"params_file", "out"})})

    def tokens(self, paper_tokens: int) -> int:
        """A length of the paper's at this experiment's scale, at least one token."""
        return max(1, round(paper_tokens * self.length_scale))

    @property
    def max_tokens(self) -> dict[str, int]:
        """The limit and base length of an output, by category."""
        return {category: self.tokens(base) for category, base in self.base_tokens.items()}

    @property
    def job_class_bounds(self) -> list[int]:
        """The largest total of a short and of a medium request."""
        return [self.tokens(bound) for bound in self.job_class_tokens]

    def runs(self) -> list["Run"]:
        """The grid, seed by seed, so that a part of it is balanced.

        A policy that is not in `vary_estimates_for` is not run again for each estimator, token counter and
        calibration: its order does not depend on them, and the first of each stands for all.  An estimator that cannot
        be told not to calibrate is run once for both.
        """
        settings = [
            (estimator, counter, calibration)
            for estimator, counter, calibration in product(self.estimators, self.token_counter, self.calibration)
            if can_calibrate(estimator) or calibration == self.calibration[0]
        ]
        return [
            Run(batching, policy, *setting, rate, seed)
            for seed in self.seeds
            for rate in self.rates
            for batching in self.batching
            for policy in self.policies
            for setting in (settings if policy.name in self.vary_estimates_for else settings[:1])
        ]

    def policy_runs(self) -> list["Run"]:
        """The part of the grid that compares policies: the first estimator, token counter and calibration."""
        first = (self.estimators[0], self.token_counter[0], self.calibration[0])
        return [run for run in self.runs() if (run.estimator, run.token_counter, run.calibration) == first]

    def estimate_runs(self) -> list["Run"]:
        """The part of the grid that compares estimates: the policies in `vary_estimates_for`."""
        return [run for run in self.runs() if run.policy.name in self.vary_estimates_for]


def can_calibrate(estimator: Component) -> bool:
    """Whether an estimator can be run with and without calibration."""
    return "calibrate" in inspect.signature(ESTIMATORS[estimator.name]).parameters


@dataclass(frozen=True)
class Run:
    """One point of the grid."""

    batching: str
    policy: Component
    estimator: Component
    token_counter: str
    calibration: bool
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        calibration = "calibrated" if self.calibration else "uncalibrated"
        parts = [self.batching, self.policy, self.estimator, self.token_counter, calibration]
        if self.rate != 1.0:
            parts.append(f"rate{self.rate:g}")
        return re.sub(r"[^\w.=-]+", "-", "_".join(map(str, [*parts, f"seed{self.seed}"])))
