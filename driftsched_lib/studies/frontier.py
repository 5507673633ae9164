"""Many policies on many loads: what each gives and takes, against FIFO on the same requests."""

from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from driftsched_lib.experiments import results
from driftsched_lib.experiments.metrics import busy_s, latencies, plain, tenant_fairness
from driftsched_lib.experiments.parallel import finish_all
from driftsched_lib.experiments.service_metrics import longest_waits, service_difference, slo_attainment
from driftsched_lib.policies.deadlines import E2E_SLO_S, TTFT_SLO_S
from driftsched_lib.requests import TIERS
from driftsched_lib.studies.compare import mean_interval

RELATIVE = {
    "mean_e2e_s": "mean E2E",
    "p50_e2e_s": "P50 E2E",
    "p99_e2e_s": "P99 E2E",
    "longest_wait_s": "longest wait",
}
COMPARED = ("p50_e2e_s", "p99_e2e_s", "longest_wait_s")
LARGER_IS_BETTER = {"premium_slo", "slo", "jain", "jain_equal", "goodput_per_s", "output_tokens_per_s"}
SETTING = ["workload", "batching", "rate"]
INTERVAL_S = 10.0
"""Seconds over which service differences are taken."""


def measures(
    requests: pd.DataFrame,
    speed: results.EngineSpeed,
    ttft_slo_s: Mapping[str, float] = TTFT_SLO_S,
    e2e_slo_s: Mapping[str, float] = E2E_SLO_S,
) -> dict[str, float]:
    """What one run gave: share of requests completed; of these, latencies (s), slowdowns against the idle engine and
    output tokens a second; longest wait (s) to the first dispatch; the shares that met their SLOs, goodput (requests a
    second), Jain index over tenants per weight of their tiers and for equal weights, and the mean service difference a
    second (VTC's, priced tokens per weight); overload, the time until all have ended over the time in which they come.
    What has a tier's name before it is that tier's.

    Parameters:
        speed: of the idle engine.
        ttft_slo_s, e2e_slo_s: seconds from the arrival to the first and to the last token, by tier.
    """
    requests = plain(requests)
    done = latencies(requests, speed.idle_ttft_s, speed.idle_tpot_s)[["tier", "e2e_s", "ttft_s", "slowdown"]]
    slo = slo_attainment(requests, ttft_slo_s, e2e_slo_s)
    waits = longest_waits(requests, by=("tier",))
    row = {"completed": (requests.outcome == "completed").mean(), "slo": np.average(slo.met, weights=slo.requests)}
    row |= _latencies(done) | {"mean_e2e_s": done.e2e_s.mean(), "longest_wait_s": waits.max()}
    for tier in TIERS:
        row |= {f"{tier}_{name}": value for name, value in _latencies(done[done.tier == tier]).items()}
        row |= {f"{tier}_longest_wait_s": waits.get(tier, np.nan), f"{tier}_slo": slo.met.get(tier, np.nan)}
    return row | {
        "goodput_per_s": slo.goodput_per_s.sum(),
        "output_tokens_per_s": requests.output_tokens[done.index].sum() / busy_s(requests),
        "jain": tenant_fairness(requests, TURNS),
        "jain_equal": tenant_fairness(requests),
        "service_difference": service_difference(requests, INTERVAL_S, TURNS).difference.mean() / INTERVAL_S,
        "overload": requests.finish_s.max() / requests.arrival_s.max(),
    }


