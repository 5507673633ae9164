"""Drift scenarios: how the requests of a load, or their output lengths, change while it runs.

A scenario takes any load of the project's own prompts and returns it changed, seeded, with the number and the times of
its requests kept.  Drift is *made* in one of two forms.  In `lengths`, each output is pinned at a draw from a
lognormal whose median depends on category, topic, tenant and drift: for simulated engines, and for pinned lengths on
real ones.  In `natural`, for real engines, outputs end by themselves: the prompt ends in an instruction that the
embedded model has learnt to follow, "Be brief." or "Go into depth.", the more often the further the drift; or the
request is sampled at another temperature.
"""

from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import exp, pi, sin
from typing import Literal

import numpy as np

from driftsched_lib.requests import CATEGORIES, Request
from driftsched_lib.workloads.corpus import TOPIC_FACTORS
from driftsched_lib.workloads.prompts import TEMPLATES, TOPICS, build_prompt, label_prefix

Form = Literal["lengths", "natural"]

FACTOR = 2.0
"""By what lengths grow at a drift of 1, and shrink at -1."""
MEDIAN_SHARE = 0.3
"""Median length as a share of the limit, where nothing drifts: low enough to leave room to grow."""
TENANT_SPREAD = 1.3
"""The wordiest tenant's median over that of the middle one."""
SPREAD = 0.3
"""Standard deviation of the log length at a given category, topic, tenant and drift; no estimator can know better."""

LEARNING_MIX = {"short_qa": 0.40, "summary": 0.25, "technical": 0.25, "report": 0.10}
STRESS_MIX = {"short_qa": 0.10, "summary": 0.20, "technical": 0.40, "report": 0.30}
"""The paper's two phases."""

ABRUPT = {"summary": 1.0, "technical": 1.0, "report": -1.0}
HOT = 1.6
"""A temperature at which a model that is mostly run at 0.7 is erratic."""
HOT_SPREAD = 1.5
"""How much more pinned log lengths spread then; about what the embedded model's summaries and technical answers do."""


@dataclass(frozen=True)
class Moment:
    """One request's place in a scenario.

    Attributes:
        progress: share of the load that came before it, 0 to 1.
        request: as the load has it.
        dice: a uniform draw, 0 to 1.
    """

    progress: float
    request: Request
    dice: float


@dataclass(frozen=True)
class Habit:
    """What a scenario makes of a request.

    Attributes:
        drift: -1 to 1; lengths are `factor ** drift` times what they were.
        category, tenant, tier: where they change; None to leave them.
        temperature: of the sampling, where outputs end by themselves; None for the engine's.
        spread: pinned log lengths spread this many times as much.
    """

    drift: float = 0.0
    category: str | None = None
    tenant: str | None = None
    tier: str | None = None
    temperature: float | None = None
    spread: float = 1.0


def stationary(moment: Moment) -> Habit:
    """Nothing changes."""
    return Habit()


def abrupt(moment: Moment, at: float = 0.5, change: Mapping[str, float] = ABRUPT) -> Habit:
    """From the middle on summaries and technical answers are longer, reports shorter; short answers stay.

    Parameters:
        at: share of the load that comes before the change.
        change: drift by category.
    """
    return Habit(change.get(moment.request.job_type, 0.0) if moment.progress >= at else 0.0)


def gradual(moment: Moment) -> Habit:
    """From a quarter to three quarters of the load all outputs grow step by step."""
    return Habit(min(max(2 * moment.progress - 0.5, 0.0), 1.0))


def recurring(moment: Moment) -> Habit:
    """Four days: long outputs by day, short ones by night."""
    return Habit(sin(2 * pi * 4 * moment.progress))


def mix_shift(moment: Moment) -> Habit:
    """From the middle on categories come in the mix of the paper's stress phase, before in that of its learning."""
    mix = STRESS_MIX if moment.progress >= 0.5 else LEARNING_MIX
    ends = [0.0, *accumulate(mix.values())]
    return Habit(category=list(mix)[bisect(ends, moment.dice * ends[-1]) - 1])


def new_tenant(moment: Moment) -> Habit:
    """From the middle on a quarter of the requests are a new tenant's, whose outputs are longer."""
    if moment.progress >= 0.5 and moment.dice < 0.25:
        return Habit(1.0, tenant="tenant-new", tier="standard")
    return Habit()


def noisy_neighbour(moment: Moment) -> Habit:
    """In the middle third six requests in ten are one batch tenant's, all long reports, in the place of others'."""
    if 1 / 3 <= moment.progress < 2 / 3 and moment.dice < 0.6:
        return Habit(1.0, category="report", tenant="tenant-noisy", tier="batch")
    return Habit()


