"""The loop, the policies and the simulated engine against queueing theory's exact results.

An iteration that takes the same time whatever it holds makes the engine M/G/c: `max_num_seqs` servers, and a service
time of so many tokens.  With one server this is exact, since service starts where another ends.  With several it starts
at the next iteration's end, so the tokens are made a millionth of a service.  Time is in mean services.
"""

from functools import partial
from math import exp, factorial
from zlib import crc32

import numpy as np
import pandas as pd
import pytest
from scipy import integrate, stats
from simulation import COSTS, make_profile, request, served

from driftsched_lib.engines.base import STEP_COLUMNS
from driftsched_lib.engines.simulated import SimulatedEngine
from driftsched_lib.policies import POLICIES, Fifo, Priority, ShortestJobFirst, ShortestRemaining
from driftsched_lib.requests import TIERS

RUNS, REQUESTS, WARM_UP = 16, 6_000, 500
FINE = 1_000_000  # tokens of a mean service, where service times are continuous
SUCCESS = np.array([0.2, 0.1, 0.08])  # of the geometric services of three tiers
BY_TIER = 1 / SUCCESS, (2 - SUCCESS) / SUCCESS**2  # their means and mean squares
SIZES, ENDS = np.arange(1, 400), [5, 12, 25]  # sizes of one geometric service, and where its parts end

DRAWS = {  # services in tokens and the classes they are of; and their mean
    "constant": (lambda rng, n: (np.full(n, 10), np.zeros(n, int)), 10),
    "geometric": (lambda rng, n: (sizes := rng.geometric(0.1, n), np.digitize(sizes, ENDS)), 10),
    "two kinds": (lambda rng, n: (rng.choice([2, 50], n, p=[0.8, 0.2]), np.zeros(n, int)), 11.6),
    "exponential": (lambda rng, n: (np.ceil(rng.exponential(FINE, n)), np.zeros(n, int)), FINE),
    "by tier": (lambda rng, n: (rng.geometric(SUCCESS[tiers := rng.integers(3, size=n)]), tiers), BY_TIER[0].mean()),
}


class Population:
    """Integrates over time what waits in the queue and what is in the system, as the loop sees them."""

    def __init__(self):
        self.at, self.queued, self.present = 0.0, 0, 0
        self.queue_area = self.system_area = 0.0

    def __call__(self, now, scheduler):
        self.queue_area += self.queued * (now - self.at)
        self.system_area += self.present * (now - self.at)
        self.at, self.queued = now, len(scheduler)
        self.present = len(scheduler) + len(scheduler._running)


def run(policy, load, name, n=REQUESTS, servers=1, seed=(0,)):
    """Serve Poisson arrivals of these services; return rows of wait, stay, service, arrival and class, as they came.

    Little's law is checked on the way.
    """
    draw, mean = DRAWS[name]
    tokens, classes = draw(np.random.default_rng([2, *seed]), n)
    arrivals = np.random.default_rng([1, *seed]).exponential(1 / (load * servers), n).cumsum()
    columns = arrivals.tolist(), tokens.tolist(), (classes % 3).tolist()
    requests = (
        request(i, at, 1, int(output), list(TIERS)[tier])
        for i, (at, output, tier) in enumerate(zip(*columns, strict=True))
    )
    costs = dict.fromkeys(COSTS, 0.0) | {"decode_s": {1: 0.0}, "base_s": 1 / mean}
    limits = dict.fromkeys(("max_num_batched_tokens", "max_model_len", "kv_blocks"), 10**9)
    engine, population = SimulatedEngine(make_profile(costs, max_num_seqs=servers, **limits)), Population()
    records = served(requests, engine, policy=policy, monitor=population)
    moments = np.array([(records[str(i)].dispatch_s, records[str(i)].finish_s) for i in range(n)])
    waits, stays = moments.T - arrivals
    # An arrival is seen at the end of an iteration, so each count may lag by one iteration a request.
    if not policy.preemptive:  # else one waits more than once
        assert population.queue_area == pytest.approx(waits.sum(), abs=n / mean)
    assert population.system_area == pytest.approx(stays.sum(), abs=n / mean)
    return waits, stays, tokens / mean, arrivals, classes


def erlang_c(servers, load):
    """Return the mean wait in M/M/c."""
    offered = servers * load
    last = offered**servers / factorial(servers) / (1 - load)
    return last / (sum(offered**k / factorial(k) for k in range(servers)) + last) / (servers - offered)


def waits_by_class(load, shares, means, squares):
    """Return mean waits under non-preemptive priorities (Cobham 1954): `W0 / ((1 - s[k-1]) (1 - s[k]))` in class k.

    `s[k]` is the load of the classes up to k, and W0 the mean residual work.  With one class it is the result of
    Pollaczek and Khinchine, with a class per size that of Phipps for the shortest first.
    """
    shares, means, squares = np.array([shares, means, squares])
    rate = load / (shares @ means)
    loads = np.cumsum([0.0, *(rate * shares * means)])
    return rate * (shares @ squares) / 2 / ((1 - loads[:-1]) * (1 - loads[1:])) / (shares @ means)


def shortest_first_waits(load, p=0.1):
    """Return mean waits of geometric services in parts by size."""
    shares, part = p * (1 - p) ** (SIZES - 1), np.digitize(SIZES, ENDS)
    waits = waits_by_class(load, shares, SIZES, SIZES**2)
    return [np.average(waits[part == k], weights=shares[part == k]) for k in range(4)]


