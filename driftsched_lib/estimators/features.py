"""What is known of a request at admission, as features of a linear model."""

from functools import lru_cache
from math import cos, log, pi, sin
from zlib import crc32

from driftsched_lib.requests import Request

SLOTS = 2048
NUMBERS = 4
"""Numeric features, which come first: the constant slots 0 to 3."""
MOST_WORDS = 32


def numeric(request: Request, base: int, day_s: float) -> tuple[float, ...]:
    """Input length, limit over base, and the time of day as a point on a circle; each about -1 to 1."""
    angle = 2 * pi * request.arrival_s / day_s
    length = log(1 + request.input_tokens) / 4 - 1
    return length, log(request.max_tokens / base) / 4, sin(angle), cos(angle)


def named(request: Request) -> list[int]:
    """Slots of the category, the tenant, the tier, the tenant in this category, and the prompt's words."""
    return [
        _slot(f"category {request.category}"),
        _slot(f"tenant {request.tenant}"),
        _slot(f"tier {request.tier}"),
        _slot(f"{request.category} of {request.tenant}"),
        *word_slots(request.prompt),
    ]


@lru_cache(maxsize=1024)
def word_slots(prompt: str) -> tuple[int, ...]:
    """Slots of the words of a prompt, numbers left out; of a long prompt, its first and last `MOST_WORDS` / 2."""
    words = prompt.split()
    if len(words) > MOST_WORDS:
        words = words[: MOST_WORDS // 2] + words[-MOST_WORDS // 2 :]
    stripped = {word.strip(".,:;?!").lower() for word in words}
    return tuple(sorted({_slot(word) for word in stripped if not word.isdigit()}))


def _slot(name: str) -> int:
    return NUMBERS + crc32(name.encode()) % (SLOTS - NUMBERS)
