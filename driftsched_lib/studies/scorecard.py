"""The paper's claims C1 to C7 (arXiv 2606.02982), ruled on by the runs of a results folder."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from driftsched_lib.experiments import results
from driftsched_lib.experiments.metrics import busy_s, estimation_errors, job_classes, latencies
from driftsched_lib.studies.compare import (
    Interval,
    bootstrap,
    mean,
    quantile,
    relative_change,
    root_mean_square,
    select,
)

REPRODUCED, DIRECTION_ONLY, NOT_REPRODUCED = "reproduced", "direction only", "not reproduced"
CLOSE_TO_THE_PAPER = 0.25
"""A change within this share of the paper's number counts as that number, or one whose interval holds it."""
CLOSE_TO_ONE = 0.05
"""A bias is close to 1 if its mean distance from 1 is surely below this."""
SJF, FIFO, ON, OFF = {"policy": "sjf"}, {"policy": "fifo"}, {"calibration": True}, {"calibration": False}


class Ruling(NamedTuple):
    """One claim in one setting: the paper's number, the number of these runs, and why it is so."""

    claim: str
    statement: str
    setting: str
    paper: str
    here: str
    verdict: str
    why: str


def completed_requests(out: str | Path) -> pd.DataFrame:
    """Return the completed requests of a results folder in grid order, with latencies, error and job class."""
    params, speed = results.load_params(out), results.load_speed(out)
    place = {run.name: i for i, run in enumerate(params.runs())}
    requests = results.load(out).sort_values("run", key=lambda names: names.map(place), kind="stable")
    done = latencies(requests, speed.idle_ttft_s, speed.idle_tpot_s)
    done = done.assign(error_tokens=estimation_errors(requests), bias_deviation=(done.bias_after - 1).abs())
    classes = pd.concat([job_classes(run, params.job_class_bounds) for _, run in done.groupby("run")])
    return done.join(classes[["job_class", "flip", "misjudged"]].astype({"flip": float, "misjudged": float}))


def verdict(paper: float, here: Interval) -> str:
    """Return whether a change is the paper's, surely has its direction, or neither."""
    if here.low * paper <= 0 or here.high * paper <= 0:
        return NOT_REPRODUCED
    close = abs(here.estimate - paper) <= CLOSE_TO_THE_PAPER * abs(paper) or here.low <= paper <= here.high
    return REPRODUCED if close else DIRECTION_ONLY


