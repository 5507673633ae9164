"""Features of a linear model that are known of a request at admission."""

from collections.abc import Iterable
from functools import lru_cache
from math import cos, log, pi, sin
from zlib import crc32

from driftsched_lib.requests import Request

SLOTS = 2048
NUMBERS = 4  # numeric features, in slots 0 to 3
HASHED = SLOTS - NUMBERS
MAX_WORDS = 14  # of the longest of the project's own prompts
READ = 128  # characters at each end of a prompt; they hold those words unless they are very long


def numeric(request: Request, base: int, day_s: float) -> tuple[float, ...]:
    """Return input length, limit over base, and the time of day as a point on a circle; each about -1 to 1.

    The day is that of `arrival_s`: the calendar's in a server, whose clock counts from the epoch; else the run's.
    """
    angle = 2 * pi * request.arrival_s / day_s
    length = log(1 + request.input_tokens) / 4 - 1
    return length, log(request.max_tokens / base) / 4, sin(angle), cos(angle)


def named(request: Request) -> tuple[int, ...]:
    """Return the slots of category, tenant, tier, tenant in this category, and the prompt's words."""
    return _names(request.category, request.tenant, request.tier) + word_slots(ends(request.prompt))


def ends(prompt: str) -> str:
    """Return the part of a prompt that is read: a long prompt's two ends, so that it costs no more than a short one."""
    return prompt if len(prompt) <= 2 * READ else f"{prompt[:READ]} {prompt[-READ:]}"


@lru_cache(maxsize=4096)
def _names(category: str, tenant: str, tier: str) -> tuple[int, ...]:
    names = f"category {category}", f"tenant {tenant}", f"tier {tier}", f"{category} of {tenant}"
    return _slots([name.encode() for name in names])


@lru_cache(maxsize=4096)  # asked for at admission and again at the end
def word_slots(text: str) -> tuple[int, ...]:
    """Return the slots of a text's words without numbers; of a long text, its first and last `MAX_WORDS` / 2 words."""
    words = text.lower().encode().split()
    if len(words) > MAX_WORDS:
        words = words[: MAX_WORDS // 2] + words[-MAX_WORDS // 2 :]
    return _slots([word for each in words if not (word := each.strip(b".,:;?!")).isdigit()])


def _slots(names: Iterable[bytes]) -> tuple[int, ...]:
    return tuple(dict.fromkeys([NUMBERS + crc32(name) % HASHED for name in names]))
