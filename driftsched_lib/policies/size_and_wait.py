"""Estimated size against time waited: between SJF, which starves, and FIFO, which makes short requests wait."""

from abc import abstractmethod
from math import exp

import numpy as np
from numpy.typing import NDArray

from driftsched_lib.policies.base import KeyedQueue, Lanes, example_order, example_request, total_tokens  # noqa: F401
from driftsched_lib.requests import Request
from driftsched_lib.validation import not_negative, positive


class AgingShortestJobFirst(KeyedQueue):
    """Serve the smallest `f(size) - rate * seconds waited` first, with `f(size) = size / (1 + size / scale_tokens)`.

    `rate` is in tokens per second.  Without a scale `f` is the size, as in SGLang's pull request 30806; then a request
    overtakes one that is `d` tokens longer only if it arrives at most `d / rate` seconds after it.  With a scale it
    orders as TensorRT-LLM's pull request 12428 (a rate of 6,554 and a scale of 32,768 tokens).  Cost: O(log n).

    >>> example_order(AgingShortestJobFirst(), example_request("old", 100), example_request("new", 60, arrival_s=11.0))
    ['old', 'new']
    """

    def __init__(self, rate: float = 4.0, scale_tokens: float | None = None):
        super().__init__()
        self.rate = not_negative("rate", rate)
        self.scale_tokens = None if scale_tokens is None else positive("scale_tokens", scale_tokens)

    def key(self, request: Request) -> float:
        size: float = total_tokens(request)
        if self.scale_tokens is not None:
            size /= 1 + size / self.scale_tokens
        return size + self.rate * request.arrival_s


class OldestOfEachSize(Lanes[int]):
    """Serve the largest `scores(wait, worth(size))` first, ties in order of adding; waiting never lowers a score.

    So only the oldest of each size competes.  Cost: O(log n), and one vectorised pass over the distinct sizes queued.
    """

    def __init__(self) -> None:
        super().__init__(total_tokens)
        self._slots: dict[int, int] = {}
        self._sizes: list[int] = []
        self._arrivals, self._worths = np.empty(64), np.empty(64)  # by slot: the oldest arrival, and the size's worth

    @abstractmethod
    def worth(self, size: int) -> float:
        """Return the part of the score that depends on the size alone."""

    @abstractmethod
    def scores(self, waits_s: NDArray[np.float64], worths: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the score per slot."""

    def key(self, request: Request) -> float:
        return request.arrival_s

    def add(self, request: Request) -> None:
        super().add(request)
        size = total_tokens(request)
        slot = self._slots.setdefault(size, len(self._sizes))
        if slot == len(self._sizes):
            self._sizes.append(size)
            if slot == len(self._worths):
                self._arrivals, self._worths = np.resize(self._arrivals, 2 * slot), np.resize(self._worths, 2 * slot)
            self._worths[slot] = self.worth(size)
        self._arrivals[slot] = self._lanes[size][0][0]

    def remove(self, request_id: str) -> Request:
        request = super().remove(request_id)
        size = total_tokens(request)
        if size in self._lanes:
            self._arrivals[self._slots[size]] = self._lanes[size][0][0]
            return request
        slot, last = self._slots.pop(size), self._sizes.pop()
        if last != size:  # the last slot moves to the free one
            self._slots[last], self._sizes[slot] = slot, last
            for column in (self._arrivals, self._worths):
                column[slot] = column[len(self._sizes)]
        return request

    def choose(self, now: float) -> int:
        n = len(self._sizes)
        scores = self.scores(now - self._arrivals[:n], self._worths[:n])
        best = int(scores.argmax())
        most, scores[best] = scores[best], -np.inf
        if scores[scores.argmax()] < most:
            return self._sizes[best]
        equal: list[int] = [best, *(scores == most).nonzero()[0].tolist()]
        return min((self._sizes[slot] for slot in equal), key=lambda size: self._lanes[size][0][1])


class Hrrn(OldestOfEachSize):
    """Serve the largest `wait / size ** exponent` first; with an exponent of 1, highest response ratio next.

    The exponent, from 0 to 16, leads from FIFO (0) towards SJF.  None starves: a request that has waited `t` seconds is
    passed only by those that have waited `t * (smaller size / its own) ** exponent`.  Source: Brinch Hansen, 1971; the
    generalised c-mu index of a cost `wait ** (1 + 1 / exponent)` (van Mieghem, 1995).  Cost: as `OldestOfEachSize`.

    >>> example_order(Hrrn(), example_request("new", 10, arrival_s=90.0), example_request("old", 100), now=95.0)
    ['old', 'new']
    """

    def __init__(self, exponent: float = 1.0):
        super().__init__()
        self.exponent = not_negative("exponent", exponent, 16)

    def worth(self, size: int) -> float:
        return float(size**self.exponent)

    def scores(self, waits_s: NDArray[np.float64], worths: NDArray[np.float64]) -> NDArray[np.float64]:
        return waits_s / worths


class SigmoidShortestJobFirst(OldestOfEachSize):
    """Serve the largest weighted sum of two sigmoids first: one rises with the wait, the other falls with the size.

    Each scores half at its median, in seconds or tokens, and is as wide; the size has what `wait_weight` leaves of 1.
    Under overload all waits score alike, so it starves as SJF does.  Source: vLLM's pull request 29366, whose size is
    the prompt's.  Cost: as `OldestOfEachSize`.

    >>> old, new = example_request("old", 100), example_request("new", 10, arrival_s=4.0)
    >>> example_order(SigmoidShortestJobFirst(), new, old, now=5.0)
    ['old', 'new']
    """

    def __init__(self, wait_median_s: float = 5.0, size_median: float = 32768.0, wait_weight: float = 0.5):
        super().__init__()
        self.wait_median_s = positive("wait_median_s", wait_median_s)
        self.size_median = positive("size_median", size_median)
        self.wait_weight = not_negative("wait_weight", wait_weight, 1)

    def worth(self, size: int) -> float:
        return (1 - self.wait_weight) / (1 + exp(min(size / self.size_median - 1, 700)))

    def scores(self, waits_s: NDArray[np.float64], worths: NDArray[np.float64]) -> NDArray[np.float64]:
        half = 0.5 / self.wait_median_s  # a sigmoid is a hyperbolic tangent, which numpy computes in one pass
        return worths + 0.5 * self.wait_weight * np.tanh(waits_s * half - 0.5)
