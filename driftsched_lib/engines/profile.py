"""Engine profiles: what an iteration of a vLLM engine costs and what the engine holds, measured or derived."""

from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from driftsched_lib.errors import ParamsError
from driftsched_lib.validation import Count, JsonFile

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StepCost(_Model):
    """Seconds from the end of one iteration to the end of the next, with work in hand throughout.

    It is the model's run and all that the host does around it: the serving loop, the scheduler, sampling.

    Attributes:
        base_s: an iteration, whatever it holds (weights read, kernels launched).
        per_prefill_step_s: an iteration that computes prompt tokens at all (attention is launched for prompts too).
        per_prompt_s: a prompt of which any part is computed, however long (it was tokenized, queued and scheduled).
        per_prefill_token_s: a prompt token computed.
        decode_s: all sequences that decode a token, by how many they are: in a straight line from none at no cost to
            the first number that is given, on to the next, and beyond the last in proportion.  Kernels made for certain
            sizes let two cost more than three.
        per_context_token_s: a token that a decoding sequence attends to, summed over sequences (its KV entry is read).
    """

    base_s: Positive
    per_prefill_step_s: Seconds
    per_prompt_s: Seconds
    per_prefill_token_s: Seconds
    decode_s: Annotated[dict[Count, Seconds], Field(min_length=1)]
    per_context_token_s: Seconds

    @field_validator("decode_s")
    @classmethod
    def _rises(cls, decode_s: dict[int, float]) -> dict[int, float]:
        return dict(sorted(decode_s.items()))

    def decoding_s(self, sequences: int) -> float:
        """An iteration without prompts whose sequences have no context, `base_s` included."""
        numbers = (0, *self.decode_s)
        if sequences >= numbers[-1]:
            return self.base_s + sequences * (self.decode_s[numbers[-1]] / numbers[-1])
        return self.base_s + float(np.interp(sequences, numbers, (0.0, *self.decode_s.values())))

    def slowed(self, factor: float) -> "StepCost":
        """Every cost `factor` times as high."""
        single = self.model_dump(exclude={"decode_s"})
        costs = {name: cost * factor for name, cost in single.items()}
        return StepCost(**costs, decode_s={n: cost * factor for n, cost in self.decode_s.items()})


class EngineLimits(_Model):
    """What an engine holds, and how it schedules, under vLLM's names.

    Attributes:
        kv_blocks: the blocks that requests can use.
        async_scheduling: an iteration is scheduled and launched before it is known what the one before it made, as
            vLLM does on a GPU unless told otherwise.
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


class Profile(JsonFile, _Model):
    """All that `SimulatedEngine` needs to know of an engine.

    Attributes:
        tokens_per_prompt_word: how prompts without a tokenizer at hand are counted.
        words_per_output_token: whitespace words of generated text; None where the run counted tokens alone.
        launch_bound: with `async_scheduling`, whether the host takes longer to launch an iteration than the device to
            compute the one before it, so that the costs are those of launching.
    """

    refused = ParamsError

    step: StepCost
    limits: EngineLimits
    tokens_per_prompt_word: Positive
    words_per_output_token: Positive | None
    launch_bound: bool = False
    provenance: Provenance

    def with_limits(self, **limits: int) -> "Profile":
        """The same engine with other limits; ValidationError for one it cannot have."""
        return self.model_copy(update={"limits": EngineLimits(**(self.limits.model_dump() | limits))})

    def decode_costs(self) -> list[float]:
        """`decoding_s` of none, one, and so on to all sequences that the engine can run."""
        return [self.step.decoding_s(n) for n in range(self.limits.max_num_seqs + 1)]

    def slowed(self, factor: float) -> "Profile":
        """The same engine with every cost `factor` times as high."""
        return self.model_copy(update={"step": self.step.slowed(factor)})