def _latencies(done: pd.DataFrame) -> dict[str, float]:
    return {
        "p50_e2e_s": done.e2e_s.median(),
        "p99_e2e_s": done.e2e_s.quantile(0.99),
        "p50_ttft_s": done.ttft_s.median(),
        "p50_slowdown": done.slowdown.median(),
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
    manifest = results.load_manifest(folder)
    speed = results.EngineSpeed(**manifest["engine_speed"])
    return number, manifest["run"] | measures(results.read_table(folder, "requests"), speed, **slos)


def every_order(arrivals: Sequence[float], sizes: Sequence[float]) -> pd.DataFrame:
    """What each request stays under every order in which one server can serve a few of them without preemption.

    Parameters:
        arrivals, sizes: of each request, in seconds, by arrival.

    Returns:
        A row an order, a permutation of the requests' indices, and a column a request: seconds from arrival to end.
    """
    rows = {}
    for order in permutations(range(len(arrivals))):
        now, stays = 0.0, [0.0] * len(arrivals)
        for i in order:
            now = max(now, arrivals[i]) + sizes[i]
            stays[i] = now - arrivals[i]
        rows[order] = stays
    return pd.DataFrame(rows.values(), pd.MultiIndex.from_tuples(rows))


def against(runs: pd.DataFrame, baseline: str = "fifo", columns: Sequence[str] = COMPARED) -> pd.DataFrame:
    """Each policy's measures against a baseline's in the same setting and seed: means over seeds with 95% intervals.

    Parameters:
        runs: of `frontier`, with the columns of `SETTING`.
        baseline: a policy.
        columns: those of `RELATIVE` are compared by their ratio less 1, others by their difference.

    Returns:
        A row a setting, policy and column: `change`, `low`, `high`.
    """
    base = runs[runs.policy == baseline].set_index([*SETTING, "seed"])
    rows = []
    for (*where, policy), part in runs[runs.policy != baseline].groupby([*SETTING, "policy"], sort=False):
        mine = part.set_index([*SETTING, "seed"])
        for column in columns:
            theirs = base[column].reindex(mine.index)
            change = mine[column] / theirs - 1 if column in RELATIVE else mine[column] - theirs
            interval = mean_interval(change.dropna())
            rows.append((*where, policy, column, interval.estimate, interval.low, interval.high))
    return pd.DataFrame(rows, columns=[*SETTING, "policy", "column", "change", "low", "high"])


def best_policies(runs: pd.DataFrame, objectives: Mapping[str, str]) -> pd.DataFrame:
    """Which policies are the best, and which the worst, for each objective in each setting.

    Those are listed together that cannot be told from the first in the same seeds, at 95% for all at once (Bonferroni).

    Parameters:
        objectives: columns of `frontier`, and what they are called.

    Returns:
        A row a setting and objective: `best` and `worst`, lists of policies by their means, the most extreme first.
    """
    rows = []
    for where, part in runs.groupby(SETTING, sort=False):
        for column, name in objectives.items():
            values = part.pivot(index="seed", columns="policy", values=column)
            sign = -1 if column in LARGER_IS_BETTER else 1
            rows.append((*where, name, _like_the_least(sign * values), _like_the_least(-sign * values)))
    return pd.DataFrame(rows, columns=[*SETTING, "objective", "best", "worst"])


def _like_the_least(values: pd.DataFrame) -> list[str]:
    """The columns whose means cannot be told from the least one's, row by row, the least first."""
    order = values.mean().sort_values(kind="stable").index
    confidence = 1 - 0.05 / max(1, len(order) - 1)
    ahead = {column: mean_interval((values[column] - values[order[0]]).dropna(), confidence) for column in order}
    return [column for column in order if not ahead[column].low > 0]


def where_worst(runs: pd.DataFrame, objectives: Mapping[str, str]) -> pd.DataFrame:
    """Where each policy is farthest behind: the setting and objective in which it is last, or nearest to it.

    Of `shortfall`, how far it is from the best mean to the worst, 0 to 1, the largest; of equal ones the one in which
    its mean is the most times the best one's.

    Parameters:
        objectives: columns of `frontier`, and what they are called.
    """
    rows = []
    for where, part in runs.groupby(SETTING, sort=False):
        means = part.groupby("policy", sort=False)[list(objectives)].mean()
        for column, name in objectives.items():
            larger = column in LARGER_IS_BETTER
            worst, best = sorted([means[column].min(), means[column].max()], reverse=not larger)
            if best == worst:
                continue
            for policy, mean in means[column].items():
                times = max(mean, best) / max(min(mean, best), 1e-9)
                rows.append((policy, (mean - best) / (worst - best), times, name, *where, mean, best))
    columns = ["policy", "shortfall", "times", "objective", *SETTING, "mean", "best"]
    table = pd.DataFrame(rows, columns=columns).sort_values(["shortfall", "times"], ascending=False, kind="stable")
    return table.drop_duplicates("policy").set_index("policy").drop(columns="times")


def against_goals(runs: pd.DataFrame, policy: str = "express") -> pd.DataFrame:
    """What a policy reaches of this project's goals in one setting, paired over seeds with 95% intervals.

    Parameters:
        runs: of `frontier`, of one workload, batching and rate, this policy among them and those that the goals name.

    Returns:
        A row a goal: its `value`, `low`, `high`, the `goal` and whether it is `met`: yes or no where the interval says
        so, else open.
    """
    by_policy = {name: part.set_index("seed") for name, part in runs.groupby("policy")}
    mine, sjf = by_policy[policy], by_policy["sjf"]
    if runs.batching.iloc[0] == "static":
        rows = {
            "P50 against SJF's": (mine.p50_e2e_s / sjf.p50_e2e_s - 1, "< +0%", 0.0),
            "P99 against SJF's": (mine.p99_e2e_s / sjf.p99_e2e_s - 1, "< +0%", 0.0),
        }
    else:
        fifo, priority = by_policy["fifo"], by_policy["priority"]
        rows = {
            "P50 against SJF's": (mine.p50_e2e_s / sjf.p50_e2e_s - 1, "<= +5%", 0.05),
            "P99 against FIFO's": (mine.p99_e2e_s / fifo.p99_e2e_s - 1, "<= +0%", 0.0),
            "longest wait against SJF's": (mine.longest_wait_s / sjf.longest_wait_s - 1, "<= -50%", -0.5),
            "premium SLOs under Priority's": (priority.premium_slo - mine.premium_slo, "<= +1%", 0.01),
            "Jain index under FIFO's": (fifo.jain - mine.jain, "<= +0%", 0.0),
        }
    table = {}
    for name, (values, goal, most) in rows.items():
        interval = mean_interval(values)
        met = "yes" if interval.high <= most else "no" if interval.low > most else "open"
        table[name] = interval.estimate, interval.low, interval.high, goal, met
    return pd.DataFrame.from_dict(table, orient="index", columns=["value", "low", "high", "goal", "met"])
