"""The paper's claims C1 to C7 (arXiv 2606.02982), ruled on by the runs of a results folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from driftsched_lib.experiments import results
from driftsched_lib.experiments.metrics import busy_s, estimation_errors, job_classes, latencies
from driftsched_lib.experiments.params import Params
from driftsched_lib.studies.compare import (
    Interval,
    bootstrap,
    difference,
    mean,
    quantile,
    relative_change,
    root_mean_square,
    select,
    single,
)

REPRODUCED, DIRECTION_ONLY, NOT_REPRODUCED = "reproduced", "direction only", "not reproduced"
CLOSE_TO_THE_PAPER = 0.25
"""A change within this share of the paper's number counts as that number, or one whose interval holds it."""
CLOSE_TO_ONE = 0.05
"""A bias whose mean distance from 1 is surely below this is close to 1."""

SJF, FIFO = {"policy": "sjf"}, {"policy": "fifo"}
ON, OFF = {"calibration": True}, {"calibration": False}


@dataclass(frozen=True)
class Ruling:
    """One claim under one setting: what the paper says, what these runs say, and why."""

    claim: str
    statement: str
    setting: str
    paper: str
    here: str
    verdict: str
    why: str


def completed_requests(out: str | Path) -> pd.DataFrame:
    """Every completed request of a results folder, in grid order, with its latencies, error and job class."""
    params = Params.load(Path(out) / "params.yaml")
    place = {run.name: i for i, run in enumerate(params.runs())}
    requests = results.load(out).sort_values("run", key=lambda names: names.map(place), kind="stable")
    speed = results.load_speed(out)
    done = latencies(requests, speed.idle_ttft_s, speed.idle_tpot_s)
    done = done.assign(error_tokens=estimation_errors(requests), bias_deviation=(done.bias_after - 1).abs())
    classes = [job_classes(run, params.job_class_bounds) for _, run in done.groupby("run")]
    return done.join(pd.concat(classes)[["job_class", "flip", "misjudged"]].astype({"flip": float, "misjudged": float}))


def verdict(paper: float, here: Interval) -> str:
    """Whether a change is the paper's, has at least its direction beyond doubt, or neither."""
    if here.low * paper <= 0 or here.high * paper <= 0:
        return NOT_REPRODUCED
    close = abs(here.estimate - paper) <= CLOSE_TO_THE_PAPER * abs(paper) or here.low <= paper <= here.high
    return REPRODUCED if close else DIRECTION_ONLY


def scorecard(done: pd.DataFrame) -> pd.DataFrame:
    """A row a claim and setting; a claim whose runs are not in `done` is left out.

    Parameters:
        done: from `completed_requests`; the first estimator in it is ruled on.
    """
    done = select(done, estimator=done.estimator.iloc[0]).assign(abs_error_tokens=done.error_tokens.abs())
    rulings: list[Ruling] = []
    for batching in done.batching.unique():
        runs = select(done, batching=batching)
        if {"fifo", "sjf"} <= set(runs.policy):
            rulings += _latency(runs, batching)
        for counter in runs.token_counter.unique():
            counted = select(runs, token_counter=counter, **SJF)
            if counted.calibration.nunique() == 2:
                rulings += _estimation(counted, f"{batching}, {counter}", counter)
                if "fifo" in set(select(runs, token_counter=counter).policy):
                    rulings.append(_scheduler_or_calibration(runs, f"{batching}, {counter}", counter))
    columns = list(Ruling.__dataclass_fields__)
    return pd.DataFrame(rulings, columns=columns).sort_values("claim", kind="stable", ignore_index=True)


def changes_against_fifo(done: pd.DataFrame) -> pd.DataFrame:
    """Relative changes of latency quantiles against FIFO with 95% intervals, a row a batching and policy."""
    rows = {}
    for batching, runs in done.groupby("batching", sort=False):
        for policy in runs.policy.unique():
            if policy != "fifo":
                rows[batching, policy] = {
                    f"P{100 * q:.0f} {name}": relative_change(runs, column, quantile(q), {"policy": policy}, FIFO)
                    for column, name in (("e2e_s", "E2E"), ("ttft_s", "TTFT"), ("queue_wait_s", "queue wait"))
                    for q in (0.50, 0.99)
                }
    return pd.DataFrame.from_dict(rows, orient="index")


def barrier_waste(runs: pd.DataFrame) -> float:
    """Share of the slots of static batches that wait, finished, for the longest of their batch."""
    batches = runs.groupby(["run", "phase", "batch_id"]).output_tokens
    return float(1 - runs.output_tokens.sum() / (batches.size() * batches.max()).sum())


def throughput(runs: pd.DataFrame) -> float:
    """Output tokens a second while anything was in the system, averaged over runs."""
    return float(np.mean([run.output_tokens.sum() / busy_s(run) for _, run in runs.groupby("run")]))


