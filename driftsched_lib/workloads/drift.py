"""Drift scenarios: how the requests of a load, or their output lengths, change while it runs.

A scenario changes any load of the project's own prompts, by a seed; the number and times of its requests stay.

- Form `lengths`: outputs are drawn from lognormals, whose median depends on category, topic, tenant and drift.
- Form `natural`, for real engines: outputs end by themselves.  The drift is the probability that a prompt ends in an
  instruction, "Be brief." or "Go into depth.", which the embedded model has learnt to follow.
"""

from bisect import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate, product
from math import exp, pi, sin
from typing import Any, Literal, NamedTuple

import numpy as np

from driftsched_lib.requests import CATEGORIES, TIERS, Request
from driftsched_lib.validation import choice
from driftsched_lib.workloads.prompts import TEMPLATES_PER_CATEGORY, TOPIC_FACTORS, build_prompt, label_prefix

FACTOR = 2.0  # lengths grow by this factor at a drift of 1, and shrink by it at -1
MEDIAN_SHARE = 0.3  # median length as a share of the limit without drift: there is room to grow
TENANT_SPREAD = 1.3  # median length of the tenant with the longest outputs, relative to the middle one's
SPREAD = 0.3  # standard deviation of the log length at given category, topic, tenant and drift: no estimator beats it
HOT = 1.6  # a temperature at which a model made for 0.7 is erratic
HOT_SPREAD = 1.5  # factor on the spread of fixed log lengths at that temperature

LEARNING_MIX = {"short_qa": 0.40, "summary": 0.25, "technical": 0.25, "report": 0.10}
STRESS_MIX = {"short_qa": 0.10, "summary": 0.20, "technical": 0.40, "report": 0.30}
"""The mixes of the paper's two phases."""
ABRUPT = {"summary": 1.0, "technical": 1.0, "report": -1.0}


class Moment(NamedTuple):
    """The place of a request in a load: the share before it, a uniform draw, its category, and the tiers' names."""

    progress: float
    dice: float
    category: str
    tiers: Sequence[str]


Habit = dict[str, Any]
"""What a scenario changes of a request: its category, tenant, tier or temperature (form `natural`); its drift from -1
to 1, as lengths are multiplied by `factor ** drift`; or a factor on the spread of fixed log lengths, `spread`, or on
its limit, `limit`, which is at least one token."""
Scenario = Callable[[Moment], Habit]


def abrupt(moment: Moment, at: float = 0.5, change: Mapping[str, float] = ABRUPT) -> Habit:
    """Change outputs by category from the share `at` on: by default reports shrink, and short answers stay."""
    return {"drift": change.get(moment.category, 0.0) if moment.progress >= at else 0.0}


def gradual(moment: Moment) -> Habit:
    """Let all outputs grow steadily between a quarter and three quarters of the load."""
    return {"drift": min(max(2 * moment.progress - 0.5, 0.0), 1.0)}


def recurring(moment: Moment) -> Habit:
    """Give four days long outputs by day and short ones by night."""
    return {"drift": sin(2 * pi * 4 * moment.progress)}


def mix_shift(moment: Moment) -> Habit:
    """Draw categories from the mix of the paper's learning phase; from the middle on, of its stress phase."""
    mix = STRESS_MIX if moment.progress >= 0.5 else LEARNING_MIX
    ends = list(accumulate(mix.values()))
    return {"category": list(mix)[bisect(ends, moment.dice * ends[-1])]}


