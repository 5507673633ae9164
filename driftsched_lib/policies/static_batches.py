"""Which of the queued requests share a static batch.

A static batch lasts as long as its longest request, however many it holds: it is one job of that size, and its price
is that of all in it.

**What belongs together.**  By the exchange of neighbours, batches belong in the order of `longest / sum of prices`.  So
of an order by size per price a group is those first ones for which that is least: the next would lengthen the batch by
more than it is worth, and begins the next group.

**When it goes.**  A group that does not fill a batch keeps all others waiting for as long as one that does.  If it
waits, more of its kind come and share that time.  Each batch is then a set-up and the wait of those in it a holding
cost, and under a steady stream the sum is least where both are equal (Harris, 1913).  So a group is ripe when it fills
a batch, or when the waits of its requests have cost what its batch will cost the others.  No rate has to be known for
that; for acknowledgements over TCP, which pose the same question, this rule costs at most twice the least whatever the
arrivals (Dooly, Goldman and Scott, 2001).  The first ripe group goes, and places left are for those just before it in
the order, which do not lengthen it where that goes by size.  Where none is ripe the first one goes: an engine does not
idle while requests wait.
"""

from collections.abc import Sequence


def next_batch(sizes: Sequence[float], prices: Sequence[float], waits: Sequence[float], most: int) -> tuple[int, int]:
    """First place, and the one past the last, of the batch that goes next; see this module.

    Parameters:
        sizes: of the queued requests in their order, in tokens that stand for the engine's time.
        prices: of a token of that time in which a request waits.
        waits: such tokens since a request came.
        most: room in a batch.
    """
    of_all, start = sum(prices), 0
    while start < len(sizes):
        end = _group_end(sizes, prices, start, most)
        waited = sum(prices[i] * waits[i] for i in range(start, end))
        if end - start == most or waited >= (of_all - sum(prices[start:end])) * max(sizes[start:end]):
            return max(0, end - most), end
        start = end
    return 0, _group_end(sizes, prices, 0, most)


def _group_end(sizes: Sequence[float], prices: Sequence[float], start: int, most: int) -> int:
    best = price = longest = 0.0
    end = start
    for i in range(start, min(start + most, len(sizes))):
        price += prices[i]
        longest = max(longest, sizes[i])
        if price / longest >= best:
            best, end = price / longest, i + 1
    return end
