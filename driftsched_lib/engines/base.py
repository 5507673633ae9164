"""What the engines share: the columns of the step log, how long a step may wait, and their refusals."""

from collections.abc import Sequence, Sized
from itertools import cycle, islice
from math import isinf

from driftsched_lib.requests import Request

STEP_COLUMNS = ("time_s", "duration_s", "running", "waiting", "prompt_requests", "prompt_tokens")
STEP_COLUMNS += ("output_requests", "output_tokens", "preemptions", "kv_cache_usage")
"""Columns of `steps.parquet`, one row per iteration: when it ended, how long it took, what it held and made."""
MAX_WAIT_S = 0.1
"""A step waits at most this long for time to pass or for a server, so that its caller can stop in between."""


def wait_s(until: float, now: float) -> float:
    """Return how long a step may wait (seconds)."""
    return min(max(0.0, until - now), MAX_WAIT_S)


def check_idle(in_flight: Sized) -> None:
    """Raise RuntimeError if requests are in flight: a clock starts anew only when there are none."""
    if in_flight:
        raise RuntimeError(f"{len(in_flight)} requests are still in flight")


def check_progress(until: float) -> None:
    """Raise RuntimeError if `until` is infinite: an engine without requests would wait for ever."""
    if isinf(until):
        raise RuntimeError("no progress: nothing runs, and nothing is due to arrive or to end")


def fitted(token_ids: Sequence[int], length: int) -> list[int]:
    """Return a prompt of this length (tokens): the ids of its text, repeated or cut."""
    return list(islice(cycle(token_ids or [0]), length))


def check_context(request: Request, prompt_tokens: int, max_model_len: int) -> None:
    """Raise ValueError unless the context holds the prompt and the fixed output, or one token of another output."""
    room = max_model_len - prompt_tokens
    if prompt_tokens < 1 or room < 1:
        takes = f"the context takes 1 to {max_model_len - 1} and an output token"
        raise ValueError(f"the prompt has {prompt_tokens} tokens, and {takes}")
    if (request.fixed_output_tokens or 1) > room:
        raise ValueError(length_error(request, room))


def length_error(request: Request, output_tokens: int, what: str = "the context holds") -> str | None:
    """Return an output's error if it lacks the request's fixed length, else None."""
    if request.fixed_output_tokens in (None, output_tokens):
        return None
    return f"{what} {output_tokens} of {request.fixed_output_tokens} fixed tokens"
