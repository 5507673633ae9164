"""The policies as naive references: each scans a list of what is queued, as its rule is told."""

from collections import defaultdict
from fractions import Fraction
from math import exp, log

from driftsched_lib.requests import Tier


def halving(*names):
    """Tiers whose weights and end-to-end objectives halve from one to the next; the objectives to start double."""
    powers = [2**i for i in range(len(names))]
    return {
        name: Tier(weight=weight, ttft_slo_s=64 * slo, e2e_slo_s=weight)
        for name, weight, slo in zip(names, reversed(powers), powers, strict=True)
    }


class Naive:
    """Pops from `queued`, in the order of adding, and is told of what else happens to one of these requests."""

    def __init__(self, tiers):
        self.tiers, self.rank = tiers, list(tiers).index
        self.start()

    def start(self, *_):
        """Set up the state of an empty queue: by default none."""

    added = removed = on_finish = start

    def weight(self, request):
        return self.tiers[request.tier].weight


def scan(score):
    """The first of the queued, in order of arrival, with the smallest `score(request, now, its tier, rank)`."""

    class Scan(Naive):
        def pop(self, queued, now):
            return min(queued, key=lambda r: score(r, now, self.tiers[r.tier], self.rank(r.tier)))

    return Scan


class NaiveWeighted(Naive):
    """The paper's cycle of turns over plain lists."""

    def start(self):
        self.cycle = [name for name, tier in self.tiers.items() for _ in range(int(tier.weight))]

    def pop(self, queued, now):
        while True:
            self.cycle.append(self.cycle.pop(0))
            for request in queued:
                if request.tier == self.cycle[-1]:
                    return request


class NaiveGrouped(Naive):
    """The first, then those of its category for as long as it is the same moment."""

    last = None

    def pop(self, queued, now):
        request = ([request for request in queued if (request.category, now) == self.last] or queued)[0]
        self.last = request.category, now
        return request


def is_alone(request, queued):
    return all(other.tenant != request.tenant for other in queued if other is not request)


class NaiveVtc(Naive):
    """A counter a tenant; the minimum is taken over those of the requests queued (Sheng et al., algorithm 2)."""

    def start(self):
        self.counters, self.last_left, self.charged = defaultdict(float), "", {}

    def cost(self, request, output_tokens):
        return (request.input_tokens + 2 * output_tokens) / self.weight(request)

    def added(self, request, queued):
        if is_alone(request, queued):
            last_left = self.counters[self.last_left]
            lowest = min((self.counters[other.tenant] for other in queued[:-1]), default=last_left)
            self.counters[request.tenant] = max(self.counters[request.tenant], lowest)

    def pop(self, queued, now):
        request = min(queued, key=lambda request: self.counters[request.tenant])
        if request.request_id not in self.charged:
            cost = self.charged[request.request_id] = self.cost(request, request.estimate.output_tokens)
            self.counters[request.tenant] += cost
        self.removed(request, queued)
        return request

    def removed(self, request, queued):
        if is_alone(request, queued):
            self.last_left = request.tenant

    def on_finish(self, request, output_tokens):
        self.counters[request.tenant] += self.cost(request, output_tokens) - self.charged.pop(request.request_id)


class NaiveDrr(Naive):
    """Shreedhar and Varghese's list of active tenants, walked turn by turn."""

    def start(self):
        self.turns, self.left, self.begun, self.paid = [], {}, False, set()

    def added(self, request, queued):
        if is_alone(request, queued):
            self.turns.append(request.tenant)
            self.left[request.tenant] = 0

    def pop(self, queued, now):
        while True:
            tenant = self.turns[0]
            request = next(request for request in queued if request.tenant == tenant)
            price = 0 if request.request_id in self.paid else request.estimate.total_tokens
            self.left[tenant] += 0 if self.begun else 2 * self.weight(request)
            self.begun = price <= self.left[tenant]
            if self.begun:
                self.left[tenant] -= price
                self.paid.add(request.request_id)
                self.removed(request, queued)
                return request
            self.turns.append(self.turns.pop(0))

    def removed(self, request, queued):
        if is_alone(request, queued):
            self.begun = self.begun and self.turns[0] != request.tenant
            self.turns.remove(request.tenant)


