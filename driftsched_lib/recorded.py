"""What real vLLM made of the project's prompts: lengths to pin in other runs, or to replay through estimators."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import kendalltau

from driftsched_lib import results
from driftsched_lib.drift_lab import replay
from driftsched_lib.estimators import Estimator
from driftsched_lib.params import Params
from driftsched_lib.requests import Request
from driftsched_lib.results import ResultsError
from driftsched_lib.workloads import paper_load, prompt_digest


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
        ResultsError: there is no finished run, or outputs did not end by themselves, or a seed has several runs.
    """
    rows, seeds = [], set()
    for run in results.run_folders(folder):
        manifest = results.load_manifest(run)
        seed, params = manifest["run"]["seed"], manifest["params"]
        if params["output_length"] != "natural" or params.get("recorded_lengths") is not None or seed in seeds:
            raise ResultsError(f"{run}: outputs to record end by themselves, in one run a seed")
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
        As `drift_lab.replays`; a `seed` is a calibrated run of the folder, each of which sampled its outputs anew.

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
                tables.append(table.assign(estimator=name, scenario="paper", seed=run.name))
    return pd.concat(tables, ignore_index=True)


def known_from_the_prompt(lengths: pd.DataFrame) -> pd.Series:
    """MAE and Kendall's tau of one who knows what each prompt came to all the other times: a floor for estimators.

    Sampling makes outputs of one prompt differ, and nothing that is known at admission tells by how much.

    Parameters:
        lengths: of `record_lengths`; a prompt that came once is left out.
    """
    by_prompt = lengths.groupby("prompt_digest").output_tokens
    others = (by_prompt.transform("sum") - lengths.output_tokens) / (by_prompt.transform("count") - 1)
    known = others.notna()
    actual, expected = lengths.output_tokens[known], others[known]
    return pd.Series(
        {"mae_tokens": (expected - actual).abs().mean(), "kendall_tau": kendalltau(expected, actual).statistic}
    )