def scorecard(done: pd.DataFrame) -> pd.DataFrame:
    """Return one row per claim and setting, without the claims whose runs are missing.

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
            counted, setting = select(runs, token_counter=counter), f"{batching}, {counter}"
            if select(counted, **SJF).calibration.nunique() == 2:
                rulings += _estimation(select(counted, **SJF), setting, counter)
                if "fifo" in set(counted.policy):
                    rulings.append(_scheduler_or_calibration(runs, setting, counter))
    return pd.DataFrame(rulings, columns=Ruling._fields).sort_values("claim", kind="stable", ignore_index=True)


def changes_against_fifo(done: pd.DataFrame) -> pd.DataFrame:
    """Return relative changes of latency quantiles against FIFO, one row per batching and policy."""
    names = {"e2e_s": "E2E", "ttft_s": "TTFT", "queue_wait_s": "queue wait"}
    rows = {}
    for (batching, policy), _ in done[done.policy != "fifo"].groupby(["batching", "policy"], sort=False):
        sides = (select(done, batching=batching), {"policy": policy}, FIFO)
        rows[batching, policy] = {
            f"P{100 * q:.0f} {name}": relative_change(sides[0], column, quantile(q), *sides[1:])
            for column, name in names.items()
            for q in (0.50, 0.99)
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def barrier_waste(runs: pd.DataFrame) -> float:
    """Return the share of the slots of static batches that wait, finished, for the longest of their batch."""
    batches = runs.groupby(["run", "phase", "batch_id"]).output_tokens
    return float(1 - runs.output_tokens.sum() / (batches.size() * batches.max()).sum())


def throughput(runs: pd.DataFrame) -> float:
    """Return output tokens per second while anything was in the system, averaged over runs."""
    return float(np.mean([run.output_tokens.sum() / busy_s(run) for _, run in runs.groupby("run")]))


def _latency(runs: pd.DataFrame, batching: str) -> list[Ruling]:
    sides = _settings(runs)
    sjf, fifo = (select(runs, **side) for side in sides)
    mixed = [throughput(run) for _, run in runs[runs.policy != "sjf"].groupby("run")]
    change = (
        f"throughput changes by {throughput(sjf) / throughput(fifo) - 1:+.0%} (between runs of the other policies it "
        f"varies by {np.std(mixed) / np.mean(mixed):.0%})"
    )
    why = f"there is no barrier to save: {change}, and the last requests end when all work is done, in any order"
    if batching == "static":
        why = (
            f"SJF makes batches of like lengths: slots that wait at the barrier go from {barrier_waste(fifo):.0%} to "
            f"{barrier_waste(sjf):.0%}, {change}"
        )
    rulings = []
    for claim, q, paper, reason in (
        ("C3", 0.50, -0.42, f"short requests no longer wait behind long ones; {why}"),
        ("C4", 0.99, -0.16, why),
    ):
        here = relative_change(runs, "e2e_s", quantile(q), *sides)
        statement, sides_of = f"SJF lowers P{q * 100:.0f} E2E against FIFO", (f"{paper:+.0%}", _percent(here))
        rulings.append(Ruling(claim, statement, batching, *sides_of, verdict(paper, here), reason))
    return rulings


def _estimation(runs: pd.DataFrame, setting: str, counter: str) -> list[Ruling]:
    calibrated, rulings = select(runs, **ON), []
    bias = calibrated.groupby("category").bias_after.mean().mean()
    ratio = (calibrated.actual_tokens.sum() / calibrated.max_tokens.sum()).item()
    learns = "calibration has that ratio to learn" if abs(ratio - 1) > CLOSE_TO_ONE else "there is nothing to learn"
    why = (
        f"outputs come to {ratio:.2f} of their base as counted here, and the bias averages {bias:.2f}: {learns}; the "
        "error that stays is mostly the tiers' safety factors, which no bias can see"
    )
    for claim, statistic, name, paper in (("C1", mean, "MAE", -0.388), ("C2", root_mean_square, "RMSE", -0.405)):
        here = relative_change(runs, "abs_error_tokens", statistic, ON, OFF)
        statement, sides = f"calibration lowers estimation {name}", (f"{paper:+.1%}", _percent(here))
        rulings.append(Ruling(claim, statement, setting, *sides, verdict(paper, here), why))
    if counter == "tokenizer":
        here = bootstrap(runs, "bias_deviation", mean, [ON])
        said = REPRODUCED if here.high < CLOSE_TO_ONE else NOT_REPRODUCED
        why = (
            f"{(calibrated.output_tokens == calibrated.max_tokens).mean():.0%} of the outputs end at their limit, which "
            "is also the base: where all do, the bias is 1 by construction, whatever characterises the prompt"
        )
        statement = "with tokenizer accounting the bias stays close to 1"
        rulings.append(Ruling("C6", statement, setting, "close to 1", f"mean distance {here:.3f}", said, why))
    flips = bootstrap(runs, "flip", lambda values: 100 * mean(values), [ON, OFF], lambda on, off: on - off)
    before, after = (100 * select(runs, **side).misjudged.mean() for side in (OFF, ON))
    why = (
        "without calibration the class of a category and tier moves only with the prompt's length; a moving bias can "
        f"only add flips. Calibration changes the share misjudged: {before:.0f}% without, {after:.0f}% with"
    )
    statement, here = "calibration steadies the job class (flips fall)", f"{flips:+.1f} flips in 100 requests"
    said = _direction(-flips.estimate, -flips.high)
    return [*rulings, Ruling("C7", statement, setting, "fewer", here, said, why)]


def _scheduler_or_calibration(runs: pd.DataFrame, setting: str, counter: str) -> Ruling:
    sjf, fifo = _settings(runs)
    on, off = ({**SJF, "token_counter": counter} | side for side in (ON, OFF))
    median = quantile(0.5)
    margin = bootstrap(
        runs, "e2e_s", median, (sjf, fifo, on, off), lambda s, f, on, off: np.abs(s / f - 1) - np.abs(on / off - 1)
    )
    policy, calibration = (relative_change(runs, "e2e_s", median, *sides) for sides in ((sjf, fifo), (on, off)))
    why = (
        f"P50 E2E: FIFO to SJF {_percent(policy)}, SJF uncalibrated to calibrated {_percent(calibration)}; one bias per "
        "category rescales all of a category alike, so it seldom changes who is shorter"
    )
    statement = "the scheduler moves latency more than calibration"
    here = _percent(margin).replace("%", " points")
    return Ruling("C5", statement, setting, "more", here, _direction(margin.estimate, margin.low), why)


def _direction(estimate: float, bound: float) -> str:
    return REPRODUCED if bound > 0 else DIRECTION_ONLY if estimate > 0 else NOT_REPRODUCED


def _settings(runs: pd.DataFrame) -> tuple[dict[str, object], dict[str, object]]:
    """Return SJF and FIFO in the accounting and calibration that both were run with."""
    fifo = select(runs, **FIFO).iloc[0]
    shared = {"token_counter": fifo.token_counter, "calibration": fifo.calibration}
    return SJF | shared, FIFO | shared


def _percent(interval: Interval) -> str:
    return f"{100 * interval.estimate:+.1f}% [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"