def _latency(runs: pd.DataFrame, batching: str) -> list[Ruling]:
    sides = _settings(runs)
    sjf, fifo = (select(runs, **side) for side in sides)
    gain = throughput(sjf) / throughput(fifo) - 1
    mixed = [throughput(run) for _, run in runs[runs.policy != "sjf"].groupby("run")]
    noise = f" (between runs of the other policies it varies by {np.std(mixed) / np.mean(mixed):.0%})"
    if batching == "static":
        why = (
            f"SJF makes batches of like lengths: slots that wait at the barrier go from {barrier_waste(fifo):.0%} to "
            f"{barrier_waste(sjf):.0%}, throughput changes by {gain:+.0%}{noise}"
        )
    else:
        why = (
            f"there is no barrier to save: throughput changes by {gain:+.0%}{noise}, and the last requests end when "
            "all the work is done, whatever the order"
        )
    rulings = []
    for claim, q, paper, reason in (
        ("C3", 0.50, -0.42, f"short requests no longer wait behind long ones; {why}"),
        ("C4", 0.99, -0.16, why),
    ):
        here = relative_change(runs, "e2e_s", quantile(q), *sides)
        statement = f"SJF lowers P{q * 100:.0f} E2E against FIFO"
        rulings.append(
            Ruling(claim, statement, batching, f"{paper:+.0%}", _percent(here), verdict(paper, here), reason)
        )
    return rulings


def _estimation(runs: pd.DataFrame, setting: str, counter: str) -> list[Ruling]:
    rulings = []
    calibrated = select(runs, **ON)
    bias = calibrated.groupby("category").bias_after.mean().mean()
    ratio = (calibrated.actual_tokens.sum() / calibrated.max_tokens.sum()).item()
    why = (
        f"outputs come to {ratio:.2f} of their base as counted here, and the bias averages {bias:.2f}: "
        + ("calibration has that ratio to learn" if abs(ratio - 1) > CLOSE_TO_ONE else "there is nothing to learn")
        + "; the error that stays is mostly the tiers' safety factors, which no bias can see"
    )
    for claim, statistic, name, paper in (
        ("C1", mean, "MAE", -0.388),
        ("C2", root_mean_square, "RMSE", -0.405),
    ):
        here = relative_change(runs, "abs_error_tokens", statistic, ON, OFF)
        rulings.append(
            Ruling(
                claim,
                f"calibration lowers estimation {name}",
                setting,
                f"{paper:+.1%}",
                _percent(here),
                verdict(paper, here),
                why,
            )
        )
    if counter == "tokenizer":
        here = single(runs, "bias_deviation", mean, ON)
        pinned = (calibrated.output_tokens == calibrated.max_tokens).mean()
        rulings.append(
            Ruling(
                "C6",
                "with tokenizer accounting the bias stays close to 1",
                setting,
                "close to 1",
                f"mean distance {here:.3f}",
                REPRODUCED if here.high < CLOSE_TO_ONE else NOT_REPRODUCED,
                f"{pinned:.0%} of the outputs end at their limit, which is also the base: where all do, the bias is 1 "
                "by construction, whatever characterises the prompt",
            )
        )
    flips = difference(runs, "flip", lambda values: 100 * mean(values), ON, OFF)
    misjudged = [100 * select(runs, **side).misjudged.mean() for side in (OFF, ON)]
    rulings.append(
        Ruling(
            "C7",
            "calibration steadies the job class (flips fall)",
            setting,
            "fewer",
            f"{flips:+.1f} flips in 100 requests",
            REPRODUCED if flips.high < 0 else DIRECTION_ONLY if flips.estimate < 0 else NOT_REPRODUCED,
            "without calibration the class of a category and tier moves only with the prompt's length; a moving bias "
            "can only add flips. What calibration changes is the share misjudged: "
            f"{misjudged[0]:.0f}% without, {misjudged[1]:.0f}% with",
        )
    )
    return rulings


def _scheduler_or_calibration(runs: pd.DataFrame, setting: str, counter: str) -> Ruling:
    sjf, fifo = _settings(runs)
    calibrated = {**SJF, "token_counter": counter}
    sides = (sjf, fifo, calibrated | ON, calibrated | OFF)
    margin = bootstrap(
        runs, "e2e_s", quantile(0.5), sides, lambda s, f, on, off: np.abs(s / f - 1) - np.abs(on / off - 1)
    )
    policy = relative_change(runs, "e2e_s", quantile(0.5), sjf, fifo)
    calibration = relative_change(runs, "e2e_s", quantile(0.5), calibrated | ON, calibrated | OFF)
    return Ruling(
        "C5",
        "the scheduler moves latency more than calibration",
        setting,
        "more",
        f"{100 * margin.estimate:+.1f} points [{100 * margin.low:+.1f}, {100 * margin.high:+.1f}]",
        REPRODUCED if margin.low > 0 else DIRECTION_ONLY if margin.estimate > 0 else NOT_REPRODUCED,
        f"P50 E2E: FIFO to SJF {_percent(policy)}, SJF uncalibrated to calibrated {_percent(calibration)}; one bias a "
        "category rescales all of a category alike, so it seldom changes who is shorter",
    )


def _settings(runs: pd.DataFrame) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """SJF and FIFO in the accounting and calibration that both were run with."""
    fifo = select(runs, **FIFO).iloc[0]
    shared = {"token_counter": fifo.token_counter, "calibration": fifo.calibration}
    return SJF | shared, FIFO | shared


def _percent(interval: Interval) -> str:
    return f"{100 * interval.estimate:+.1f}% [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"