def hotter(moment: Moment) -> Habit:
    """From the middle on all are sampled at a higher temperature; where lengths are pinned, they spread more."""
    return Habit(temperature=HOT, spread=HOT_SPREAD) if moment.progress >= 0.5 else Habit()


Scenario = Callable[[Moment], Habit]
SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (stationary, abrupt, gradual, recurring, mix_shift, new_tenant, noisy_neighbour, hotter)
}
CHANGES_AT: dict[str, float] = {
    "abrupt": 0.5,
    "gradual": 0.75,
    "mix_shift": 0.5,
    "new_tenant": 0.5,
    "noisy_neighbour": 1 / 3,
    "hotter": 0.5,
}
"""Where in the load a scenario's change is complete: for all but the gradual one, where it comes."""
NEWCOMERS = {"new_tenant": "tenant-new", "noisy_neighbour": "tenant-noisy"}
"""Whose requests change, where it is not everybody's."""


def drifted(
    requests: Sequence[Request],
    scenario: str | Scenario,
    seed: int,
    limits: Mapping[str, int],
    form: Form = "lengths",
    spread: float = SPREAD,
    factor: float = FACTOR,
) -> list[Request]:
    """A load under a scenario: new requests, in the same order, with the same ids, arrivals and deadlines.

    Parameters:
        requests: of `paper_load`, of all its phases in order, so that progress spans the whole load.
        scenario: a name in `SCENARIOS`, or what makes of a moment a habit, such as `partial(abrupt, at=0.2)`.
        seed: of the draws.
        limits: most output tokens by category.
        form: see the module.
        spread: standard deviation of the log length around its median.  At 0 every output is pinned at its median,
            the best that any estimator could say of the same load with a spread.
        factor: by what lengths grow at a drift of 1.

    Raises:
        ValueError: an unknown scenario, or a prompt that is not one of the project's.
    """
    if isinstance(scenario, str):
        if scenario not in SCENARIOS:
            raise ValueError(f"scenario is {scenario!r}, it may be one of {', '.join(SCENARIOS)}")
        scenario = SCENARIOS[scenario]
    rng = np.random.default_rng(seed)
    n = len(requests)
    dice, normals, wordings = rng.random(n).tolist(), rng.standard_normal(n).tolist(), rng.random(n).tolist()
    tenants = _tenant_factors(requests)
    changed = []
    for i, request in enumerate(requests):
        habit = scenario(Moment(i / n, request, dice[i]))
        prefix, topic, template = _parts(request)
        category, tenant = habit.category or request.job_type, habit.tenant or request.tenant
        style, pinned, temperature = "plain", None, None
        if form == "natural":
            style, temperature = _style(habit.drift, wordings[i]), habit.temperature
        else:
            drift = factor**habit.drift
            median = MEDIAN_SHARE * limits[category] * TOPIC_FACTORS[topic] * tenants.get(tenant, 1.0) * drift
            pinned = min(max(round(median * exp(habit.spread * spread * normals[i])), 1), limits[category])
        prompt = build_prompt(category, topic, template % len(TEMPLATES[category]), style)
        if prefix:
            prompt = label_prefix(request.request_id, tenant, category) + prompt
        changed.append(
            replace(
                request,
                prompt=prompt,
                tenant=tenant,
                tier=habit.tier or request.tier,
                job_type=category,
                max_tokens=limits[category],
                fixed_output_tokens=pinned,
                temperature=temperature,
            )
        )
    return changed


def _tenant_factors(requests: Sequence[Request]) -> dict[str, float]:
    """How much longer each tenant's outputs are; in the order of names, evenly spread on a log scale."""
    names = sorted({request.tenant for request in requests})
    if len(names) == 1:
        return {}
    return {name: TENANT_SPREAD ** (2 * i / (len(names) - 1) - 1) for i, name in enumerate(names)}


def _style(drift: float, draw: float) -> str:
    if draw >= abs(drift):
        return "plain"
    return "verbose" if drift > 0 else "terse"


_PARTS = {
    build_prompt(category, topic, template): (topic, template)
    for category in CATEGORIES
    for topic in TOPICS
    for template in range(len(TEMPLATES[category]))
}


def _parts(request: Request) -> tuple[bool, str, int]:
    """Whether a prompt has the label prefix, its topic, and its template."""
    prefix = label_prefix(request.request_id, request.tenant, request.job_type)
    has_prefix = request.prompt.startswith(prefix)
    try:
        return has_prefix, *_PARTS[request.prompt[len(prefix) :] if has_prefix else request.prompt]
    except KeyError:
        message = f"request {request.request_id!r}: drift is made in the project's own prompts, without style"
        raise ValueError(message) from None
