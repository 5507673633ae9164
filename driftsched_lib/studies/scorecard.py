"""The paper's claims C1 to C7 (arXiv 2606.02982), ruled on by the runs of a results folder."""

from collections import namedtuple
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from driftsched_lib.experiments import results
from driftsched_lib.experiments.metrics import barrier_waste, estimation_errors, job_classes, latencies, throughput
from driftsched_lib.studies.compare import Interval, bootstrap, mean, quantile, relative_change, rms, select

REPRODUCED, DIRECTION_ONLY, NOT_REPRODUCED = "reproduced", "direction only", "not reproduced"
CLOSE_TO_THE_PAPER = 0.25  # the band around the paper's number, as a share of it
CLOSE_TO_ONE = 0.05  # a bias is close to 1 if its mean distance from 1 is surely below this
CLAIMS = {
    "C1": ("calibration lowers estimation MAE", -0.388),
    "C2": ("calibration lowers estimation RMSE", -0.405),
    "C3": ("SJF lowers P50 E2E against FIFO under sustained contention", -0.42),
    "C4": ("SJF lowers P99 E2E against FIFO under sustained contention", -0.16),
    "C5": ("the scheduler moves latency more than calibration", 1),  # of claims without a number, its sign
    "C6": ("with tokenizer accounting the bias stays close to 1", 0),
    "C7": ("calibration steadies the job class (flips fall)", -1),
}
SIDES = {"C5": "more (by any margin)", "C6": f"close to 1 (within {CLOSE_TO_ONE})", "C7": "fewer (by any number)"}
SJF, FIFO, ON, OFF = {"policy": "sjf"}, {"policy": "fifo"}, {"calibration": True}, {"calibration": False}
Ruling = namedtuple("Ruling", "claim statement setting paper here verdict why")
"""One claim in one setting: the paper's number, the number of these runs, and why it is so."""


def completed_requests(out: str | Path) -> pd.DataFrame:
    """Return the completed requests of a results folder in grid order, with latencies, error and job class."""
    params, speed = results.load_params(out), results.load_speed(out)
    place = {run.name: i for i, run in enumerate(params.runs())}
    requests = results.load(out).sort_values("run", key=lambda names: names.map(place), kind="stable")
    share = (requests.outcome == "completed").groupby([requests.run, requests.phase]).transform("mean")
    done = latencies(requests, speed.idle_ttft_s, speed.idle_tpot_s).assign(completed_share=share)
    done = done.assign(error_tokens=estimation_errors(requests), bias_deviation=(done.bias_after - 1).abs())
    classes = pd.concat([job_classes(run, params.job_class_bounds) for _, run in done.groupby("run")])
    return done.join(classes[["job_class", "flip", "misjudged"]].astype({"flip": float, "misjudged": float}))