def srpt_stay(rate):
    """Return the mean stay under SRPT in M/M/1 (Schrage and Miller 1966)."""

    def load(x):  # of the services up to x
        return rate * (1 - exp(-x) * (1 + x))

    def stay(x):
        squares = 2 - exp(-x) * (x * x + 2 * x + 2)
        wait = rate * (squares + x * x * exp(-x)) / (2 * (1 - load(x)) ** 2)
        return wait + integrate.quad(lambda left: 1 / (1 - load(left)), 0, x)[0]

    return integrate.quad(lambda x: stay(x) * exp(-x), 0, 60)[0]


MMC = (1, 0.8), (4, 0.7), (8, 0.7)  # servers and load
MEANS = {  # policy, load, services, servers, column of `run`, and its exact means by class
    **{f"M/M/{c} at {load}": (Fifo, load, "exponential", c, 0, [erlang_c(c, load)]) for c, load in MMC},
    "M/D/1": (Fifo, 0.7, "constant", 1, 0, waits_by_class(0.7, [1], [10], [100])),
    "M/G/1": (Fifo, 0.7, "two kinds", 1, 0, waits_by_class(0.7, [1], [11.6], [503.2])),
    "priority": (Priority, 0.73, "by tier", 1, 0, waits_by_class(0.73, np.full(3, 1 / 3), *BY_TIER)),
    "sjf": (ShortestJobFirst, 0.8, "geometric", 1, 0, shortest_first_waits(0.8)),
    "srpt": (partial(ShortestRemaining, 0.0), 0.7, "exponential", 1, 1, [srpt_stay(0.7)]),
}


@pytest.mark.parametrize("name", MEANS)
def test_means_are_those_of_theory(name):
    """Those of independent runs lie within their 99.9% Student interval of it, and that interval says something."""
    policy, load, services, servers, column, exact = MEANS[name]
    means = []
    for seed in range(RUNS):
        rows = run(policy(), load, services, servers=servers, seed=(crc32(name.encode()), seed))
        values, classes = rows[column][WARM_UP:], rows[-1][WARM_UP:]
        means.append([values[classes == k].mean() for k in range(len(exact))])
    half = stats.t.ppf(0.9995, RUNS - 1) * stats.sem(means)
    wrong_by = np.abs(np.mean(means, axis=0) - exact)
    assert (wrong_by < half).all() and (half < 0.25 * np.array(exact)).all(), f"{means} +- {half}, exactly {exact}"


@pytest.mark.parametrize(
    ("services", "servers"),
    [("constant", 1), ("geometric", 1), ("two kinds", 1), *(("exponential", servers) for servers in (1, 2, 4, 8))],
)
def test_every_single_wait_follows_kiefer_and_wolfowitzs_recursion(services, servers):
    """First come, first served: a request waits until the first server is free.  With one server it is Lindley's."""
    waits, _, lengths, arrivals, _ = run(Fifo(), 0.9, services, servers=servers, seed=(5, servers))
    free_s, expected = np.zeros(servers), []
    for length, arrival in zip(lengths, arrivals, strict=True):
        first = free_s.argmin()
        start = max(arrival, free_s[first])
        free_s[first] = start + length
        expected.append(start - arrival)
    lag_s = 1e-6 if servers == 1 else REQUESTS / FINE
    assert np.mean(expected) > 0.1 and waits == pytest.approx(expected, abs=lag_s)


def test_littles_law_with_chunks_and_preemption():
    """On an engine whose prompts are cut and whose blocks run out: the time integral of how many are in the system is
    the sum of their stays, but for the iteration at whose end an arrival is seen."""
    rng = np.random.default_rng(6)
    arrivals = rng.exponential(0.2, 400).cumsum().tolist()
    load = [request(i, at, int(rng.integers(1, 60)), int(rng.integers(1, 60))) for i, at in enumerate(arrivals)]
    profile = make_profile(max_num_batched_tokens=24, block_size=4, kv_blocks=40)
    engine, population = SimulatedEngine(profile, log_steps=True), Population()
    records = served(load, engine, monitor=population)
    steps = pd.DataFrame(engine.steps, columns=STEP_COLUMNS)
    assert steps.preemptions.sum() > 0 and (steps.prompt_tokens == 24).any()
    stays = sum(records[str(i)].finish_s - at for i, at in enumerate(arrivals))
    assert population.system_area == pytest.approx(stays, abs=len(load) * steps.duration_s.max())


def test_no_policy_makes_or_saves_work():
    """Kleinrock's conservation law, in its form for one run: the area under the work left, the sum of
    service * (wait + service / 2), is the same under every order of the same requests that never idles nor preempts."""
    rows = {name: run(policy(), 0.9, "by tier") for name, policy in POLICIES.items() if not policy.preemptive}
    areas = [(lengths * (waits + lengths / 2)).sum() for waits, _, lengths, *_ in rows.values()]
    assert areas == pytest.approx([areas[0]] * len(areas), rel=1e-12)
    mean_waits = {name: waits.mean() for name, (waits, *_) in rows.items()}
    assert min(mean_waits, key=mean_waits.get) == "sjf" and mean_waits["sjf"] < 0.7 * mean_waits["fifo"]
