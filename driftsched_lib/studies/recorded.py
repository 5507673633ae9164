"""What real vLLM made of the project's prompts: lengths to pin in other runs, or to replay through estimators."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import kendalltau

from driftsched_lib.errors import DriftSchedError
from driftsched_lib.estimators import Estimator
from driftsched_lib.experiments import results
from driftsched_lib.experiments.engine import load_engine, warm_up
from driftsched_lib.experiments.params import Params
from driftsched_lib.experiments.results import EngineSpeed
from driftsched_lib.experiments.run import serve_run
from driftsched_lib.requests import Estimate, Request
from driftsched_lib.studies.drift_lab import replay
from driftsched_lib.studies.frontier import measures
from driftsched_lib.validation import in_project
from driftsched_lib.workloads.synthetic import paper_load, prompt_digest, recorded_lengths
from driftsched_lib.workloads.text_classifier import TextClassifier


def offered(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Request]:
    """The requests that a run was given, by id, made anew from its manifest: its records hold no prompts."""
    params, run = Params.parse(manifest["params"], f"{folder}/manifest.json"), manifest["run"]
    loads = paper_load(params, run["seed"], manifest["engine_speed"]["capacity_tokens_per_s"], run.get("rate", 1.0))
    return {request.request_id: request for load in loads for request in load.requests}


def record_lengths(folder: str | Path) -> pd.DataFrame:
    """What the natural outputs of a results folder came to, for `recorded_lengths` in the parameters.

    Returns:
        Columns `seed`, `request_id`, `output_tokens`, `prompt_digest`, a row a completed request.

    Raises:
        DriftSchedError: there is no finished run, or outputs did not end by themselves, or a seed has several runs.
    """
    rows, seeds = [], set()
    for run in results.run_folders(folder):
        manifest = results.load_manifest(run)
        seed, params = manifest["run"]["seed"], manifest["params"]
        if params["output_length"] != "natural" or params.get("recorded_lengths") is not None or seed in seeds:
            raise DriftSchedError(f"{run}: outputs to record end by themselves, in one run a seed")
        seeds.add(seed)
        requests = offered(run, manifest)
        done = results.read_table(run, "requests").query("outcome == 'completed'")
        for row in done.itertuples():
            digest = prompt_digest(requests[row.request_id])
            rows.append((seed, int(row.request_id), int(row.output_tokens), digest))
    return pd.DataFrame(rows, columns=["seed", "request_id", "output_tokens", "prompt_digest"])


def recorded_load(records: pd.DataFrame, offered: Mapping[str, Request]) -> tuple[list[Request], list[int]]:
    """The completed requests of a run, in order of arrival in each phase, and what they came to in its accounting.

    Parameters:
        records: the run's `requests.parquet`.
        offered: what the run was given, by request id.
    """
    done = records[records.outcome == "completed"]
    done = done.loc[done.request_id.astype(int).sort_values().index]
    requests = []
    for row in done.itertuples():
        request = offered[row.request_id]
        request.category, request.input_tokens = row.category, row.input_tokens
        requests.append(request)
    return requests, done.actual_tokens.astype(int).tolist()


def paper_protocol(
    folder: str | Path, estimators: Mapping[str, Callable[..., Estimator]], delay: int, most_runs: int
) -> pd.DataFrame:
    """Estimators on what real vLLM generated under the paper's protocol with whitespace accounting.

    Returns:
        As `drift_lab.replays`, with `run`, of calibrated runs of the folder: each sampled its outputs anew, but those
        of one `seed` served the same requests.

    Parameters:
        estimators: by name, what makes one from `base_tokens`.
        delay: as of `drift_lab.replay`.
    """
    tables = []
    for run in results.run_folders(folder):
        manifest = results.load_manifest(run)
        setting = manifest["run"]
        if setting["token_counter"] == "whitespace" and setting["calibration"] and most_runs > 0:
            most_runs -= 1
            base_tokens = Params.parse(manifest["params"], f"{run}/manifest.json").max_tokens
            requests, lengths = recorded_load(results.read_table(run, "requests"), offered(run, manifest))
            for name, make in estimators.items():
                table = replay(make(base_tokens=base_tokens), requests, lengths, delay)
                tables.append(table.assign(estimator=name, scenario="paper", seed=setting["seed"], run=run.name))
    return pd.concat(tables, ignore_index=True)


def mean_of_the_others(lengths: pd.DataFrame) -> pd.Series:
    """For each output, the mean of all other outputs of the same prompt (tokens); NaN where there are none.

    Parameters:
        lengths: of `record_lengths`.
    """
    by_prompt = lengths.groupby("prompt_digest").output_tokens
    return (by_prompt.transform("sum") - lengths.output_tokens) / (by_prompt.transform("count") - 1)


def known_from_the_prompt(lengths: pd.DataFrame) -> pd.Series:
    """MAE, Kendall's tau and share of the variance explained of one who knows what each prompt came to all the other
    times: a floor for estimators.

    Sampling makes outputs of one prompt differ, and nothing that is known at admission tells by how much.

    Parameters:
        lengths: of `record_lengths`; a prompt that came once is left out.
    """
    others = mean_of_the_others(lengths)
    known = others.notna()
    actual, expected = lengths.output_tokens[known], others[known]
    return pd.Series(
        {
            "mae_tokens": (expected - actual).abs().mean(),
            "kendall_tau": kendalltau(expected, actual).statistic,
            "variance_explained": 1 - ((expected - actual) ** 2).mean() / actual.var(ddof=0),
        }
    )


class PromptMean:
    """Knows what each prompt came to all the other times, and nothing of this one: what no estimator can beat by much.

    Parameters:
        expected: tokens by request id, of `mean_of_the_others`; a prompt that came once is taken for its limit.
    """

    state_ = None

    def __init__(self, expected: Mapping[str, float]):
        self.expected = expected

    def estimate(self, request: Request) -> Estimate:
        expected = self.expected[request.request_id]
        length = request.max_tokens if isnan(expected) else max(1, round(expected))
        return Estimate(length, request.input_tokens + length, 1.0, length)

    def observe(self, request: Request, output_tokens: int) -> None:
        """There is nothing to learn."""


EstimatorOf = Callable[[int, Callable[[str], int]], Estimator]
"""Makes the estimator for a seed, given what counts a prompt's tokens."""


