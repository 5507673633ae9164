"""Estimated size against time waited: between SJF, which starves, and FIFO, which makes short requests wait."""

from abc import abstractmethod
from collections.abc import Iterator
from heapq import heappop, heappush
from math import exp, expm1, fsum, log

import numpy as np
from numpy.typing import NDArray

from driftsched_lib.policies.base import KeyedQueue, Policy, in_pop_order, possible_tokens, total_tokens
from driftsched_lib.requests import Request
from driftsched_lib.validation import not_negative, positive


class AgingShortestJobFirst(KeyedQueue):
    """Smallest `f(size) - rate * seconds waited` first, where `f(size) = size / (1 + size / scale)`, sizes in tokens.

    All queued requests age alike, so the key is `f(size) + rate * arrival`.  Without a scale `f` is the size itself,
    the form proposed to SGLang (pull request 30806): a request overtakes one that is `d` tokens longer if it came at
    most `d / rate` seconds after it, which bounds how long requests of a bounded size can starve any.  With a scale
    it is the form proposed to TensorRT-LLM (pull request 12428), whose score
    `length_weight / (1 + size / scale) + time_weight * wait / time_median` orders as the key does with
    `rate = scale * time_weight / (length_weight * time_median)`: 6,554 tokens a second and 32,768 tokens by default.

    The form proposed to vLLM is `SigmoidShortestJobFirst`, whose order changes with time.

    Cost: O(log n).

    Parameters:
        rate: tokens of size that a second of waiting makes up for.
        scale_tokens: size at which `f` has risen to half of its bound; None for an `f` without one.
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


class OldestOfEachSize(Policy):
    """Largest `score` of wait and size first, ties in the order of adding, where waiting longer never lowers a score.

    Then of requests of a size the oldest is first, so only those are compared, in one vectorised pass; sizes are whole
    tokens: there are no more than the context has, however many requests.  The order may change as time passes.

    Cost: O(log n), and the pass over the distinct sizes queued.
    """

    def __init__(self) -> None:
        self._alive: dict[str, tuple[float, int, Request]] = {}  # by request id: arrival, place in the order of adding
        self._added = 0
        self._entries = 0
        self._latest_s = 0.0
        self._sizes: list[int] = []  # by slot: a size that is queued,
        self._slots: dict[int, int] = {}
        self._queues: list[list[tuple[float, int, Request]]] = []  # a heap of its requests,
        self._arrivals = np.empty(64)  # the oldest arrival among them,
        self._worths = np.empty(64)  # and what the size is worth

    @abstractmethod
    def worth(self, size: int) -> float:
        """What of the score is known from the size alone."""

    @abstractmethod
    def scores(self, waits_s: NDArray[np.float64], worths: NDArray[np.float64]) -> NDArray[np.float64]:
        """The scores of requests that have waited for so long and whose sizes are worth that."""

    def add(self, request: Request) -> None:
        if request.request_id in self._alive:
            raise ValueError(f"request {request.request_id!r} is queued already")
        self._added += 1
        self._entries += 1
        entry = (request.arrival_s, self._added, request)
        self._alive[request.request_id] = entry
        self._latest_s = max(self._latest_s, request.arrival_s)
        size = total_tokens(request)
        slot = self._slots.get(size)
        if slot is None:
            slot = self._new_slot(size)
        queue = self._queues[slot]
        heappush(queue, entry)
        if queue[0] is entry:
            self._arrivals[slot] = request.arrival_s

    def pop(self, now: float) -> Request:
        slot = self._best(now)
        request = heappop(self._queues[slot])[2]
        self._entries -= 1
        del self._alive[request.request_id]
        self._settle(slot)
        return request

    def peek(self, now: float) -> Request:
        return self._queues[self._best(now)][0][2]

    def remove(self, request_id: str) -> Request:
        entry = self._alive.pop(request_id)
        slot = self._slots[total_tokens(entry[2])]
        if self._queues[slot][0] is entry:
            self._settle(slot)
        elif self._entries > 2 * len(self._alive):
            for queue in self._queues:
                queue[:] = sorted(entry for entry in queue if self._is_alive(entry))
            self._entries = len(self._alive)
        return entry[2]

    def _best(self, now: float) -> int:
        self._latest_s = max(self._latest_s, now)
        n = len(self._sizes)
        if not n:
            raise IndexError("pop from an empty queue")
        scores = self.scores(now - self._arrivals[:n], self._worths[:n])
        best = int(scores.argmax())
        most, scores[best] = scores[best], -np.inf
        if scores[scores.argmax()] < most:
            return best
        equal: list[int] = [best, *(scores == most).nonzero()[0].tolist()]
        return min(equal, key=lambda slot: self._queues[slot][0][1])

    def _settle(self, slot: int) -> None:
        """The first of a size has left: the next that is alive takes its place, or the last slot that of this one."""
        queue = self._queues[slot]
        while queue and not self._is_alive(queue[0]):
            heappop(queue)
            self._entries -= 1
        if queue:
            self._arrivals[slot] = queue[0][0]
            return
        del self._slots[self._sizes[slot]]
        size, queue = self._sizes.pop(), self._queues.pop()
        if slot < len(self._sizes):
            last = len(self._sizes)
            self._sizes[slot], self._queues[slot], self._slots[size] = size, queue, slot
            self._arrivals[slot], self._worths[slot] = self._arrivals[last], self._worths[last]

    def _new_slot(self, size: int) -> int:
        slot = self._slots[size] = len(self._sizes)
        self._sizes.append(size)
        self._queues.append([])
        if slot == len(self._arrivals):
            self._arrivals, self._worths = np.resize(self._arrivals, 2 * slot), np.resize(self._worths, 2 * slot)
        self._worths[slot] = self.worth(size)
        return slot

    def _is_alive(self, entry: tuple[float, int, Request]) -> bool:
        return self._alive.get(entry[2].request_id) is entry

    def __len__(self) -> int:
        return len(self._alive)

    def __iter__(self) -> Iterator[Request]:
        return in_pop_order(self, (request for _, _, request in self._alive.values()), self._latest_s)


class Hrrn(OldestOfEachSize):
    """Highest response ratio next: largest `(wait + service) / service` first (Brinch Hansen, 1971).

    The service is taken as in proportion to the estimated total of tokens.  The ratio is one more than the wait over
    it, so how long a token takes does not change the order, and there is no parameter for it.  `exponent` raises the
    size to a power: 0 is FIFO, 1 is HRRN, and towards infinity it becomes SJF; `wait / size ** exponent` is the
    generalized c-mu index (van Mieghem, 1995) of the cost `wait ** (1 + 1 / exponent)`.  The ratio of a waiting
    request grows without bound while that of a new one starts from nothing, so none starves: one that has waited `t`
    seconds is passed only by those that have waited `t * (smaller size / its own) ** exponent`.

    Cost: O(log n), and one vectorised pass over the distinct sizes queued.

    Parameters:
        exponent: power of the size, at most 16.
    """

    def __init__(self, exponent: float = 1.0):
        if not 0 <= exponent <= 16:
            raise ValueError(f"exponent is {exponent}, it must be from 0 to 16")
        super().__init__()
        self.exponent = exponent

    def worth(self, size: int) -> float:
        return float(size**self.exponent)

    def scores(self, waits_s: NDArray[np.float64], worths: NDArray[np.float64]) -> NDArray[np.float64]:
        return waits_s / worths


class SigmoidShortestJobFirst(OldestOfEachSize):
    """SJF with aging as proposed to vLLM (pull request 29366): a weighted sum of two sigmoids first, the largest.

    One rises with the wait, from 0 to 1 around `wait_median_s`, the other falls with the size, around `size_median`;
    each is as wide as its median.  There it is the prompt that is the size.  Two requests that have both waited for
    many medians score alike for it and are ordered by size again: in overload it is SJF, and starves as SJF does.

    Cost: O(log n), and one vectorised pass over the distinct sizes queued.

    Parameters:
        wait_median_s: seconds at which waiting counts half of what it can.
        size_median: tokens at which the size does.
        wait_weight: of the wait; the size's is what is left of 1.
    """

    def __init__(self, wait_median_s: float = 5.0, size_median: float = 32768.0, wait_weight: float = 0.5):
        if not 0 <= wait_weight <= 1:
            raise ValueError(f"wait_weight is {wait_weight}, it must be from 0 to 1")
        super().__init__()
        self.wait_median_s = positive("wait_median_s", wait_median_s)
        self.size_median = positive("size_median", size_median)
        self.wait_weight = wait_weight

    def worth(self, size: int) -> float:
        return (1 - self.wait_weight) / (1 + exp(min(size / self.size_median - 1, 700)))

    def scores(self, waits_s: NDArray[np.float64], worths: NDArray[np.float64]) -> NDArray[np.float64]:
        half = 0.5 / self.wait_median_s  # a sigmoid is a hyperbolic tangent, which is one pass
        return worths + 0.5 * self.wait_weight * np.tanh(waits_s * half - 0.5)


class Boost(KeyedQueue):
    """FIFO in which a request counts as having come earlier by its boost, `log(m / (m - 1)) / decay`.

    `m` is the mean of `exp(decay * service)` over the possible sizes, the service being what the engine needs for the
    request alone at its full rate.  Of all policies that order by arrival and size it makes the tail of response times
    fall fastest, where the decay is that of the tail itself (Yu and Scully, "Strongly Tail-Optimal Scheduling in the
    Light-Tailed M/G/1", 2024).  A request is overtaken only by those that come within the difference of two boosts.

    Cost: O(log n), and the number of quantiles.

    Parameters:
        decay: a second; towards 0 it becomes SJF, large it is FIFO.
        tokens_per_s: what the engine makes with all its slots taken.
    """

    def __init__(self, decay: float = 0.02, tokens_per_s: float = 1000.0):
        super().__init__()
        self.decay = positive("decay", decay)
        self.tokens_per_s = positive("tokens_per_s", tokens_per_s)

    def key(self, request: Request) -> float:
        totals, rate = possible_tokens(request), self.decay / self.tokens_per_s
        largest = totals[-1]
        log_mean = rate * largest + log(fsum([exp(rate * (total - largest)) for total in totals]) / len(totals))
        return request.arrival_s + log(-expm1(-log_mean)) / self.decay
