"""The paper's five policies."""

from collections.abc import Iterator, Mapping

from driftsched_lib.policies.base import KeyedQueue, Policy
from driftsched_lib.requests import TIERS, Request, Tiers
from driftsched_lib.validation import not_negative


def ranks(tiers: Tiers) -> dict[str, int]:
    """Return the rank of each tier, 1 for the best."""
    return {tier: rank for rank, tier in enumerate(tiers, start=1)}


class Fifo(KeyedQueue):
    """Global arrival order.

    Source: the paper's, and vLLM's own default.  Cost: O(log n).
    """

    def key(self, request: Request) -> float:
        return 0.0


class Priority(KeyedQueue):
    """The better tier first, FIFO within: premium, standard, batch.  Nothing bounds the wait of the last tier.

    Source: the paper's.  Cost: O(log n).
    """

    def __init__(self, tiers: Tiers = TIERS):
        super().__init__()
        self.ranks = ranks(tiers)

    def key(self, request: Request) -> float:
        return self.ranks[request.tier]


class ShortestJobFirst(KeyedQueue):
    """Smallest estimated total of input and output tokens first; nothing bounds the wait of a long request.

    Source: the paper's.  On one server, and with sizes known, no order that does not preempt has a lower mean wait of
    those that are queued (Smith, 1956).  Cost: O(log n).
    """

    def key(self, request: Request) -> float:
        return request.estimate.total_tokens


class AgingPriority(KeyedQueue):
    """Smallest `rank - rate * seconds waited` first.

    All queued requests age alike, so the order of two never changes while they are queued, and the key is
    `rank + rate * arrival`: a heap serves what the reference implementation scans for.  A request overtakes those of
    a tier better by one that arrive more than 1 / rate seconds after it.

    Source: the paper's.  Cost: O(log n).

    Parameters:
        rate: ranks gained per second of waiting.
    """

    def __init__(self, rate: float = 0.01, tiers: Tiers = TIERS):
        super().__init__()
        self.rate = not_negative("rate", rate)
        self.ranks = ranks(tiers)

    def key(self, request: Request) -> float:
        return self.ranks[request.tier] + self.rate * request.arrival_s


class Weighted(Policy):
    """A cycle of turns, FIFO within a tier; the turn of a tier with nothing queued passes on.

    Source: the paper's weighted scheduler, ten turns, 5 premium, 3 standard, 2 batch in a row.  Cost: O(log n).

    Parameters:
        tiers: their weights are the consecutive turns of each, in the order of the cycle.

    Raises:
        ValueError: a weight that is no whole number.
    """

    def __init__(self, tiers: Tiers = TIERS):
        for name, tier in tiers.items():
            if tier.weight != int(tier.weight):
                raise ValueError(f"weight of {name} is {tier.weight}, as a number of turns it must be whole")
        self.cycle = tuple(name for name, tier in tiers.items() for _ in range(int(tier.weight)))
        self._turn = 0
        self._queues = {tier: Fifo() for tier in tiers}
        self._tier_of: dict[str, str] = {}

    def add(self, request: Request) -> None:
        if request.request_id in self._tier_of:
            raise ValueError(f"request {request.request_id!r} is queued already")
        self._queues[request.tier].add(request)
        self._tier_of[request.request_id] = request.tier

    def pop(self, now: float) -> Request:
        turn = self._next_turn(self._turn, self._queues)
        request = self._queues[self.cycle[turn]].pop(now)
        self._turn = turn + 1
        del self._tier_of[request.request_id]
        return request

    def peek(self, now: float) -> Request:
        return self._queues[self.cycle[self._next_turn(self._turn, self._queues)]].peek(now)

    def remove(self, request_id: str) -> Request:
        return self._queues[self._tier_of.pop(request_id)].remove(request_id)

    def _next_turn(self, turn: int, queued: Mapping[str, object]) -> int:
        """The first turn from `turn` on whose tier has something queued; IndexError where none has."""
        for offset in range(len(self.cycle)):
            index = (turn + offset) % len(self.cycle)
            if queued[self.cycle[index]]:
                return index
        raise IndexError("pop from an empty queue")

    def __len__(self) -> int:
        return len(self._tier_of)

    def __iter__(self) -> Iterator[Request]:
        queues = {tier: iter(queue) for tier, queue in self._queues.items()}
        lengths, turn = {tier: len(queue) for tier, queue in self._queues.items()}, self._turn
        for _ in range(len(self)):
            turn = self._next_turn(turn, lengths)
            lengths[self.cycle[turn]] -= 1
            yield next(queues[self.cycle[turn]])
            turn += 1
