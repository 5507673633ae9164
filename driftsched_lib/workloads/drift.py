"""Drift scenarios: how the requests of a load, or their output lengths, change while it runs.

A scenario changes any load of the project's own prompts, by a seed; the number and times of its requests stay.

- Form `lengths`: each output is fixed at a draw from a lognormal, whose median depends on category, topic, tenant and
  drift.
- Form `natural`, for real engines: outputs end by themselves.  A prompt may end in an instruction that the embedded
  model has learnt to follow, "Be brief." or "Go into depth.", with the drift as probability, or the request is sampled
  at another temperature.
"""

from bisect import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, product
from math import exp, pi, sin
from typing import Literal, NamedTuple

import numpy as np

from driftsched_lib.requests import CATEGORIES, TIERS, Request
from driftsched_lib.validation import choice
from driftsched_lib.workloads.prompts import TEMPLATES, TOPIC_FACTORS, TOPICS, build_prompt, label_prefix

FACTOR = 2.0
"""Lengths grow by this factor at a drift of 1, and shrink by it at -1."""
MEDIAN_SHARE = 0.3
"""Median length as a share of the limit without drift: there is room to grow."""
TENANT_SPREAD = 1.3
"""Median length of the tenant with the longest outputs, relative to the middle one's."""
SPREAD = 0.3
"""Standard deviation of the log length at a given category, topic, tenant and drift: no estimator can do better."""

LEARNING_MIX = {"short_qa": 0.40, "summary": 0.25, "technical": 0.25, "report": 0.10}
STRESS_MIX = {"short_qa": 0.10, "summary": 0.20, "technical": 0.40, "report": 0.30}
"""The mixes of the paper's two phases."""

ABRUPT = {"summary": 1.0, "technical": 1.0, "report": -1.0}
HOT = 1.6
"""A temperature at which a model that mostly runs at 0.7 is erratic."""
HOT_SPREAD = 1.5
"""Factor on the spread of fixed log lengths then, about as for the embedded model's summaries."""


class Moment(NamedTuple):
    """The place of a request in a scenario: the share of the load before it, a uniform draw, and the tiers' names."""

    progress: float
    dice: float
    category: str
    tiers: Sequence[str]


@dataclass(frozen=True)
class Habit:
    """What a scenario does to a request; None leaves a value as it is.

    Attributes:
        drift: -1 to 1; lengths are multiplied by `factor ** drift`.
        temperature: of the sampling, in the form `natural`.
        spread: factor on the spread of fixed log lengths.
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
    """From the share `at` of the load on, outputs change by category: by default reports shrink, short answers stay."""
    return Habit(change.get(moment.category, 0.0) if moment.progress >= at else 0.0)


def gradual(moment: Moment) -> Habit:
    """All outputs grow steadily between a quarter and three quarters of the load."""
    return Habit(min(max(2 * moment.progress - 0.5, 0.0), 1.0))


def recurring(moment: Moment) -> Habit:
    """Four days: long outputs by day, short ones by night."""
    return Habit(sin(2 * pi * 4 * moment.progress))


def mix_shift(moment: Moment) -> Habit:
    """Categories come in the mix of the paper's learning phase; from the middle on in that of its stress phase."""
    mix = STRESS_MIX if moment.progress >= 0.5 else LEARNING_MIX
    ends = [0.0, *accumulate(mix.values())]
    return Habit(category=list(mix)[bisect(ends, moment.dice * ends[-1]) - 1])


