"""The loop, the policies and the simulated engine against queueing theory's exact results.

An iteration that takes the same time whatever it holds makes the engine M/G/c: `max_num_seqs` servers, and a service
time of so many tokens.  With one server this is exact, since service starts where another ends.  With several it starts
at the next iteration's end, so the tokens are made a millionth of a service.  Each mean is that of independent runs and
must lie within their 99.9% Student interval of the exact value; the seeds are fixed.
"""

from functools import partial
from itertools import accumulate
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

RUNS, WARM_UP = 16, 500
FINE = 1_000_000  # tokens of a mean service, where service times are continuous


def free_of_load(token_s, servers):
    """A profile whose iteration takes `token_s` seconds, whatever it holds."""
    costs = dict.fromkeys(COSTS, 0.0) | {"decode_s": {1: 0.0}, "base_s": token_s}
    limits = dict.fromkeys(("max_num_batched_tokens", "max_model_len", "kv_blocks"), 10**9)
    return make_profile(costs, max_num_seqs=servers, **limits)


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


def run(policy, rate, token_s, tokens, tiers=None, servers=1, seed=(0,)):
    """Serve Poisson arrivals of these service times in tokens; a row a request in the order of arrival: wait,
    service, arrival and stay in seconds.  Little's law is checked on the way."""
    n = len(tokens)
    arrivals = np.random.default_rng([1, *seed]).exponential(1 / rate, n).cumsum().tolist()
    tiers = ["standard"] * n if tiers is None else tiers
    load = (request(i, arrivals[i], 1, int(tokens[i]), tiers[i]) for i in range(n))
    engine, population = SimulatedEngine(free_of_load(token_s, servers)), Population()
    records = served(load, engine, policy=policy, monitor=population)
    moments = np.array([(records[str(i)].dispatch_s, records[str(i)].finish_s) for i in range(n)])
    waits, stays = moments.T - arrivals
    # An arrival is seen at the end of an iteration, so each count may lag by one iteration a request.
    if not policy.preemptive:  # else one waits more than once
        assert population.queue_area == pytest.approx(waits.sum(), abs=n * token_s)
    assert population.system_area == pytest.approx(stays.sum(), abs=n * token_s)
    return np.column_stack([waits, np.asarray(tokens) * token_s, arrivals, stays])


def assert_mean(values, exact):
    """The mean of independent runs is the exact value, within its 99.9% interval, and that interval says something."""
    half = stats.t.ppf(0.9995, len(values) - 1) * stats.sem(values)
    assert abs(np.mean(values) - exact) < half < 0.25 * exact, f"{np.mean(values)} +- {half}, exactly {exact}"


def mean_over_runs(test, column, policy, rate, token_s, draw, n, servers=1):
    """The mean of a column of `run`, without the warm-up, for each of the runs of this test."""
    return [
        run(policy(), rate, token_s, draw(rng, n), servers=servers, seed=seed)[WARM_UP:, column].mean()
        for seed, rng in rngs(test)
    ]


def rngs(test):
    """A seed of arrivals and a stream of services for each run; `test`, its name, keeps others from sharing them."""
    seeds = [(crc32(test.encode()), run) for run in range(RUNS)]
    return [(seed, np.random.default_rng([2, *seed])) for seed in seeds]


def exponential(rng, n):
    return np.ceil(rng.exponential(FINE, n))


def erlang_c(servers, offered):
    """The probability of waiting in M/M/c."""
    last = offered**servers / factorial(servers) * servers / (servers - offered)
    return last / (sum(offered**k / factorial(k) for k in range(servers)) + last)


@pytest.mark.parametrize(("servers", "load"), [(1, 0.5), (1, 0.8), (4, 0.7), (8, 0.7)])
def test_mmc_waits(servers, load):
    rate, token_s = load * servers, 1 / FINE
    waits = mean_over_runs(f"M/M/{servers} at {load}", 0, Fifo, rate, token_s, exponential, 6_000, servers)
    assert_mean(waits, erlang_c(servers, rate) / (servers - rate))


SERVICES = {  # with mean and mean square
    "constant": (lambda rng, n: np.full(n, 10), 10, 100),
    "geometric": (lambda rng, n: rng.geometric(0.1, n), 10, 190),
    "two kinds": (lambda rng, n: rng.choice([2, 50], n, p=[0.8, 0.2]), 11.6, 503.2),
}


@pytest.mark.parametrize("service", SERVICES)
def test_mg1_wait_is_that_of_pollaczek_and_khinchine(service):
    draw, mean, square = SERVICES[service]
    waits = mean_over_runs(service, 0, Fifo, 0.7 / mean, 1.0, draw, 6_000)
    assert_mean(waits, 0.7 / mean * square / (2 * (1 - 0.7)))


@pytest.mark.parametrize("service", SERVICES)
def test_every_single_wait_follows_lindleys_recursion(service):
    """One server, first come first served: a wait is the one before, plus that service, less the gap, or nothing."""
    draw, mean, _ = SERVICES[service]
    waits, services, arrivals, _ = run(Fifo(), 0.8 / mean, 1.0, draw(np.random.default_rng(4), 5_000)).T
    unfinished = np.cumsum(services[:-1] - np.diff(arrivals))
    assert waits[1:] == pytest.approx(unfinished - np.minimum.accumulate(np.minimum(unfinished, 0)), abs=1e-6)