def new_tenant(moment: Moment) -> Habit:
    """Give a quarter of the second half to a new tenant of the middle tier, with longer outputs."""
    newcomer = {"drift": 1.0, "tenant": "tenant-new", "tier": moment.tiers[len(moment.tiers) // 2]}
    return newcomer if moment.progress >= 0.5 and moment.dice < 0.25 else {}


def noisy_neighbour(moment: Moment) -> Habit:
    """Make 60% of the middle third long reports of one tenant of the last tier."""
    noisy = {"drift": 1.0, "category": "report", "tenant": "tenant-noisy", "tier": moment.tiers[-1]}
    return noisy if 1 / 3 <= moment.progress < 2 / 3 and moment.dice < 0.6 else {}


def hotter(moment: Moment) -> Habit:
    """Sample the second half at a higher temperature, or spread its fixed lengths more."""
    return {"temperature": HOT, "spread": HOT_SPREAD} if moment.progress >= 0.5 else {}


def low_limits(moment: Moment, since: float = 0.0) -> Habit:
    """Give a quarter of the load to a tenant that limits its outputs to a tenth of the others' limit, `since` then."""
    limit = 0.1 if moment.progress >= since else 1.0
    return {"tenant": "tenant-brief", "tier": moment.tiers[-1], "limit": limit} if moment.dice < 0.25 else {}


def health_probes(moment: Moment) -> Habit:
    """Limit half of the second half to one token, as probes of every tenant that ask whether the server lives."""
    return {"limit": 0.0} if moment.progress >= 0.5 and moment.dice < 0.5 else {}


_CHANGES = abrupt, gradual, recurring, mix_shift, new_tenant, noisy_neighbour, hotter, low_limits, health_probes
SCENARIOS: dict[str, Scenario] = {"stationary": lambda moment: {}} | {change.__name__: change for change in _CHANGES}
SCENARIOS["limit_change"] = partial(low_limits, since=0.5)
CHANGES_AT = dict.fromkeys(("abrupt", "mix_shift", "new_tenant", "hotter", "health_probes", "limit_change"), 0.5)
CHANGES_AT |= {"gradual": 0.75, "noisy_neighbour": 1 / 3}
"""Share of the load at which a scenario's change is complete."""
NEWCOMERS = {"new_tenant": "tenant-new", "noisy_neighbour": "tenant-noisy"}
"""The tenant whose requests change, in scenarios that change one tenant's."""

_PARTS = {
    build_prompt(category, topic, template): (topic, template)
    for category, topic, template in product(CATEGORIES, TOPIC_FACTORS, range(TEMPLATES_PER_CATEGORY))
}


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
        limits, factor: maximum output tokens by category, and what lengths grow by at a drift of 1.
        spread: standard deviation of the log length.  At 0 every output is its median: the best possible estimate.

    Raises ValueError for an unknown scenario, or a prompt that is not one of the project's.
    """
    if isinstance(scenario, str) and scenario not in SCENARIOS:
        raise ValueError(f"scenario: {choice(scenario, SCENARIOS)}")
    habit_at = SCENARIOS[scenario] if isinstance(scenario, str) else scenario
    rng, n, tiers, natural = np.random.default_rng(seed), len(requests), list(tiers), form == "natural"
    draws = zip(rng.random(n).tolist(), rng.standard_normal(n).tolist(), rng.random(n).tolist(), strict=True)
    names = sorted({request.tenant for request in requests})  # their lengths are evenly spread on a log scale
    tenants = {name: TENANT_SPREAD ** (2 * i / (len(names) - 1) - 1) for i, name in enumerate(names) if len(names) > 1}
    changed = []
    for i, (request, (dice, normal, wording)) in enumerate(zip(requests, draws, strict=True)):
        plain = request.prompt.removeprefix(label_prefix(request.request_id, request.tenant, request.job_type))
        if plain not in _PARTS:
            raise ValueError(f"request {request.request_id!r}: drift needs the project's own prompts, without style")
        topic, template = _PARTS[plain]
        habit = {"drift": 0.0, "spread": 1.0, "limit": 1.0, "category": request.job_type, "tenant": request.tenant}
        habit |= habit_at(Moment(i / n, dice, request.job_type, tiers))
        category, tenant, drift = habit["category"], habit["tenant"], habit["drift"]
        style = ("verbose" if drift > 0 else "terse") if natural and wording < abs(drift) else "plain"
        median = MEDIAN_SHARE * limits[category] * TOPIC_FACTORS[topic] * tenants.get(tenant, 1.0)
        length = round(median * factor**drift * exp(habit["spread"] * spread * normal))
        limit = max(1, round(habit["limit"] * limits[category]))
        prompt = build_prompt(category, topic, template, style)
        if plain != request.prompt:
            prompt = label_prefix(request.request_id, tenant, category) + prompt
        new = replace(request, prompt=prompt, tenant=tenant, tier=habit.get("tier", request.tier), job_type=category)
        new.max_tokens, new.temperature = limit, habit.get("temperature") if natural else None
        new.fixed_output_tokens = None if natural else min(max(length, 1), limit)
        changed.append(new)
    return changed
