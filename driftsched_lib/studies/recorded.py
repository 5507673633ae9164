"""Output lengths of real vLLM on the project's prompts: to fix in other runs, or to replay through estimators."""

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd

from driftsched_lib.classify import TextClassifier
from driftsched_lib.engines.load import load_engine
from driftsched_lib.errors import ParamsError
from driftsched_lib.estimators import Estimator, Regression
from driftsched_lib.experiments import results
from driftsched_lib.experiments.grid import run_grid
from driftsched_lib.experiments.params import Params
from driftsched_lib.experiments.run import requests_of, serve_run
from driftsched_lib.experiments.speed import warm_up
from driftsched_lib.requests import Request
from driftsched_lib.studies.drift_lab import COLUMNS, accuracy, replay
from driftsched_lib.studies.frontier import frontier, measures
from driftsched_lib.workloads.synthetic import prompt_digest, recorded_lengths


def completed(run: results.StoredRun, params: Params) -> list[tuple[Request, Any]]:
    """Return the completed requests of a run, made anew since records hold no prompts, with their records."""
    setting, records = run.manifest["run"], run.table("requests").query("outcome == 'completed'")
    offered = requests_of(params, setting["seed"], run.speed.capacity_tokens_per_s, setting.get("rate", 1.0))
    known = {record.request_id: record for record in records.itertuples()}
    return [(request, known[request.request_id]) for request in offered if request.request_id in known]


def record_lengths(out: str | Path) -> pd.DataFrame:
    """Return the natural output lengths of a results folder, for `workload.recorded_lengths`, one row per request.

    Raises ParamsError if outputs did not end by themselves, or a seed has several runs.
    """
    params, runs = results.load_params(out), results.runs(out)
    seeds = [run.manifest["run"]["seed"] for run in runs]
    if not params.workload.ends_by_itself or len(set(seeds)) < len(runs):
        raise ParamsError(f"{out}: outputs to record end by themselves, in one run per seed")
    rows = []
    for seed, run in zip(seeds, runs, strict=True):
        for request, record in completed(run, params):
            rows.append((seed, int(request.request_id), int(record.output_tokens), prompt_digest(request)))
    return pd.DataFrame(rows, columns=["seed", "request_id", "output_tokens", "prompt_digest"])


def paper_protocol(
    out: str | Path, estimators: Mapping[str, Callable[..., Estimator]], delay: int, max_runs: int
) -> pd.DataFrame:
    """Return `drift_lab.replays` on the outputs of real vLLM in calibrated runs with whitespace accounting, with `run`.

    An estimator is made from `base_tokens`.  Each run sampled its outputs anew; runs of one seed had the same requests.
    """
    params, tables, settings = results.load_params(out), [], {"token_counter": "whitespace", "calibration": True}
    runs = [run for run in results.runs(out) if settings.items() <= run.manifest["run"].items()]
    for run in runs[:max_runs]:
        requests, records = zip(*completed(run, params), strict=True)
        for request, record in zip(requests, records, strict=True):
            request.category, request.input_tokens = record.category, record.input_tokens
        lengths, of = [int(record.actual_tokens) for record in records], {"seed": run.manifest["run"]["seed"]}
        for name, make in estimators.items():
            table = replay(make(base_tokens=params.workload.max_tokens), requests, lengths, delay)
            tables.append(table.assign(estimator=name, scenario="paper", run=run.name, **of))
    return pd.concat(tables, ignore_index=True)


def known_from_the_prompt(lengths: pd.DataFrame) -> pd.Series:
    """Return MAE, Kendall's tau and share of the variance explained by the mean of a prompt's other outputs.

    A floor for estimators: sampling makes outputs of one prompt differ, and nothing known at admission tells how.
    """
    by_prompt = lengths.groupby("prompt_digest").output_tokens
    others = (by_prompt.transform("sum") - lengths.output_tokens) / (by_prompt.transform("count") - 1)
    known = pd.DataFrame({"estimated_tokens": others, "actual_tokens": lengths.output_tokens}).dropna()
    found = accuracy(known.assign(low_tokens=float("nan"), high_tokens=float("nan")))
    found["variance_explained"] = 1 - found.rmse_tokens**2 / known.actual_tokens.var(ddof=0)
    return found[["mae_tokens", "kendall_tau", "variance_explained"]]


def served_warm(params: Params, speed: results.EngineSpeed, make: Callable[..., Estimator], seeds=3) -> pd.DataFrame:
    """Return one row of `worth` per seed for an estimator that has learnt from the next recorded `seeds`.

    So has an estimator whose state is kept from one start to the next.  It is made from `base_tokens`.
    """
    known = recorded_lengths(str(params.workload.recorded_lengths))
    order, classifier, rows = sorted(known), TextClassifier(), []
    with closing(load_engine(params.engine, length_scale=params.workload.length_scale)) as engine:
        warm_up(params, engine)
        for run in params.policy_runs():
            estimator, place = make(base_tokens=params.workload.max_tokens), order.index(run.seed)
            for other in (order[place + 1 :] + order[:place])[:seeds]:
                for request in requests_of(params, other):
                    request.category = classifier.classify(request.prompt)
                    request.input_tokens = engine.count_tokens(request.prompt)
                    estimator.observe(request, known[other][request.request_id][0])
            served = serve_run(params, run, engine, speed, estimator=estimator)[0]["requests"]
            rows.append({"seed": run.seed} | measures(served, speed, params.tiers) | dict(judged(served)))
    return pd.DataFrame(rows)


def judged(requests: pd.DataFrame) -> pd.Series:
    """Return `accuracy` of a run's estimates, as given at admission, without its first quarter."""
    late = requests[(requests.outcome == "completed") & (requests.request_id.astype(int) >= len(requests) // 4)]
    given = ["estimated_tokens", "actual_tokens", "estimated_low_tokens", "estimated_high_tokens"]
    return accuracy(late[given].astype(float).set_axis(COLUMNS[2:6], axis=1))


def worth(params: Params, out: str | Path) -> pd.DataFrame:
    """Serve a grid; return `frontier` with `judged`, and rows of a warm regression if lengths are recorded."""
    run_grid(params, out)
    by_run = results.load(out).groupby(["estimator", "seed"])
    runs = frontier(out).merge(by_run.apply(judged, include_groups=False).reset_index())
    if params.workload.recorded_lengths is None:
        return runs
    warm = served_warm(params, results.load_speed(out), Regression)
    return pd.concat([runs, warm.assign(estimator="regression, warm")], ignore_index=True)
