"""A change detector: the Page-Hinkley test, upwards and downwards."""

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from driftsched_lib.estimators.base import Count, checked_sum

TOLERANCE = 0.5
"""Standard deviations; the test is quickest for changes of twice this."""
THRESHOLD = 6.0
"""Summed standard deviations: a false alarm about once in 1,300 normal residuals (Siegmund, Sequential Analysis, 1985),
while a change of two standard deviations is found after four or five."""
WILD = 3.0
"""Standard deviations that one residual counts for at most, so that no single one is taken for a change."""


@dataclass
class RiseTest:
    """The Page-Hinkley test for a rise of standardised residuals, in its recursive form.

    `excess <- max(0, excess + residual - TOLERANCE)` is the cumulative sum less its minimum (Page, Continuous
    Inspection Schemes, 1954; Hinkley, 1971).  The change is taken to have begun at that minimum, and what was observed
    since is kept for a new beginning.

    Attributes:
        excess: the test's statistic (standard deviations).
        count, total: number and sum of the values since it was last 0.
    """

    excess: Annotated[float, Field(ge=0, le=THRESHOLD)] = 0.0
    count: Count = 0
    total: float = 0.0

    def __post_init__(self) -> None:
        checked_sum(self.total, self.count)

    def learn(self, residual: float, value: float) -> None:
        excess = self.excess + residual - TOLERANCE
        if excess > 0:
            self.excess = excess
            self.count += 1
            self.total += value
        else:
            self.excess, self.count, self.total = 0.0, 0, 0.0


@dataclass
class ChangeDetector:
    """Watches residuals for a change in either direction.  Written out here, and not river's, for two reasons: its
    state is plain numbers, and it knows since when the change has lasted."""

    rise: RiseTest = field(default_factory=RiseTest)
    fall: RiseTest = field(default_factory=RiseTest)

    def learn(self, residual: float, value: float) -> tuple[float, int] | None:
        """Take in a standardised residual and the value behind it.

        Returns:
            Where a change is found, the mean of the values since it began and their number; the tests begin anew.
        """
        residual = min(max(residual, -WILD), WILD)
        for test, rise in ((self.rise, residual), (self.fall, -residual)):
            test.learn(rise, value)
            if test.excess > THRESHOLD:
                self.rise, self.fall = RiseTest(), RiseTest()
                return test.total / test.count, test.count
        return None