def new_tenant(moment: Moment) -> Habit:
    """From the middle on, a quarter of the requests are a new tenant's, of the middle tier, with longer outputs."""
    if moment.progress >= 0.5 and moment.dice < 0.25:
        return Habit(1.0, tenant="tenant-new", tier=moment.tiers[len(moment.tiers) // 2])
    return Habit()


def noisy_neighbour(moment: Moment) -> Habit:
    """In the middle third, 60% of the requests become long reports of one tenant of the last tier."""
    if 1 / 3 <= moment.progress < 2 / 3 and moment.dice < 0.6:
        return Habit(1.0, category="report", tenant="tenant-noisy", tier=moment.tiers[-1])
    return Habit()


def hotter(moment: Moment) -> Habit:
    """From the middle on, requests are sampled at a higher temperature; fixed lengths spread more."""
    return Habit(temperature=HOT, spread=HOT_SPREAD) if moment.progress >= 0.5 else Habit()


Scenario = Callable[[Moment], Habit]
SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (stationary, abrupt, gradual, recurring, mix_shift, new_tenant, noisy_neighbour, hotter)
}
CHANGES_AT = {
    **dict.fromkeys(("abrupt", "mix_shift", "new_tenant", "hotter"), 0.5),
    "gradual": 0.75,
    "noisy_neighbour": 1 / 3,
}
"""Share of the load at which a scenario's change is complete."""
NEWCOMERS = {"new_tenant": "tenant-new", "noisy_neighbour": "tenant-noisy"}
"""The tenant whose requests change, in scenarios that change one tenant's."""


def drifted(
    requests: Sequence[Request],
    scenario: str | Scenario,
    seed: int,
    limits: Mapping[str, int],
    form: Literal["lengths", "natural"] = "lengths",
    spread: float = SPREAD,
    factor: float = FACTOR,
    tiers: Iterable[str] = TIERS,
) -> list[Request]:
    """Return a load under a scenario: new requests with the same order, ids, arrivals and deadlines.

    Parameters:
        requests: all phases of a load in order, so that progress spans the whole load.
        scenario: a name in `SCENARIOS`, or a function, such as `partial(abrupt, at=0.2)`.
        limits: maximum output tokens by category.
        spread: standard deviation of the log length around its median.  At 0 every output is its median: the best
            estimate that is possible for the same load with a spread.
        factor: lengths grow by it at a drift of 1.
        tiers: by name, the best first.

    Raises:
        ValueError: an unknown scenario, or a prompt that is not one of the project's.
    """
    if isinstance(scenario, str):
        if scenario not in SCENARIOS:
            raise ValueError(f"scenario: {choice(scenario, SCENARIOS)}")
        scenario = SCENARIOS[scenario]
    rng, n, tiers = np.random.default_rng(seed), len(requests), list(tiers)
    dice, normals, wordings = rng.random(n).tolist(), rng.standard_normal(n).tolist(), rng.random(n).tolist()
    names = sorted({request.tenant for request in requests})  # their lengths are evenly spread on a log scale
    tenants = {name: TENANT_SPREAD ** (2 * i / (len(names) - 1) - 1) for i, name in enumerate(names) if len(names) > 1}
    changed = []
    for i, request in enumerate(requests):
        habit = scenario(Moment(i / n, dice[i], request.job_type, tiers))
        prefix, topic, template = _parts(request)
        category, tenant = habit.category or request.job_type, habit.tenant or request.tenant
        style, length, temperature = "plain", None, None
        if form == "natural":
            temperature = habit.temperature
            if wordings[i] < abs(habit.drift):
                style = "verbose" if habit.drift > 0 else "terse"
        else:
            drift = factor**habit.drift
            median = MEDIAN_SHARE * limits[category] * TOPIC_FACTORS[topic] * tenants.get(tenant, 1.0) * drift
            length = min(max(round(median * exp(habit.spread * spread * normals[i])), 1), limits[category])
        prompt = build_prompt(category, topic, template % len(TEMPLATES[category]), style)
        if prefix:
            prompt = label_prefix(request.request_id, tenant, category) + prompt
        new = replace(request, prompt=prompt, tenant=tenant, tier=habit.tier or request.tier, job_type=category)
        new.max_tokens, new.fixed_output_tokens, new.temperature = limits[category], length, temperature
        changed.append(new)
    return changed


_PARTS = {
    build_prompt(category, topic, template): (topic, template)
    for category, topic in product(CATEGORIES, TOPICS)
    for template in range(len(TEMPLATES[category]))
}


def _parts(request: Request) -> tuple[bool, str, int]:
    """Return whether a prompt has the label prefix, its topic, and its template."""
    plain = request.prompt.removeprefix(label_prefix(request.request_id, request.tenant, request.job_type))
    if plain not in _PARTS:
        raise ValueError(f"request {request.request_id!r}: drift needs the project's own prompts, without style")
    return plain != request.prompt, *_PARTS[plain]
