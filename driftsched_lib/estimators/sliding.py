"""The last values of a stream, kept in order, so that any quantile is one look-up."""

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import AfterValidator, Field

CAPACITY = 100
SLICES = 10
_MIDDLES = [[int((i + 0.5) / SLICES * n) for i in range(SLICES)] for n in range(CAPACITY + 1)]
"""By the number of values, where in their order the middle of each slice lies."""


@dataclass
class SlidingWindow:
    """The last `CAPACITY` values.  `add` is a binary search and a short move, a quantile is O(1).

    Attributes:
        values: oldest first.
    """

    values: list[Annotated[float, Field(ge=-1e9, le=1e9)]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if len(self.values) > CAPACITY:
            raise ValueError(f"{len(self.values)} values in a window of {CAPACITY}")
        self.ordered = sorted(self.values)

    def __len__(self) -> int:
        return len(self.values)

    def add(self, value: float) -> None:
        values, ordered = self.values, self.ordered
        if len(values) == CAPACITY:
            del ordered[bisect_left(ordered, values.pop(0))]
        values.append(value)
        insort(ordered, value)

    def quantile(self, level: float) -> float:
        """The value below which a share `level` (0 to 1) of the window lies; IndexError where it is empty."""
        ordered = self.ordered
        return ordered[min(int(level * len(ordered)), len(ordered) - 1)]

    def slices(self) -> list[float] | None:
        """The middle values of `SLICES` equal slices, rising; None for fewer values than slices."""
        ordered = self.ordered
        return [ordered[i] for i in _MIDDLES[len(ordered)]] if len(ordered) >= SLICES else None


def _none_below_zero(window: SlidingWindow) -> SlidingWindow:
    if window.ordered and window.ordered[0] < 0:
        raise ValueError(f"{window.ordered[0]} in a window of lengths")
    return window


Lengths = Annotated[SlidingWindow, AfterValidator(_none_below_zero)]
"""A window whose values are lengths, or ratios of them."""
