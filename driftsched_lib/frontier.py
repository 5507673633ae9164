"""Many policies on many loads: what each gives and takes, against FIFO on the same requests."""

from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from driftsched_lib import results
from driftsched_lib.comparison import mean_interval
from driftsched_lib.metrics import jain_index, latencies, tenant_fairness
from driftsched_lib.parallel import finish_all
from driftsched_lib.policies.deadlines import E2E_SLO_S, TTFT_SLO_S
from driftsched_lib.requests import TIERS
from driftsched_lib.service_metrics import longest_waits, service_difference, slo_attainment

RELATIVE = {"p50_e2e_s": "P50 E2E", "p99_e2e_s": "P99 E2E", "longest_wait_s": "longest wait"}
LARGER_IS_BETTER = {"premium_slo", "slo", "jain", "goodput_per_s"}


def measures(
    requests: pd.DataFrame,
    ttft_slo_s: Mapping[str, float] = TTFT_SLO_S,
    e2e_slo_s: Mapping[str, float] = E2E_SLO_S,
) -> dict[str, float]:
    """What one run gave: share of requests completed; of these, latencies, P99 by tier too (s); longest wait (s), the
    shares that met their SLOs (all, premium), goodput (requests a second), Jain index over tenants, and the mean
    service difference a second (VTC's, tokens).

    Parameters:
        ttft_slo_s, e2e_slo_s: seconds from the arrival to the first and to the last token, by tier.
    """
    done = latencies(requests, 1.0, 1.0)
    slo = slo_attainment(requests, ttft_slo_s, e2e_slo_s)
    everyone = slo_attainment(requests, ttft_slo_s, e2e_slo_s, by=()).iloc[0]
    p50, p99 = done.e2e_s.quantile([0.50, 0.99])
    return {
        "completed": (requests.outcome == "completed").mean(),
        "p50_e2e_s": p50,
        "p99_e2e_s": p99,
        **{f"{tier}_p99_e2e_s": done.e2e_s[done.tier == tier].quantile(0.99) for tier in TIERS},
        "p50_ttft_s": done.ttft_s.median(),
        "longest_wait_s": longest_waits(requests, by=("phase",)).max(),
        "premium_slo": slo.met.get("premium", float("nan")),
        "slo": everyone.met,
        "goodput_per_s": everyone.goodput_per_s,
        "jain": tenant_fairness(requests),
        "slowdown_jain": jain_index(done.groupby("tenant").e2e_s.mean()),
        "service_difference": service_difference(requests, 10.0).difference.mean() / 10.0,
    }


def frontier(out: str | Path, **slos: Mapping[str, float]) -> pd.DataFrame:
    """`measures` of every run of a results folder, a row a run, with its setting.

    Parameters:
        slos: as of `measures`.
    """
    folders = results.run_folders(out)
    rows = dict(finish_all(_row, [(number, folder, slos) for number, folder in enumerate(folders)]))
    return pd.DataFrame([rows[i] for i in range(len(folders))])


def _row(number: int, folder: Path, slos: Mapping[str, Mapping[str, float]]) -> tuple[int, dict[str, Any]]:
    return number, results.load_manifest(folder)["run"] | measures(results.read_table(folder, "requests"), **slos)


def every_order(arrivals: Sequence[float], sizes: Sequence[float]) -> pd.DataFrame:
    """Median and longest stay under every order in which one server can serve a few requests without preemption.

    Parameters:
        arrivals, sizes: of each request, in seconds, by arrival.

    Returns:
        A row an order, a permutation of the requests' indices: `p50_e2e_s`, `longest_e2e_s`.
    """
    rows = {}
    for order in permutations(range(len(arrivals))):
        now, stays = 0.0, []
        for i in order:
            now = max(now, arrivals[i]) + sizes[i]
            stays.append(now - arrivals[i])
        rows[order] = median(stays), max(stays)
    index = pd.MultiIndex.from_tuples(rows)
    return pd.DataFrame(rows.values(), index, columns=["p50_e2e_s", "longest_e2e_s"])


def against_fifo(runs: pd.DataFrame, columns: Sequence[str] = tuple(RELATIVE)) -> pd.DataFrame:
    """Mean over seeds of each policy's measure over FIFO's in the same setting and seed, less 1, with its interval.

    Parameters:
        runs: of `frontier`, with the columns `workload`, `batching` and `rate`.

    Returns:
        A row a setting, policy and column: `change`, `low`, `high`.
    """
    setting = ["workload", "batching", "rate"]
    fifo = runs[runs.policy == "fifo"].set_index([*setting, "seed"])
    rows = []
    for (*where, policy), part in runs[runs.policy != "fifo"].groupby([*setting, "policy"], sort=False):
        mine = part.set_index([*setting, "seed"])
        for column in columns:
            interval = mean_interval((mine[column] / fifo[column].reindex(mine.index) - 1).dropna())
            rows.append((*where, policy, column, interval.estimate, interval.low, interval.high))
    return pd.DataFrame(rows, columns=[*setting, "policy", "column", "change", "low", "high"])


def best_policies(runs: pd.DataFrame, objectives: Mapping[str, str]) -> pd.DataFrame:
    """Which policy is best, and which worst, for each objective in each setting, by the mean over seeds.

    Where the best and the worst differ by less than 1%, no policy matters, and both are "any".

    Parameters:
        objectives: columns of `frontier`, and what they are called.
    """
    rows = []
    for where, part in runs.groupby(["workload", "batching", "rate"], sort=False):
        means = part.groupby("policy", sort=False)[list(objectives)].mean()
        for column, name in objectives.items():
            order = means[column].sort_values(ascending=column not in LARGER_IS_BETTER).index
            alike = means[column].max() - means[column].min() < 0.01 * means[column].abs().max()
            rows.append((*where, name, "any" if alike else order[0], "any" if alike else order[-1]))
    return pd.DataFrame(rows, columns=["workload", "batching", "rate", "objective", "best", "worst"])
