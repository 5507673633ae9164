"""From a run's tables to the profile of the engine that served it."""

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from driftsched_lib.engines.profile import FitError, StepCost

HUBER = 1.345
"""Residuals beyond this many robust standard deviations lose weight (95% efficiency under a normal; Huber 1964)."""
BATCH_SIZES = (*range(1, 9), 12, 16, 24, *range(32, 257, 16), 384, 512, 768, 1024)
"""Numbers of decoding sequences with a cost of their own, where enough iterations decode about as many."""
MIN_ITERATIONS = 20
SINGLE_COSTS = ["prefill_steps", "prompts", "prefill_tokens", "context_tokens"]


def iterations(steps: pd.DataFrame, requests: pd.DataFrame, launch_bound: bool = False) -> pd.DataFrame:
    """Return what each iteration of a run held and how long it took, one row per row of `steps`.

    An iteration starts at the end of the previous one or, if that left the engine empty, at the next dispatch.  A
    sequence makes one token per iteration from its first token on, so its context is known in each.  If the engine is
    `launch_bound`, that time is spent on launching the next iteration and counts as the next one's.  The first two
    iterations after an idle period then share their times and are left out.

    Columns: `seconds`, `prefill_steps` (1 if it computes a prompt), `prompts`, `prefill_tokens`, `decode_seqs`,
    `context_tokens`.  Raises ValueError if sequences were preempted, so that their contexts are unknown.
    """
    if steps.preemptions.any():
        raise ValueError("contexts cannot be told from a run with preemptions: fit a run that had KV cache to spare")
    ends, starts = steps.time_s.to_numpy(), steps.time_s.shift(fill_value=0.0).to_numpy()
    was_empty = steps.running.shift(fill_value=0).to_numpy() == 0
    dispatches = np.sort(requests.dispatch_s.dropna().to_numpy(float))
    next_dispatch = dispatches[np.searchsorted(dispatches, starts).clip(max=len(dispatches) - 1)]

    done = requests[requests.outcome == "completed"]
    prompts, outputs = (done[column].to_numpy(int) for column in ("prompt_tokens", "output_tokens"))
    first = np.searchsorted(ends, done.engine_first_token_s.to_numpy(float))
    last = first + outputs - 1
    n = len(steps)
    decoding, context = np.zeros(n + 1), np.zeros(n + 1)  # differences from row to row
    np.add.at(decoding, (first + 1).clip(max=n), 1)
    np.add.at(decoding, (last + 1).clip(max=n), -1)
    np.add.at(context, (first + 1).clip(max=n), prompts)
    np.add.at(context, (last + 1).clip(max=n), -(prompts + outputs - 1))
    seconds = ends - np.where(was_empty, next_dispatch, starts)
    if launch_bound:
        seconds = np.concatenate([[np.nan], np.where(was_empty, np.nan, seconds)[:-1]])
        seconds[was_empty] = np.nan
    held = {
        "seconds": seconds,
        "prefill_steps": (steps.prompt_tokens > 0).astype(float),
        "prompts": steps.prompt_requests,
        "prefill_tokens": steps.prompt_tokens,
        "decode_seqs": steps.output_requests,
        "context_tokens": (context[:n] + decoding.cumsum()[:n]).cumsum(),
    }
    return pd.DataFrame(held).dropna(subset="seconds")


def seen_by_clients(requests: pd.DataFrame) -> pd.DataFrame:
    """Return what a server's iterations held on average while it decoded a request, one row per request.

    Clients do not see iterations, but each iteration gives each decoding sequence one token.  So n tokens take n - 1
    iterations from the first to the last, and the other requests' times tell what else those iterations held, provided
    that no request waited inside the server.  The columns are those of `iterations`.
    """
    done = requests.query("outcome == 'completed' and output_tokens > 1 and finish_s > first_token_s")
    first, last = done.first_token_s.to_numpy(float), done.finish_s.to_numpy(float)
    prompts, made = done.prompt_tokens.to_numpy(float), done.output_tokens.to_numpy(float) - 1
    n, paces = len(done), made / (last - first)
    # Between two first or last tokens the number of sequences is constant and their context grows linearly.
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
    begins, ends = (np.searchsorted(at, times) for times in (first, last))
    means = {
        name: np.diff(np.concatenate([[0.0], area.cumsum()])[[begins, ends]], axis=0)[0] / (last - first)
        for name, area in areas.items()
    }
    begun = requests[requests.first_token_s.notna()].sort_values("first_token_s")
    computed = np.concatenate([[0.0], begun.prompt_tokens.to_numpy(float).cumsum()])
    since, until = (np.searchsorted(begun.first_token_s.to_numpy(float), times, "right") for times in (first, last))
    return pd.DataFrame(
        {
            "seconds": (last - first) / made,
            "prefill_steps": ((until - since) / made).clip(max=1.0),
            "prompts": (until - since) / made,
            "prefill_tokens": (computed[until] - computed[since]) / made,
        }
        | means
    )