@pytest.mark.parametrize("servers", [2, 4, 8])
def test_every_single_wait_follows_kiefer_and_wolfowitzs_recursion(servers):
    """Several servers, first come first served: a request waits until the first of them is free."""
    tokens = exponential(np.random.default_rng([5, servers]), 5_000)
    rows = run(Fifo(), 0.9 * servers, 1 / FINE, tokens, servers=servers, seed=(5, servers))
    free_s, expected = np.zeros(servers), []
    for _, service, arrival, _ in rows:
        first = free_s.argmin()
        start = max(arrival, free_s[first])
        free_s[first] = start + service
        expected.append(start - arrival)
    assert np.mean(expected) > 0.1 and rows[:, 0] == pytest.approx(expected, abs=len(rows) / FINE)


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


def waits_by_class(rates, means, squares):
    """Mean waits under non-preemptive priorities, the first class first (Cobham 1954): W0 / ((1 - s[k-1]) (1 - s[k])),
    where s[k] is the load of the classes up to k and W0 the mean residual work."""
    residual = sum(rate * square for rate, square in zip(rates, squares, strict=True)) / 2
    loads = [0.0, *accumulate(rate * mean for rate, mean in zip(rates, means, strict=True))]
    return [residual / ((1 - before) * (1 - until)) for before, until in zip(loads, loads[1:], strict=False)]


def test_priorities_wait_as_cobham_says():
    n, rate, success = 7_500, 0.08, (0.2, 0.1, 0.08)  # geometric services, another mean for each tier
    means, squares = [1 / p for p in success], [(2 - p) / p**2 for p in success]
    by_tier = []
    for seed, rng in rngs("Cobham"):
        tiers = rng.integers(3, size=n)
        tokens = rng.geometric(np.array(success)[tiers])
        waits = run(Priority(), rate, 1.0, tokens, [list(TIERS)[tier] for tier in tiers], seed=seed)[WARM_UP:, 0]
        by_tier.append([waits[tiers[WARM_UP:] == tier].mean() for tier in range(3)])
    for values, exact in zip(np.transpose(by_tier), waits_by_class([rate / 3] * 3, means, squares), strict=True):
        assert_mean(values, exact)


def test_the_shortest_first_wait_as_phipps_says():
    n, rate, p = 7_500, 0.08, 0.1
    sizes = np.arange(1, 400)
    shares = p * (1 - p) ** (sizes - 1)
    exact = np.array(waits_by_class(rate * shares, sizes, sizes**2))
    parts = [(1, 5), (5, 12), (12, 25), (25, 400)]  # from and below
    by_part = []
    for seed, rng in rngs("Phipps"):
        tokens = rng.geometric(p, n)
        waits = run(ShortestJobFirst(), rate, 1.0, tokens, seed=seed)[WARM_UP:, 0]
        by_part.append([waits[(low <= tokens[WARM_UP:]) & (tokens[WARM_UP:] < high)].mean() for low, high in parts])
    for values, (low, high) in zip(np.transpose(by_part), parts, strict=True):
        inside = (low <= sizes) & (sizes < high)
        assert_mean(values, np.average(exact[inside], weights=shares[inside]))


def srpt_stay(rate):
    """Mean stay under SRPT in M/M/1 with a mean service of 1 (Schrage and Miller 1966)."""

    def load(x):  # of the services up to x
        return rate * (1 - exp(-x) * (1 + x))

    def stay(x):
        squares = 2 - exp(-x) * (x * x + 2 * x + 2)
        wait = rate * (squares + x * x * exp(-x)) / (2 * (1 - load(x)) ** 2)
        return wait + integrate.quad(lambda left: 1 / (1 - load(left)), 0, x)[0]

    return integrate.quad(lambda x: stay(x) * exp(-x), 0, 60)[0]


def test_the_shortest_remaining_first_stay_as_schrage_and_miller_say():
    stays = mean_over_runs("Schrage and Miller", 3, partial(ShortestRemaining, 0.0), 0.7, 1 / FINE, exponential, 6_000)
    assert_mean(stays, srpt_stay(0.7))


def test_no_policy_makes_or_saves_work():
    """Kleinrock's conservation law, in its form for one run: the area under the work left, the sum of
    service * (wait + service / 2), is the same under every order of the same requests that never idles nor preempts."""
    rng = np.random.default_rng(3)
    tokens, tiers = rng.geometric(0.1, 5_000), [list(TIERS)[tier] for tier in rng.integers(3, size=5_000)]
    served_by = {
        name: run(policy(), 0.09, 1.0, tokens, tiers) for name, policy in POLICIES.items() if not policy.preemptive
    }
    areas = {name: (rows[:, 1] * (rows[:, 0] + rows[:, 1] / 2)).sum() for name, rows in served_by.items()}
    assert list(areas.values()) == pytest.approx([areas["fifo"]] * len(areas), rel=1e-12)
    mean_waits = {name: rows[:, 0].mean() for name, rows in served_by.items()}
    assert min(mean_waits, key=mean_waits.get) == "sjf" and mean_waits["sjf"] < 0.7 * mean_waits["fifo"]