class NaiveWfq(Naive):
    """The start tag of a tenant's oldest request, by the tenant's arrival and the end of what it was served last."""

    def start(self):
        self.virtual, self.tags, self.paid, self.ends = 0.0, defaultdict(float), set(), [0.0]

    def added(self, request, queued):
        if is_alone(request, queued):
            self.tags[request.tenant] = max(self.virtual, self.tags[request.tenant])

    def pop(self, queued, now):
        request = min(queued, key=lambda request: self.tags[request.tenant])
        self.virtual = self.tags[request.tenant]
        if request.request_id not in self.paid:
            self.tags[request.tenant] += request.estimate.total_tokens / self.weight(request)
        self.paid.add(request.request_id)
        self.ends.append(self.tags[request.tenant])
        if len(queued) == 1:
            self.virtual = max(self.ends)
        return request


class NaiveMlfq(Naive):
    """Levels that end after 2, 6 and 14 tokens made since the last boost, which is every 128 seconds."""

    def start(self):
        self.before, self.boost_at = defaultdict(int), 0.0

    def level(self, request):
        return sum(request.num_output_tokens - self.before[request.request_id] >= end for end in (2, 6, 14))

    def pop(self, queued, now):
        if now >= self.boost_at:
            self.boost_at = now + 128
            self.before |= {r.request_id: r.num_output_tokens for r in queued if self.level(r)}
        return min(queued, key=self.level)


class NaiveExpress(Naive):
    """The rule as its module tells it, with everything counted anew each time."""

    def start(self):
        self.seen, self.index, self.credit, self.virtual = [], {}, 0.0, 0.0
        self.ends, self.dispatched = defaultdict(float), set()

    def size(self, request):
        totals = totals_of(request)
        return max(1.0, sum(totals) / len(totals) - request.input_tokens / 2)

    def is_express(self, request):
        return self.index[request.request_id][0] == 0

    def added(self, request, queued):
        if request.request_id in self.dispatched:
            return
        per_weight = self.size(request) / self.weight(request)
        self.seen.append(per_weight)
        is_small = sum(other < per_weight for other in self.seen) < len(self.seen) / 2
        start = max(self.ends[request.tenant], self.virtual)
        express = is_small and start <= self.virtual + 4
        self.index[request.request_id] = (0, per_weight) if express else (1, 0)
        if express:
            self.ends[request.tenant] = start + per_weight

    def pop(self, queued, now):
        oldest, request = queued[0], min(queued, key=lambda request: self.index[request.request_id])
        if self.credit >= self.size(oldest):
            request = oldest
        if request.request_id not in self.dispatched:
            self.dispatched.add(request.request_id)
            size = self.size(request)
            self.credit += size / 2
            if request is oldest:
                self.credit = max(0.0, self.credit - size)
            self.virtual += size / sum({other.tenant: self.weight(other) for other in queued}.values())
        return request

    def removed(self, request, queued):
        if self.is_express(request) and request.request_id not in self.dispatched:
            self.ends[request.tenant] -= self.size(request) / self.weight(request)

    def on_finish(self, request, output_tokens):
        if self.is_express(request):
            wrong_by = request.input_tokens / 2 + output_tokens - self.size(request)
            self.ends[request.tenant] += wrong_by / self.weight(request)


def totals_of(request):
    outputs = request.estimate.quantiles or [request.estimate.output_tokens]
    return [request.input_tokens + output for output in outputs]


def to_come(request):
    return max(1, request.estimate.output_tokens - request.num_output_tokens)


def naive_slack(request, now, tier, rank):
    return request.arrival_s + tier.e2e_slo_s - request.estimate.output_tokens / 2 - now


def naive_gittins(request, *_):
    totals = totals_of(request)
    return -max(Fraction(sum(total <= t for total in totals), sum(min(total, t) for total in totals)) for t in totals)


def naive_tie(request, *_):
    totals = totals_of(request)
    return sum(totals) / len(totals) + max(totals) / 2


def naive_boost(request, *_):
    means = [exp(total / 8) for total in totals_of(request)]
    mean = sum(means) / len(means)
    return request.arrival_s - 8 * log(mean / (mean - 1))


def naive_sigmoid(request, now, *_):
    waited, size = now - request.arrival_s, request.estimate.total_tokens
    return -0.5 / (1 + exp(1 - waited / 64)) - 0.5 / (1 + exp(size / 8 - 1))