def fit_costs(held: pd.DataFrame) -> tuple[StepCost, FitError]:
    """Fit seconds to contents (see `iterations`) by non-negative least squares with Huber's weights.

    The weights keep a garbage collection or another process from deciding how large a cost is.  Such slow iterations
    happen all the same, so all costs are then scaled until the predicted seconds add up to the measured.

    Raises ValueError if there are too few iterations, or they are too noisy.
    """
    decode_seqs, measured = held.decode_seqs.to_numpy(), held.seconds.to_numpy()
    sizes = _fitted_sizes(decode_seqs)
    if not sizes:
        raise ValueError(f"{len(held)} iterations are too few: {MIN_ITERATIONS} must decode about as many sequences")
    shares = [np.interp(decode_seqs, (0, *sizes), row) for row in np.eye(len(sizes) + 1)[1:]]  # see StepCost.decode_s
    shares[-1] = np.where(decode_seqs > sizes[-1], decode_seqs / sizes[-1], shares[-1])
    design = np.column_stack([np.ones(len(held)), held[SINGLE_COSTS].to_numpy(float), *shares])
    scale = design.max(axis=0).clip(min=1.0)  # columns of one size: nnls has an absolute tolerance
    weights = np.ones(len(held))
    for _ in range(50):
        root = np.sqrt(weights)
        costs = nnls(design / scale * root[:, None], measured * root)[0] / scale
        residuals = np.abs(measured - design @ costs)
        width = HUBER * np.median(residuals) / 0.6745
        weights = width / np.maximum(residuals, width) if width > 0 else np.ones(len(held))
    negligible = 1e-3 * np.median(measured)
    if costs[0] <= negligible:
        # If about as many sequences decode all the time, noise may give them all that an iteration costs anyway.
        least = costs[5:].min()
        costs[0], costs[5:] = costs[0] + least, costs[5:] - least
    if costs[0] <= negligible:
        raise ValueError("its iterations do not tell what one costs: serve more requests, or on a quieter machine")
    slowdown = measured.sum() / (design @ costs).sum()
    found, single = (costs * slowdown).tolist(), [name for name in StepCost.model_fields if name != "decode_s"]
    decode_s = dict(zip(sizes, found[len(single) :], strict=True))
    step = StepCost(**dict(zip(single, found, strict=False)), decode_s=decode_s)
    predicted = predicted_s(held, step)
    return step, FitError(
        iterations=len(held),
        median_relative_error=float(np.median(np.abs(predicted - measured) / measured)),
        slow_share=float(1 - 1 / slowdown),
        r2=float(1 - ((measured - predicted) ** 2).sum() / ((measured - measured.mean()) ** 2).sum()),
    )


def _fitted_sizes(decode_seqs: np.ndarray) -> list[int]:
    """Return those of `BATCH_SIZES` that are nearest to enough iterations."""
    nearest = np.abs(np.subtract.outer(decode_seqs[decode_seqs > 0], BATCH_SIZES)).argmin(axis=1)
    counts = np.bincount(nearest, minlength=len(BATCH_SIZES))
    return [size for size, count in zip(BATCH_SIZES, counts, strict=True) if count >= MIN_ITERATIONS]


def predicted_s(held: pd.DataFrame, step: StepCost) -> np.ndarray:
    """Return the seconds of iterations, given as by `iterations`, at these costs."""
    return (
        held.decode_seqs.map(step.decoding_s)
        + held.prefill_steps * step.per_prefill_step_s
        + held.prompts * step.per_prompt_s
        + held.prefill_tokens * step.per_prefill_token_s
        + held.context_tokens * step.per_context_token_s
    ).to_numpy()


def fit_engine(steps: pd.DataFrame, requests: pd.DataFrame, async_scheduling: bool) -> tuple[StepCost, FitError, bool]:
    """Return an engine's costs, how well they fit its run, and whether it is launch-bound (see `Profile`).

    A live server has no `steps`: its costs are fitted to what its clients saw.
    """
    step, error = fit_costs(seen_by_clients(requests) if steps.empty else iterations(steps, requests))
    if async_scheduling:
        launched = fit_costs(iterations(steps, requests, launch_bound=True))
        if launched[1].median_relative_error < error.median_relative_error:
            return *launched, True
    return step, error, False