def prompt_means(params: Params) -> EstimatorOf:
    """Those who know from the recorded lengths what each prompt came to all the other times.

    Parameters:
        params: with recorded lengths.
    """
    lengths = pd.read_parquet(in_project(str(params.recorded_lengths)))
    lengths = lengths.assign(expected=mean_of_the_others(lengths))

    def of(seed: int, count_tokens: Callable[[str], int]) -> PromptMean:
        own = lengths[lengths.seed == seed]
        return PromptMean(dict(zip(own.request_id.astype(str), own.expected, strict=True)))

    return of


def warmed(params: Params, make: Callable[..., Estimator], runs: int = 3) -> EstimatorOf:
    """Estimators that have learnt from the recorded outputs of other seeds, as one does that is kept from one start to
    the next.

    Parameters:
        params: with recorded lengths.
        make: makes an estimator from `base_tokens`.
        runs: how many other seeds, those that come next in the recording.
    """
    known, classifier = recorded_lengths(str(params.recorded_lengths)), TextClassifier()
    seeds = sorted(known)

    def of(seed: int, count_tokens: Callable[[str], int]) -> Estimator:
        estimator, place = make(base_tokens=params.max_tokens), seeds.index(seed)
        for other in (seeds[place + 1 :] + seeds[:place])[:runs]:
            for load in paper_load(params, other, capacity_tokens_per_s=1.0):
                for request in load.requests:
                    request.category = classifier.classify(request.prompt)
                    request.input_tokens = count_tokens(request.prompt)
                    estimator.observe(request, known[other][request.request_id][0])
        return estimator

    return of


def served_with(params: Params, speed: EngineSpeed, name: str, estimator_of: EstimatorOf) -> pd.DataFrame:
    """`frontier.measures` of a policy on estimators that the parameters cannot name, a row a seed, beside the runs that
    have the same parameters.

    Parameters:
        params: of one policy, batching and rate, at recorded lengths counted by the tokenizer.
        speed: as the results folder of those runs has it.
        name: what `estimator` is called in the rows.
    """
    rows = []
    with closing(load_engine(params)) as engine:
        warm_up(params, engine)
        for run in params.policy_runs():
            estimator = estimator_of(run.seed, engine.count_tokens)
            tables, _ = serve_run(params, run, engine, speed, estimator=estimator)
            rows.append({"seed": run.seed, "estimator": name} | measures(tables["requests"], speed))
    return pd.DataFrame(rows)


def natural_loads(params_file: str | Path, scenario: str, seeds: Iterable[int]) -> Iterator[list[Request]]:
    """The requests whose natural outputs were recorded under a scenario, in the order of their ids, seed by seed."""
    params = Params.load(params_file).model_dump()
    params["workload"]["drift"] = scenario
    for seed in seeds:
        loads = paper_load(Params.parse(params, str(params_file)), int(seed), capacity_tokens_per_s=1.0)
        yield [request for load in loads for request in load.requests]
