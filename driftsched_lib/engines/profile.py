"""Engine profiles: what an iteration of a vLLM engine costs and what the engine holds, measured or derived."""

from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from driftsched_lib.validation import Count, JsonFile, NotNegative, Positive, Validated

SORTED = AfterValidator(lambda costs: dict(sorted(costs.items())))


class StepCost(Validated):
    """Seconds from the end of one iteration to the end of the next while requests are there.

    They include the model and all that the host does around it: the serving loop, the scheduler, sampling.

    Attributes:
        base_s: per iteration, whatever it holds (weights are read, kernels launched).
        per_prefill_step_s: per iteration that computes prompt tokens (attention is launched for prompts too).
        per_prompt_s: per prompt that is computed in whole or in part (it was tokenized, queued and scheduled).
        per_prefill_token_s: per prompt token.
        decode_s: for all decoding sequences together, by their number: linear between the given numbers, proportional
            beyond the last, nothing for none.  Kernels made for certain sizes let two sequences cost more than three.
        per_context_token_s: per token that a decoding sequence attends to (its KV entry is read).
    """

    base_s: Positive
    per_prefill_step_s: NotNegative
    per_prompt_s: NotNegative
    per_prefill_token_s: NotNegative
    decode_s: Annotated[dict[Count, NotNegative], Field(min_length=1), SORTED]
    per_context_token_s: NotNegative

    def decoding_s(self, sequences: int) -> float:
        """Return the seconds of an iteration that decodes so many sequences without context, `base_s` included."""
        numbers = (0, *self.decode_s)
        if sequences >= numbers[-1]:
            return self.base_s + sequences * (self.decode_s[numbers[-1]] / numbers[-1])
        return self.base_s + float(np.interp(sequences, numbers, (0.0, *self.decode_s.values())))


class EngineLimits(Validated):
    """What an engine holds and how it schedules, under vLLM's names.

    `kv_blocks` are those that requests can use.  With `async_scheduling`, vLLM's default on a GPU, an iteration is
    launched before the results of the previous one are known.
    """

    max_num_seqs: Count
    max_num_batched_tokens: Count
    max_model_len: Annotated[int, Field(ge=2, le=10**9)]
    block_size: Count
    kv_blocks: Count
    async_scheduling: bool = False

    @model_validator(mode="after")
    def _all_can_decode(self):
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError("max_num_batched_tokens must be at least max_num_seqs")
        return self


class FitError(Validated):
    """How well the costs explain the iterations they were fitted to.

    `median_relative_error` is the median of |predicted - measured| / measured; `slow_share` is the share of all seconds
    beyond what is typical of each iteration's contents, which was spread over all costs.
    """

    iterations: int
    median_relative_error: float
    slow_share: float
    r2: float


class Provenance(Validated):
    """Where a profile comes from; `derivation` explains one that was not measured."""

    measured: bool
    model: str
    hardware: str
    date: str
    versions: dict[str, str] = {}
    derivation: str = ""
    fit: FitError | None = None


class Profile(JsonFile, Validated):
    """All that `SimulatedEngine` needs to know of an engine.

    Attributes:
        tokens_per_prompt_word: converts texts to tokens where the load gives no length and no tokenizer is at hand.
        words_per_output_token: whitespace words of generated text; None if the run counted tokens only.
        launch_bound: with `async_scheduling`, the host takes longer to launch an iteration than the device to compute
            the previous one, so the costs are those of launching.
    """

    step: StepCost
    limits: EngineLimits
    tokens_per_prompt_word: Positive
    words_per_output_token: Positive | None
    launch_bound: bool = False
    provenance: Provenance

    def with_limits(self, **limits: int) -> "Profile":
        """Return the same engine with other limits; ValidationError for limits that it cannot have."""
        return self.model_copy(update={"limits": EngineLimits(**(self.limits.model_dump() | limits))})

    def slowed(self, factor: float) -> "Profile":
        """Return the same engine with every cost `factor` times as high."""
        costs = self.step.model_dump()
        decode_s = {n: cost * factor for n, cost in costs.pop("decode_s").items()}
        step = StepCost(**{name: cost * factor for name, cost in costs.items()}, decode_s=decode_s)
        return self.model_copy(update={"step": step})
