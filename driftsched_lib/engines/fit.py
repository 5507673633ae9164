"""From a finished run to the profile of the engine that served it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from driftsched_lib.engines.profile import EngineLimits, FitError, Profile, Provenance, StepCost
from driftsched_lib.errors import ParamsError
from driftsched_lib.experiments import results
from driftsched_lib.experiments.params import Params
from driftsched_lib.workloads.synthetic import paper_load

HUBER = 1.345
"""Residuals beyond this many robust standard deviations lose weight (95% efficiency under a normal; Huber 1964)."""
NUMBERS = (*range(1, 9), 12, 16, 24, *range(32, 257, 16), 384, 512, 768, 1024)
"""Of decoding sequences, for which a cost of their own is fitted where enough iterations held about as many."""
MIN_ITERATIONS = 20


def iterations(steps: pd.DataFrame, requests: pd.DataFrame, launch_bound: bool = False) -> pd.DataFrame:
    """What each iteration of a run held and how long it took, a row for each row of `steps`.

    An iteration lasts from the end of the one before it, or, where that left the engine empty, from the dispatch that
    ended the idleness.  A sequence makes a token in every iteration from its first token on, so its context is known
    in each.

    An engine that is launch-bound launches the next iteration in that time.  The time is then the next one's, and that
    of the first two after idleness is both's: they are left out.

    Parameters:
        steps, requests: the tables of a run's folder.
        launch_bound: of the engine's profile.

    Returns:
        Columns `seconds`, `prefill_steps` (one where a prompt is computed), `prompts`, `prefill_tokens`, `decode_seqs`,
        `context_tokens`.

    Raises:
        ValueError: sequences were preempted, so that contexts cannot be told.
    """
    if steps.preemptions.any():
        raise ValueError("contexts cannot be told from a run with preemptions: fit a run that had KV cache to spare")
    ends = steps.time_s.to_numpy()
    starts = np.concatenate([[0.0], ends[:-1]])
    was_empty = np.concatenate([[True], steps.running.to_numpy()[:-1] == 0])
    dispatches = np.sort(requests.dispatch_s.dropna().to_numpy(float))
    first_dispatch = dispatches[np.searchsorted(dispatches, starts).clip(max=len(dispatches) - 1)]

    done = requests[requests.outcome == "completed"]
    prompts, outputs = (done[column].to_numpy(int) for column in ("prompt_tokens", "output_tokens"))
    first = np.searchsorted(ends, done.first_token_s.to_numpy(float))
    last = first + outputs - 1
    n = len(steps)
    decoding, context = np.zeros(n + 1), np.zeros(n + 1)  # by their differences from row to row
    np.add.at(decoding, (first + 1).clip(max=n), 1)
    np.add.at(decoding, (last + 1).clip(max=n), -1)
    np.add.at(context, (first + 1).clip(max=n), prompts)
    np.add.at(context, (last + 1).clip(max=n), -(prompts + outputs - 1))
    decode_seqs = decoding.cumsum()[:n]
    seconds = ends - np.where(was_empty, first_dispatch, starts)
    if launch_bound:
        seconds = np.concatenate([[np.nan], np.where(was_empty, np.nan, seconds)[:-1]])
        seconds[was_empty] = np.nan
    held = pd.DataFrame(
        {
            "seconds": seconds,
            "prefill_steps": (steps.prompt_tokens > 0).astype(float),
            "prompts": steps.prompt_requests,
            "prefill_tokens": steps.prompt_tokens,
            "decode_seqs": steps.output_requests,
            "context_tokens": (context[:n] + decode_seqs).cumsum(),
        }
    )
    return held.dropna(subset="seconds")


def seen_by_clients(requests: pd.DataFrame) -> pd.DataFrame:
    """What a server's iterations held on average while it decoded a request, and how long one took, a row a request.

    Its iterations are not seen from outside, but every one of them gives each decoding sequence a token.  So a request
    of n tokens lasts n - 1 iterations from its first token to its last, in which the other requests' times say what
    else was decoded and whose prompts were computed.

    Parameters:
        requests: of a run whose requests did not wait inside the server.

    Returns:
        As `iterations`; `seconds` and all else are means over a request's iterations.
    """
    done = requests[(requests.outcome == "completed") & (requests.output_tokens > 1)]
    done = done[done.finish_s > done.first_token_s]
    first, last = done.first_token_s.to_numpy(float), done.finish_s.to_numpy(float)
    prompts, made = done.prompt_tokens.to_numpy(float), done.output_tokens.to_numpy(float) - 1
    n, paces = len(done), made / (last - first)
    # Sequences, and the tokens they attend to, are straight lines from one beginning or end to the next.
    changes = pd.DataFrame(
        {
            "at": np.concatenate([first, last]),
            "seqs": np.repeat([1.0, -1.0], n),
            "context": np.concatenate([prompts + 1, -(prompts + 1 + made)]),
            "pace": np.concatenate([paces, -paces]),
        }
    ).sort_values("at", kind="stable")
    at, seqs, pace = changes["at"].to_numpy(), changes.seqs.cumsum().to_numpy(), changes.pace.cumsum().to_numpy()
    gaps = np.diff(at, append=at[-1:])
    context = changes.context.cumsum().to_numpy() + np.concatenate([[0.0], (pace * gaps)[:-1].cumsum()])
    areas = {"decode_seqs": seqs * gaps, "context_tokens": context * gaps + pace * gaps**2 / 2}
    begun = requests[requests.first_token_s.notna()].sort_values("first_token_s")
    computed = np.concatenate([[0.0], begun.prompt_tokens.to_numpy(float).cumsum()])
    since, until = (np.searchsorted(begun.first_token_s.to_numpy(float), ends, "right") for ends in (first, last))
    begins, ends = (np.searchsorted(at, times) for times in (first, last))
    return pd.DataFrame(
        {
            "seconds": (last - first) / made,
            "prefill_steps": ((until - since) / made).clip(max=1.0),
            "prompts": (until - since) / made,
            "prefill_tokens": (computed[until] - computed[since]) / made,
        }
        | {
            name: np.diff(np.concatenate([[0.0], area.cumsum()])[[begins, ends]], axis=0)[0] / (last - first)
            for name, area in areas.items()
        }
    )


def fit_costs(held: pd.DataFrame) -> tuple[StepCost, FitError]:
    """Non-negative least squares of an iteration's seconds on what it held, reweighted by Huber's weights so that
    neither a garbage collection nor another process decides which cost is how large.

    Such slow iterations happen all the same, and a request waits for the sum: all costs are then scaled so that the
    predicted seconds add up to the measured.

    Parameters:
        held: as `iterations` or `seen_by_clients` returns.

    Raises:
        ValueError: the iterations are too few, or too noisy.
    """
    numbers = _numbers(held.decode_seqs.to_numpy())
    if not numbers:
        raise ValueError(f"{len(held)} iterations are too few: {MIN_ITERATIONS} must decode about as many sequences")
    measured = held.seconds.to_numpy()
    singles = held[["prefill_steps", "prompts", "prefill_tokens", "context_tokens"]].to_numpy(float)
    design = np.column_stack([np.ones(len(held)), singles, _shares(held.decode_seqs.to_numpy(), numbers)])
    scale = design.max(axis=0).clip(min=1.0)  # columns of one size: nnls has an absolute tolerance
    weights = np.ones(len(held))
    for _ in range(50):
        root = np.sqrt(weights)
        costs = nnls(design / scale * root[:, None], measured * root)[0] / scale
        residuals = np.abs(measured - design @ costs)
        width = HUBER * np.median(residuals) / 0.6745
        weights = width / np.maximum(residuals, width) if width > 0 else np.ones(len(held))
    nothing = 1e-3 * np.median(measured)
    if costs[0] <= nothing:
        # Where about as many sequences decode all the time, noise may give them all that an iteration costs anyway.
        least = costs[5:].min()
        costs[0], costs[5:] = costs[0] + least, costs[5:] - least
    if costs[0] <= nothing:
        raise ValueError("its iterations do not tell what one costs: serve more requests, or on a quieter machine")
    slowdown = measured.sum() / (design @ costs).sum()
    base, per_step, per_prompt, per_token, per_context, *decode = map(float, costs * slowdown)
    step = StepCost(
        base_s=base,
        per_prefill_step_s=per_step,
        per_prompt_s=per_prompt,
        per_prefill_token_s=per_token,
        decode_s=dict(zip(numbers, decode, strict=True)),
        per_context_token_s=per_context,
    )
    predicted = predicted_s(held, step)
    return step, FitError(
        iterations=len(held),
        median_relative_error=float(np.median(np.abs(predicted - measured) / measured)),
        slow_share=float(1 - 1 / slowdown),
        r2=float(1 - ((measured - predicted) ** 2).sum() / ((measured - measured.mean()) ** 2).sum()),
    )


def _numbers(decode_seqs: np.ndarray) -> list[int]:
    """Those of `NUMBERS` that are the nearest for enough iterations."""
    nearest = np.abs(np.subtract.outer(decode_seqs[decode_seqs > 0], NUMBERS)).argmin(axis=1)
    counts = np.bincount(nearest, minlength=len(NUMBERS))
    return [number for number, count in zip(NUMBERS, counts, strict=True) if count >= MIN_ITERATIONS]


def _shares(decode_seqs: np.ndarray, numbers: Sequence[int]) -> np.ndarray:
    """How much of the cost of each of the numbers an iteration has, a row an iteration (see `StepCost.decode_s`)."""
    shares = [np.interp(decode_seqs, (0, *numbers), row) for row in np.eye(len(numbers) + 1)[1:]]
    shares[-1] = np.where(decode_seqs > numbers[-1], decode_seqs / numbers[-1], shares[-1])
    return np.column_stack(shares)


def predicted_s(held: pd.DataFrame, step: StepCost) -> np.ndarray:
    """Seconds that iterations take by these costs.

    Parameters:
        held: as `iterations` returns.
    """
    return (
        held.decode_seqs.map(step.decoding_s)
        + held.prefill_steps * step.per_prefill_step_s
        + held.prompts * step.per_prompt_s
        + held.prefill_tokens * step.per_prefill_token_s
        + held.context_tokens * step.per_context_token_s
    ).to_numpy()


def profile_of_run(folder: str | Path) -> Profile:
    """The profile of the engine that served a finished run.

    Raises:
        ParamsError: the folder holds no finished run, or one whose costs cannot be told.
    """
    folder = Path(folder)
    if not results.is_complete(folder):
        raise ParamsError(f"{folder}: holds no finished run, it has no manifest.json")
    manifest = results.load_manifest(folder)
    try:
        steps, requests = (pd.read_parquet(folder / f"{table}.parquet") for table in ("steps", "requests"))
        served = manifest["run"]["engine"] == "server"
        if steps.empty and not served:
            raise ValueError("the run kept no steps")
        if manifest["engine_limits"] is None:
            raise ValueError("its server does not tell its limits, as vLLM's does")
        limits = EngineLimits(**manifest["engine_limits"])
        launch_bound = False
        step, error = fit_costs(seen_by_clients(requests) if served else iterations(steps, requests))
        if limits.async_scheduling:
            launched = fit_costs(iterations(steps, requests, launch_bound=True))
            if launch_bound := launched[1].median_relative_error < error.median_relative_error:
                step, error = launched
    except (OSError, ValueError, KeyError) as error:
        raise ParamsError(f"{folder}: no profile can be fitted: {error}") from error
    done = requests[requests.outcome == "completed"]
    counts_words = manifest["run"]["token_counter"] == "whitespace"
    prompts = prompt_words(Params.parse(manifest["params"], str(folder)), manifest["run"]["seed"])
    return Profile(
        step=step,
        limits=limits,
        tokens_per_prompt_word=float(done.prompt_tokens.sum() / done.request_id.map(prompts).sum()),
        words_per_output_token=float(done.output_words.sum() / done.output_tokens.sum()) if counts_words else None,
        launch_bound=launch_bound,
        provenance=Provenance(
            measured=True,
            model=manifest["run"]["model"],
            hardware=", ".join(f"{name} {value}" for name, value in manifest["hardware"].items()),
            date=manifest["started"][:10],
            versions=manifest["versions"],
            fit=error,
        ),
    )


def prompt_words(params: Params, seed: int) -> dict[str, int]:
    """Words of each prompt of a run, by request id."""
    load = paper_load(params, seed, capacity_tokens_per_s=1.0)
    return {request.request_id: len(request.prompt.split()) for phase in load for request in phase.requests}
