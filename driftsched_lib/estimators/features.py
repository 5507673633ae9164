"""What is known of a request at admission, as features of a linear model."""

from collections.abc import Iterable
from functools import lru_cache
from math import cos, log, pi, sin
from zlib import crc32

from driftsched_lib.requests import Request

SLOTS = 2048
NUMBERS = 4
"""Numeric features, which come first: the constant slots 0 to 3."""
HASHED = SLOTS - NUMBERS
MAX_WORDS = 14
"""As many as the longest of the project's own prompts has."""
READ = 128
"""Characters at each end of a prompt, which hold those words unless they are very long."""


def numeric(request: Request, base: int, day_s: float) -> tuple[float, ...]:
    """Input length, limit over base, and the time of day as a point on a circle; each about -1 to 1.

    The day is that of `arrival_s`: the clock's where that counts seconds since the epoch, as in a server, or the run's
    where it counts from its beginning.
    """
    angle = 2 * pi * request.arrival_s / day_s
    length = log(1 + request.input_tokens) / 4 - 1
    return length, log(request.max_tokens / base) / 4, sin(angle), cos(angle)


def named(request: Request) -> tuple[int, ...]:
    """Slots of the category, the tenant, the tier, the tenant in this category, and the words of the prompt; kept with
    the request, for they are asked for at admission and again at the end."""
    if request.features is None:
        names = _names(request.category, request.tenant, request.tier)
        request.features = names + word_slots(ends(request.prompt))
    return request.features


@lru_cache(maxsize=4096)
def _names(category: str, tenant: str, tier: str) -> tuple[int, ...]:
    names = f"category {category}", f"tenant {tenant}", f"tier {tier}", f"{category} of {tenant}"
    return _slots([name.encode() for name in names])


def ends(prompt: str) -> str:
    """All that is read of a prompt, so that a long one costs no more, nor is it kept."""
    return prompt if len(prompt) <= 2 * READ else f"{prompt[:READ]} {prompt[-READ:]}"


def word_slots(text: str) -> tuple[int, ...]:
    """Slots of the words of a text, numbers left out; of a long one, of its first and last `MAX_WORDS` / 2."""
    words = text.lower().encode().split()
    if len(words) > MAX_WORDS:
        words = words[: MAX_WORDS // 2] + words[-MAX_WORDS // 2 :]
    return _slots([word for each in words if not (word := each.strip(b".,:;?!")).isdigit()])


def _slots(names: Iterable[bytes]) -> tuple[int, ...]:
    return tuple(dict.fromkeys([NUMBERS + crc32(name) % HASHED for name in names]))
