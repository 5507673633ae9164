"""Engine profiles: what an iteration of a vLLM engine costs and what the engine holds, fitted from a run or derived."""

from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from scipy.optimize import nnls

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]

HUBER = 1.345
"""Residuals beyond this many robust standard deviations lose weight (95% efficiency under a normal; Huber 1964)."""


class ProfileError(ValueError):
    """A profile that cannot be used; the message names the file and each field."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StepCost(_Model):
    """Seconds from the end of one iteration to the end of the next, with work in hand throughout.

    It is the model's run and all that the host does around it: the serving loop, the scheduler, sampling.

    Attributes:
        base_s: an iteration, whatever it holds (weights read, kernels launched).
        per_prefill_token_s: a prompt token computed.
        per_prefill_request_s: a request with prompt tokens in the iteration.
        per_decode_seq_s: a sequence that decodes one token.
        per_context_token_s: a token that a decoding sequence attends to, summed over sequences (its KV entry is read).
    """

    base_s: Positive
    per_prefill_token_s: Seconds
    per_prefill_request_s: Seconds
    per_decode_seq_s: Seconds
    per_context_token_s: Seconds


class EngineLimits(_Model):
    """What an engine holds, under vLLM's names; `kv_blocks` are the blocks that requests can use."""

    max_num_seqs: Count
    max_num_batched_tokens: Count
    max_model_len: Annotated[int, Field(ge=2)]
    block_size: Count
    kv_blocks: Count

    @model_validator(mode="after")
    def _all_can_decode(self):
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError("max_num_batched_tokens must be at least max_num_seqs")
        return self


class FitError(_Model):
    """How well the costs explain the iterations they were fitted to.

    Attributes:
        median_relative_error: median of |predicted - measured| / measured.
        slow_share: part of all seconds that the iterations take beyond what is typical of what they hold; it was spread
            over all costs.
    """

    iterations: int
    median_relative_error: float
    slow_share: float
    r2: float


class Provenance(_Model):
    """Where a profile comes from; `derivation` says how, for one that was not measured."""

    measured: bool
    model: str
    hardware: str
    date: str
    versions: dict[str, str] = {}
    derivation: str = ""
    fit: FitError | None = None


class Profile(_Model):
    """All that `SimulatedEngine` needs to know of an engine.

    Attributes:
        tokens_per_prompt_word: how prompts without a tokenizer at hand are counted.
        words_per_output_token: whitespace words of generated text; None where no text was looked at.
    """

    step: StepCost
    limits: EngineLimits
    tokens_per_prompt_word: Positive
    words_per_output_token: Positive | None
    provenance: Provenance

    @classmethod
    def load(cls, path: str | Path) -> "Profile":
        """Read a profile; ProfileError names the file and every field that is missing or wrong."""
        try:
            return cls.model_validate_json(Path(path).read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise ProfileError(f"{path}: cannot be read: {error}") from None
        except ValidationError as error:
            faults = [(".".join(map(str, fault["loc"])), fault["msg"]) for fault in error.errors(include_url=False)]
        raise ProfileError("\n".join(": ".join(filter(None, (str(path), where, what))) for where, what in faults))

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self.model_dump_json(indent=2) + "\n")

    def with_limits(self, **limits: int) -> "Profile":
        """The same engine with other limits; ValidationError for one it cannot have."""
        return self.model_copy(update={"limits": EngineLimits(**(self.limits.model_dump() | limits))})


def iterations(steps: pd.DataFrame, requests: pd.DataFrame) -> pd.DataFrame:
    """What each iteration of a run held and how long it took, a row for each row of `steps`.

    An iteration lasts from the end of the one before it, or, where that left the engine empty, from the dispatch that
    ended the idleness.  A sequence makes a token in every iteration from its first token on, so its context is known
    in each.

    Parameters:
        steps, requests: the tables of a run's folder.

    Returns:
        Columns `seconds`, then those of `StepCost` in its order: `base` (ones), `prefill_tokens`, `prefill_requests`,
        `decode_seqs`, `context_tokens`.

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
    return pd.DataFrame(
        {
            "seconds": ends - np.where(was_empty, first_dispatch, starts),
            "base": 1.0,
            "prefill_tokens": steps.prompt_tokens,
            "prefill_requests": steps.prompt_requests,
            "decode_seqs": steps.output_requests,
            "context_tokens": (context[:n] + decode_seqs).cumsum(),
        }
    )


def fit_costs(held: pd.DataFrame) -> tuple[StepCost, FitError]:
    """Non-negative least squares of an iteration's seconds on what it held, reweighted by Huber's weights so that
    neither a garbage collection nor another process decides which cost is how large.

    Such slow iterations happen all the same, and a request waits for the sum: all costs are then scaled so that the
    predicted seconds add up to the measured.

    Parameters:
        held: as `iterations` returns.
    """
    measured, design = held.seconds.to_numpy(), held.drop(columns="seconds").to_numpy(float)
    scale = design.max(axis=0).clip(min=1.0)  # columns of one size: nnls has an absolute tolerance
    weights = np.ones(len(held))
    for _ in range(50):
        root = np.sqrt(weights)
        costs = nnls(design / scale * root[:, None], measured * root)[0] / scale
        residuals = np.abs(measured - design @ costs)
        width = HUBER * np.median(residuals) / 0.6745
        weights = width / np.maximum(residuals, width) if width > 0 else np.ones(len(held))
    slowdown = measured.sum() / (design @ costs).sum()
    costs = costs * slowdown
    predicted = design @ costs
    error = FitError(
        iterations=len(held),
        median_relative_error=float(np.median(np.abs(predicted - measured) / measured)),
        slow_share=float(1 - 1 / slowdown),
        r2=float(1 - ((measured - predicted) ** 2).sum() / ((measured - measured.mean()) ** 2).sum()),
    )
    return StepCost(**dict(zip(StepCost.model_fields, map(float, costs), strict=True))), error


def fit(
    steps: pd.DataFrame,
    requests: pd.DataFrame,
    limits: EngineLimits,
    tokens_per_prompt_word: float,
    provenance: Provenance,
) -> Profile:
    """The profile of the engine that served a run.

    Parameters:
        steps, requests: the tables of the run's folder.
        provenance: where it was measured; the fit's error is added.
    """
    step, error = fit_costs(iterations(steps, requests))
    return Profile(
        step=step,
        limits=limits,
        tokens_per_prompt_word=tokens_per_prompt_word,
        words_per_output_token=float(requests.output_words.sum() / requests.output_tokens.sum()) or None,
        provenance=provenance.model_copy(update={"measured": True, "fit": error}),
    )
