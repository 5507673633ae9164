"""What several tests build: requests with an estimate, a composed scheduler, an engine in virtual time."""

from math import isinf

from driftsched_lib.classify import KeywordClassifier
from driftsched_lib.estimators import PaperEstimator
from driftsched_lib.experiments.params import Params
from driftsched_lib.policies import Fifo
from driftsched_lib.requests import Estimate, Output, Request
from driftsched_lib.scheduler import Scheduler
from driftsched_lib.tokens import WhitespaceCounter
from driftsched_lib.validation import PROJECT

SMOKE_SERVER = PROJECT / "params" / "smoke-server.yaml"


def make_request(
    request_id, arrival_s=0.0, tier="standard", total_tokens=10, max_tokens=4, tenant="", quantiles=None, **fields
):
    """A request as the scheduler would queue it."""
    tenant = tenant or f"tenant-{tier}"
    request = Request(str(request_id), arrival_s, "How does DNS work?", tenant, tier, max_tokens, **fields)
    request.estimate = Estimate(total_tokens, total_tokens, 1.0, total_tokens, quantiles=quantiles)
    return request


def make_scheduler(policy=None, capacity=None):
    """A scheduler, FIFO by default, and the list that its records go to."""
    records = []
    policy = Fifo() if policy is None else policy  # an empty queue is false
    scheduler = Scheduler(policy, PaperEstimator(), WhitespaceCounter(), KeywordClassifier(), records.append, capacity)
    return scheduler, records


def params_at(url, **changes):
    """The parameters for tests of a live server at this address."""
    return Params.load(
        SMOKE_SERVER, {"engine.server.url": url, **{k.replace("__", "."): v for k, v in changes.items()}}
    )


class OneTokenASecond:
    """An engine in virtual time: every request in it gets a token each second, as many words as tokens."""

    def __init__(self, slots=4, fails_at=None):
        self.slots, self.fails_at = slots, fails_at
        self.time, self.left, self.log = 0.0, {}, []

    def now(self):
        return self.time

    def has_room(self):
        return len(self.left) < self.slots

    def add(self, request):
        if request.max_tokens > 1000:
            raise ValueError("longer than the context")
        self.log.append((self.time, request.request_id))
        self.left[request.request_id] = [request, request.max_tokens]

    def abort(self, request_id):
        self.left.pop(request_id, None)

    def step(self, until):
        if not self.left:
            if isinf(until):
                raise RuntimeError("no progress")
            self.time = max(self.time, until)
            return []
        self.time += 1.0
        if self.fails_at is not None and self.time >= self.fails_at:
            raise OSError("the engine died")
        done = []
        for request, left in list(self.left.values()):
            self.left[request.request_id][1] = left - 1
            if left == 1:
                del self.left[request.request_id]
                n = request.max_tokens
                done.append(Output(request, 4, n, n, self.time - n + 1, self.time))
        return done


def filled(policy, requests):
    """Queue the requests with the policy and return it."""
    for request in requests:
        policy.add(request)
    return policy


def ids(requests):
    return [request.request_id for request in requests]
