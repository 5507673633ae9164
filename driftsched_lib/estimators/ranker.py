"""Learning to rank: a score that orders requests, and the lengths that the order stands for."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import tanh
from typing import Annotated

from pydantic import Field

from driftsched_lib.estimators.base import MAX_TOKENS
from driftsched_lib.estimators.conformal import AdaptiveInterval, ConformalEstimator, new_intervals
from driftsched_lib.estimators.features import SLOTS, named
from driftsched_lib.estimators.sliding import Lengths, SlidingWindow
from driftsched_lib.requests import BASE_TOKENS, Request
from driftsched_lib.validation import in_range

RECENT = 64
OPPONENTS = 8
MIN_SURPRISE = 0.1
"""Of the probability that one is the longer: a pair that is nearly known to be in order teaches next to nothing."""


@dataclass
class Finished:
    """A request that was observed: the slots of its features, and its length."""

    slots: list[Annotated[int, Field(ge=0, lt=SLOTS)]]
    length: Annotated[int, Field(ge=0, le=MAX_TOKENS)]


@dataclass
class RankerState:
    """A weight a slot, the last requests, the scores and lengths that map one to the other, and the intervals."""

    weights: list[Annotated[float, Field(ge=-1e6, le=1e6)]]
    recent: Annotated[list[Finished], Field(max_length=RECENT)]
    scores: SlidingWindow
    lengths: Lengths
    intervals: dict[str, AdaptiveInterval]

    def __post_init__(self) -> None:
        if len(self.scores) != len(self.lengths):
            raise ValueError(f"{len(self.scores)} scores stand for {len(self.lengths)} lengths")


class Ranker(ConformalEstimator):
    """A linear score that learns which of two requests is longer, mapped to tokens so that the order is kept.

    The features are the regression's, those that are not numbers.  Each observation is compared with `OPPONENTS` of the
    last `RECENT`, by logistic regression on the difference of the features (RankNet: Burges et al., Learning to Rank
    Using Gradient Descent, 2005).  That shortest-first needs no more than the order is Fu et al.'s point (Efficient LLM
    Scheduling by Learning to Rank, arXiv 2408.15792), who learn it offline and by a listwise loss, ListMLE.  The i-th
    lowest of the last 100 scores stands for the i-th shortest of the last 100 lengths, with straight lines between; as
    a length the point is coarse.

    Parameters:
        base_tokens: tokens by category: the estimate until there are ten observations.
        step: of the gradient.
    """

    state_: RankerState

    def __init__(self, base_tokens: Mapping[str, int] = BASE_TOKENS, step: float = 0.05):
        super().__init__(base_tokens)
        self.step = in_range("step", step, 0, 10)
        self.state_ = RankerState([0.0] * SLOTS, [], SlidingWindow(), SlidingWindow(), new_intervals(self.base_tokens))

    def _expect(self, request: Request, base: int) -> float:
        self._slots = named(request)  # to learn from in `observe`
        scores, lengths = self.state_.scores.ordered, self.state_.lengths.ordered
        if len(scores) < 10:
            return float(base)
        score = self._score(self._slots)
        above = bisect_right(scores, score)
        if above == 0 or above == len(scores):
            return lengths[max(0, above - 1)]
        below = above - 1
        share = (score - scores[below]) / (scores[above] - scores[below])
        return lengths[below] + share * (lengths[above] - lengths[below])

    def _learn(self, request: Request, base: int, length: int) -> None:
        state, weights, slots = self.state_, self.state_.weights, self._slots
        score = self._score(slots)
        state.scores.add(score)
        state.lengths.add(length)
        own_move = 0.0
        for other in state.recent[:: RECENT // OPPONENTS]:
            longer = 0.5 if length == other.length else float(length > other.length)
            surprise = longer - 0.5 - 0.5 * tanh((score - self._score(other.slots)) / 2)
            if -MIN_SURPRISE < surprise < MIN_SURPRISE:
                continue
            move = self.step * surprise
            own_move += move
            for slot in other.slots:
                weights[slot] -= move
        for slot in slots:
            weights[slot] += own_move
        if len(state.recent) == RECENT:
            state.recent.pop(0)
        state.recent.append(Finished(list(slots), length))

    def _score(self, slots: Sequence[int]) -> float:
        return sum(map(self.state_.weights.__getitem__, slots))
