"""The parameters of an experiment: what each wing needs, and the grid of runs that their lists span."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from driftsched_lib.engines.params import EngineParams
from driftsched_lib.policies.params import SchedulerParams
from driftsched_lib.requests import Tiers
from driftsched_lib.validation import Component, Count, NotNegative, OneOrMore, Positive, Validated, choice, file_name
from driftsched_lib.workloads.params import WorkloadParams


class MeasureParams(Validated):
    """What is recorded of a run, and how."""

    job_class_tokens: Annotated[list[int], Field(min_length=2, max_length=2)] = [128, 512]
    """The paper's bounds of a short and of a medium request (estimated total, before scaling)."""
    cooling_s: NotNegative = 60.0
    """Pause between two runs on a real engine."""
    queue_depth_interval_s: Positive = 1.0
    telemetry_interval_s: Positive = 0.2


SECTIONS = {"engine": EngineParams, "scheduler": SchedulerParams, "workload": WorkloadParams, "measure": MeasureParams}
MOVED = {"engine": "engine.kind", "engine_args": "engine.args", "longest_wait_s": "scheduler.admission.max_wait_s"} | {
    name: f"{section}.{name}" for section, model in SECTIONS.items() for name in model.model_fields
}
"""Where the keys of the flat files of version 0.1 went."""


class Params(Validated):
    """Everything that decides an experiment.  The defaults are the paper's; a list makes a dimension of the grid.

    Each rate multiplies the load's arrival rate; `requests` counts those of one run.
    """

    engine: EngineParams = EngineParams()
    scheduler: SchedulerParams = SchedulerParams()
    workload: WorkloadParams = WorkloadParams()
    measure: MeasureParams = MeasureParams()
    rates: OneOrMore[Positive] = [1.0]
    seeds: OneOrMore[Annotated[int, Field(ge=0)]] = [1, 2, 3]
    requests: Count = 3000

    @model_validator(mode="before")
    @classmethod
    def _no_flat_file(cls, values: Any) -> Any:
        given = values if isinstance(values, dict) else {}
        flat = [key for key in given if key in MOVED and (key not in SECTIONS or isinstance(given[key], str))]
        if moves := ", ".join(f"{key} -> {MOVED[key]}" for key in flat):
            raise ValueError(f"parameters stand in sections now: {moves}")
        return values

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        engine, scheduler, workload = self.engine, self.scheduler, self.workload
        if not 0 < (bounds := self.measure.job_class_tokens)[0] < bounds[1]:
            raise ValueError(f"measure.job_class_tokens: must be two rising numbers of tokens above 0, not {bounds}")
        if engine.kind == "simulated" and workload.ends_by_itself:
            may = "it may be limit or spread, or natural with recorded_lengths"
            raise ValueError(f"workload.output_length: no model ends an output of the simulated engine, so {may}")
        preemptive = [str(policy) for policy in scheduler.policies if getattr(policy.kind, "preemptive", False)]
        if preemptive and not engine.can_preempt:
            able = "a single simulated engine can, and vLLM with the plug-in"
            raise ValueError(f"scheduler.policies: {', '.join(preemptive)} preempts: {able}")
        if workload.ends_by_itself and any(estimator.name == "oracle" for estimator in scheduler.estimators):
            raise ValueError("scheduler.estimators: the oracle knows fixed lengths alone, and natural ones are not")
        default = {} if workload.trace is None else {"trace.default_tier": workload.trace.default_tier}
        for tenant, tier in {**workload.tenants, **default}.items():
            if tier not in scheduler.tiers:
                raise ValueError(f"workload: the tier of {tenant}, {choice(tier, scheduler.tiers)}")
        return self

    @classmethod
    def of_notebook(cls, names: Mapping[str, Any]) -> Self:
        """Return the parameters of a notebook: `params_file` under its variables `seeds`, `requests` and `rates`.

        If a section is among the variables, by papermill's `-f FILE`, they are the whole experiment.
        """
        given = {name: names[name] for name in cls.model_fields if names.get(name) is not None}
        if given.keys() & SECTIONS.keys():
            return cls.parse(given, "the notebook's parameters")
        return cls.load(names["params_file"], given)

    def changed(self, **overrides: Any) -> Self:
        """Return these parameters with others laid over them, validated; `scheduler__seeds` reaches into a section."""
        keys = {name.replace("__", "."): value for name, value in overrides.items()}
        return self.parse(self.model_dump(), "changed parameters", keys)

    @property
    def tiers(self) -> Tiers:
        """The tiers by name, the best first."""
        return self.scheduler.tiers

    @property
    def job_class_bounds(self) -> list[int]:
        """The largest total of a short and of a medium request, at the load's scale (tokens)."""
        return [self.workload.tokens(bound) for bound in self.measure.job_class_tokens]

    def runs(self) -> list["Run"]:
        """Return the grid, seed by seed, so that a part of it is balanced."""
        scheduler, settings = self.scheduler, self._settings()
        return [
            Run(batching, policy, *setting, rate, seed)
            for seed, rate, batching, policy in product(self.seeds, self.rates, scheduler.batching, scheduler.policies)
            for setting in (settings if policy.name in scheduler.vary_estimates_for else settings[:1])
        ]

    def policy_runs(self) -> list["Run"]:
        """Return the part of the grid that compares policies: the first estimator, token counter and calibration."""
        first = self._settings()[0]
        return [run for run in self.runs() if (run.estimator, run.calibration, run.token_counter) == first]

    def estimate_runs(self) -> list["Run"]:
        """Return the part of the grid that compares estimates: the policies in `vary_estimates_for`."""
        return [run for run in self.runs() if run.policy.name in self.scheduler.vary_estimates_for]

    def _settings(self) -> list[tuple[Component, bool, str]]:
        calibration = self.scheduler.calibration
        every = product(self.scheduler.estimators, self.scheduler.token_counter, calibration)
        return [(each, on, counter) for each, counter, on in every if each.accepts("calibrate") or on == calibration[0]]


@dataclass(frozen=True)
class Run:
    """One point of the grid."""

    batching: str
    policy: Component
    estimator: Component
    calibration: bool
    token_counter: str
    rate: float
    seed: int

    @property
    def settings(self) -> dict[str, Any]:
        """Its columns in tables of many runs."""
        return vars(self) | {"policy": str(self.policy), "estimator": str(self.estimator)}

    @property
    def name(self) -> str:
        """The name of its folder."""
        accounting = f"{self.token_counter}_{'' if self.calibration else 'un'}calibrated"
        rate = "" if self.rate == 1.0 else f"_rate{self.rate!r}".removesuffix(".0")
        return file_name(f"{self.batching}_{self.policy}_{self.estimator}_{accounting}{rate}_seed{self.seed}")