def sustained(done: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return the requests under sustained contention and their name: of the phase `stress`, or all if there is none."""
    phases = list(done.phase.unique()) if "phase" in done else ["the run"]
    stressed = "stress" in phases
    return (select(done, phase="stress"), "stress phase") if stressed else (done, f"all of {', '.join(phases)}")


def verdict(paper: float, here: Interval, band: float = CLOSE_TO_THE_PAPER) -> str:
    """Return whether a change is the paper's, surely has its direction, or neither; a wide interval never helps.

    The interval has to exclude zero on the paper's side, the estimate to be within a share, `band`, of the number.
    """
    if not min(here.low * paper, here.high * paper) > 0:
        return NOT_REPRODUCED
    return REPRODUCED if abs(here.estimate - paper) <= band * abs(paper) else DIRECTION_ONLY


def scorecard(done: pd.DataFrame) -> pd.DataFrame:
    """Return a `Ruling` per claim and setting of the first estimator in `completed_requests`, if its runs are there."""
    done = select(done, estimator=done.estimator.iloc[0]).assign(abs_error_tokens=done.error_tokens.abs())
    rulings: list[Ruling] = []
    for batching in done.batching.unique():
        runs = select(done, batching=batching)
        if {"fifo", "sjf"} <= set(runs.policy):
            rulings += _latency(runs, batching)
        for counter in runs.token_counter.unique():
            counted = select(runs, token_counter=counter)
            if select(counted, **SJF).calibration.nunique() == 2:
                rulings += _estimation(select(counted, **SJF), f"{batching}, {counter}")
                if "fifo" in set(counted.policy):
                    rulings.append(_scheduler_or_calibration(runs, f"{batching}, {counter}", counter))
    return pd.DataFrame(rulings, columns=Ruling._fields).sort_values("claim", kind="stable", ignore_index=True)


def changes_against_fifo(done: pd.DataFrame) -> pd.DataFrame:
    """Return relative changes of latency quantiles against FIFO, one row per batching and policy."""
    names, rows = {"e2e_s": "E2E", "ttft_s": "TTFT", "queue_wait_s": "queue wait"}, {}
    for (batching, policy), _ in done[done.policy != "fifo"].groupby(["batching", "policy"], sort=False):
        runs, row = select(done, batching=batching), rows.setdefault((batching, policy), {})
        for (column, name), q in product(names.items(), (0.50, 0.99)):
            row[f"P{100 * q:.0f} {name}"] = relative_change(runs, column, quantile(q), {"policy": policy}, FIFO)
    return pd.DataFrame.from_dict(rows, orient="index")


def _ruling(claim: str, setting: str, here: Interval, why: str, text: str = "{:+.1%}") -> Ruling:
    statement, paper = CLAIMS[claim]
    said = verdict(paper, here, np.inf if claim in SIDES else CLOSE_TO_THE_PAPER)
    if claim == "C6":
        said = REPRODUCED if here.high < CLOSE_TO_ONE else NOT_REPRODUCED
    far, near = (paper * (1 + side * CLOSE_TO_THE_PAPER) for side in (1, -1))
    band = SIDES.get(claim, f"{paper:.1%} (band {far:.1%} to {near:.1%})")
    return Ruling(claim, statement, setting, band, text.format(here), said, why)


def _latency(runs: pd.DataFrame, batching: str) -> list[Ruling]:
    runs, phase = sustained(runs)
    sides = _settings(runs)
    sjf, fifo = (select(runs, **side) for side in sides)
    mixed = [throughput(run) for _, run in runs[runs.policy != "sjf"].groupby("run")]
    varies = f"between runs of the other policies it varies by {np.std(mixed) / np.mean(mixed):.0%}"
    change = f"throughput changes by {throughput(sjf) / throughput(fifo) - 1:+.0%} ({varies})"
    why = f"there is no barrier to save: {change}, and the last requests end when all work is done, in any order"
    if batching == "static":
        slots = f"slots that wait at the barrier go from {barrier_waste(fifo):.0%} to {barrier_waste(sjf):.0%}"
        why = f"SJF makes batches of like lengths: {slots}, {change}"
    p50, p99 = (relative_change(runs, "e2e_s", quantile(q), *sides) for q in (0.50, 0.99))
    short, setting = f"short requests no longer wait behind long ones; {why}", f"{batching}, {phase}"
    return [_ruling("C3", setting, p50, short), _ruling("C4", setting, p99, why)]


def _estimation(runs: pd.DataFrame, setting: str) -> list[Ruling]:
    calibrated = select(runs, **ON)
    bias = calibrated.groupby("category").bias_after.mean().mean()
    ratio = (calibrated.actual_tokens.sum() / calibrated.max_tokens.sum()).item()
    learns = "calibration has that ratio to learn" if abs(ratio - 1) > CLOSE_TO_ONE else "there is nothing to learn"
    why = (
        f"outputs come to {ratio:.2f} of their base as counted here, and the bias averages {bias:.2f}: {learns}; the "
        "error that stays is mostly the tiers' safety factors, which no bias can see"
    )
    mae, rmse = (relative_change(runs, "abs_error_tokens", how, ON, OFF) for how in (mean, rms))
    rulings = [_ruling("C1", setting, mae, why), _ruling("C2", setting, rmse, why)]
    if setting.endswith("tokenizer"):
        here = bootstrap(runs, "bias_deviation", mean, [ON])
        at_limit = (calibrated.output_tokens == calibrated.max_tokens).mean()
        why = (
            f"{at_limit:.0%} of the outputs end at their limit, which is also the base: where all do, the bias is 1 by "
            "construction, whatever characterises the prompt"
        )
        rulings.append(_ruling("C6", setting, here, why, "mean distance {:.3f}"))
    flips = bootstrap(runs, "flip", lambda values: 100 * mean(values), [ON, OFF], lambda on, off: on - off)
    before, after = (100 * select(runs, **side).misjudged.mean() for side in (OFF, ON))
    why = (
        "without calibration the class of a category and tier moves only with the prompt's length; a moving bias can "
        f"only add flips. Calibration changes the share misjudged: {before:.0f}% without, {after:.0f}% with"
    )
    return [*rulings, _ruling("C7", setting, flips, why, "flips in 100 requests {:+.1f}")]


def _scheduler_or_calibration(runs: pd.DataFrame, setting: str, counter: str) -> Ruling:
    (sjf, fifo), median = _settings(runs), quantile(0.5)
    on, off = ({**SJF, "token_counter": counter} | side for side in (ON, OFF))
    sides = sjf, fifo, on, off
    margin = bootstrap(runs, "e2e_s", median, sides, lambda s, f, on, off: 100 * (abs(s / f - 1) - abs(on / off - 1)))
    policy, calibration = (relative_change(runs, "e2e_s", median, *sides) for sides in ((sjf, fifo), (on, off)))
    why = (
        f"P50 E2E over all phases: FIFO to SJF {policy:+.1%}, SJF uncalibrated to calibrated {calibration:+.1%}; one "
        "bias per category rescales all of a category alike, so it seldom changes who is shorter"
    )
    return _ruling("C5", setting, margin, why, "points {:+.1f}")


def _settings(runs: pd.DataFrame) -> tuple[dict[str, object], dict[str, object]]:
    """Return SJF and FIFO in the accounting and calibration that both were run with."""
    shared = select(runs, **FIFO)[["token_counter", "calibration"]].iloc[0].to_dict()
    return SJF | shared, FIFO | shared
