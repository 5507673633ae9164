"""The core: classify, estimate, queue, dispatch, learn.  It has no clock, no I/O, no engine: `now` is given."""

from collections.abc import Callable, Mapping
from heapq import heappop, heappush
from math import inf

from driftsched_lib.admission import Check
from driftsched_lib.classify import Classifier
from driftsched_lib.estimators import Censored, Estimator, Feedback
from driftsched_lib.policies import Policy
from driftsched_lib.requests import TIERS, Estimate, Outcome, Output, Record, Request, Tiers
from driftsched_lib.tokens import TokenCounter
from driftsched_lib.validation import choice


class Scheduler:
    """Compose classifier, estimator, token counter and policy; each submitted request ends in exactly one record.

    Parameters:
        on_record: called once per request, when it has ended.
        capacity: requests that may be queued, beyond which they are rejected; None for no limit.
        admission: returns why a request with its estimate is rejected, or None; None admits all.
        tiers: of the requests, the best first.
    """

    def __init__(
        self,
        policy: Policy,
        estimator: Estimator,
        counter: TokenCounter,
        classifier: Classifier,
        on_record: Callable[[Record], None],
        capacity: int | None = None,
        admission: Check | None = None,
        tiers: Tiers = TIERS,
    ):
        self.policy = policy
        self.estimator = estimator
        self.counter = counter
        self.classifier = classifier
        self.on_record = on_record
        self.capacity = capacity
        self.admission = admission
        self.depth = dict.fromkeys(tiers, 0)
        self.queued_tokens = dict.fromkeys(tiers, 0)
        self._queued: dict[str, Request] = {}
        self._running: dict[str, Request] = {}
        self._came_back: set[str] = set()  # ids of requests that the policy has popped before
        self._deadlines: list[tuple[float, str]] = []

    def __len__(self) -> int:
        """Return the number of queued requests."""
        return len(self._queued)

    def submit(self, request: Request, now: float) -> None:
        """Classify and count a request unless that is done, estimate and queue it, or reject it.

        Raises ValueError if a request of that id is queued or running, or its tier is unknown.
        """
        if request.request_id in self._queued or request.request_id in self._running:
            raise ValueError(f"request {request.request_id!r} is already here")
        if request.tier not in self.depth:
            raise ValueError(f"request {request.request_id!r}: tier {choice(request.tier, self.depth)}")
        if self.capacity is not None and len(self._queued) >= self.capacity:
            self._end(request, Outcome.REJECTED, now, f"queue full ({self.capacity})")
            return
        request.category = request.category or self.classifier.classify(request.prompt)
        request.input_tokens = request.input_tokens or request.prompt_tokens or self.counter.prompt(request.prompt)
        request.estimate = self.estimator.estimate(request)
        if self.admission is not None and (reason := self.admission(request, now, self.queued_tokens)) is not None:
            self._end(request, Outcome.REJECTED, now, reason)
            return
        self._enter_queue(request)

    def next(self, now: float) -> Request | None:
        """Return the request to dispatch now, which is running from here on; None if nothing is queued."""
        self.expire(now)
        if not self._queued:
            return None
        request = self.policy.pop(now)
        self._leave_queue(request)
        self._running[request.request_id] = request
        return request

    def preempt(self, num_output_tokens: Mapping[str, int], now: float) -> Request | None:
        """Queue a running request again if the policy wants its slot for the first queued one, and return it.

        `num_output_tokens` gives, by id, the output tokens so far of the requests that can be preempted.
        """
        if not self._queued:
            return None
        for request_id, tokens in num_output_tokens.items():
            self._running[request_id].num_output_tokens = tokens
        victim = self.policy.victim([self._running[request_id] for request_id in num_output_tokens], now)
        if victim is not None:
            victim.preemptions += 1
            self.give_back(victim.request_id)
        return victim

    def give_back(self, request_id: str) -> None:
        """Queue a running request again: the engine could not begin with it, or it was preempted."""
        self._enter_queue(self._running.pop(request_id))
        self._came_back.add(request_id)

    def complete(self, output: Output) -> None:
        """Learn from a finished request and record it; an output with an error is recorded as failed."""
        request = self._running[output.request.request_id]
        if output.error is not None:
            self._stop(request, output.tokens)
            self._end(request, Outcome.FAILED, output.finish_s, output.error)
            return
        actual = self.counter.output(output)
        is_cut = output.tokens >= request.max_tokens  # the counter may count words
        feedback = self.estimator.observe(request, Censored(actual) if is_cut else actual)
        self._stop(request, actual)
        self._end(request, Outcome.COMPLETED, output.finish_s, "", output, actual, feedback)

    def cancel(self, request_id: str, now: float, output_tokens: int | None = None) -> Request | None:
        """Record a request as cancelled; return it if it was running, so that the engine drops it, else None.

        `output_tokens` are those of a running request so far; None counts as what was estimated.
        """
        if request_id in self._queued:
            self._drop(request_id, Outcome.CANCELLED, now, "cancelled while queued")
        elif request_id in self._running:
            request = self._running[request_id]
            self._stop(request, output_tokens)
            self._end(request, Outcome.CANCELLED, now, "cancelled while running")
            return request
        return None

    def expire(self, now: float) -> None:
        """End the queued requests whose deadline passed before they were first dispatched."""
        while self._deadlines and self.next_deadline() <= now:
            self._drop(heappop(self._deadlines)[1], Outcome.EXPIRED, now, "deadline passed in the queue")

    def next_deadline(self) -> float:
        """Return when the next queued request expires (s); infinite for never."""
        while self._deadlines:
            deadline, request_id = self._deadlines[0]
            request = self._queued.get(request_id)
            if request is not None and request.deadline_s == deadline and request.dispatch_s is None:
                return deadline
            heappop(self._deadlines)
        return inf

    @property
    def is_idle(self) -> bool:
        """Whether nothing is queued and nothing is running."""
        return not self._queued and not self._running

    def fail_all(self, reason: str, now: float) -> list[str]:
        """Record all that is queued or running as failed; return the ids of what was running."""
        for request_id in list(self._queued):
            self._drop(request_id, Outcome.FAILED, now, reason)
        running = list(self._running.values())
        for request in running:
            self._stop(request)
            self._end(request, Outcome.FAILED, now, reason)
        return [request.request_id for request in running]

    def _enter_queue(self, request: Request) -> None:
        self.policy.add(request)
        self._queued[request.request_id] = request
        self.depth[request.tier] += 1
        self.queued_tokens[request.tier] += request.estimate.total_tokens
        if request.deadline_s is not None and request.dispatch_s is None:
            heappush(self._deadlines, (request.deadline_s, request.request_id))

    def _leave_queue(self, request: Request) -> None:
        del self._queued[request.request_id]
        self.depth[request.tier] -= 1
        self.queued_tokens[request.tier] -= request.estimate.total_tokens

    def _stop(self, request: Request, output_tokens: int | None = None) -> None:
        del self._running[request.request_id]
        self.policy.on_finish(request, request.estimate.output_tokens if output_tokens is None else output_tokens)

    def _drop(self, request_id: str, outcome: Outcome, now: float, reason: str) -> None:
        request = self.policy.remove(request_id)
        self._leave_queue(request)
        if request_id in self._came_back:
            self.policy.on_finish(request, request.num_output_tokens)
        self._end(request, outcome, now, reason)

    def _end(
        self,
        request: Request,
        outcome: Outcome,
        now: float,
        reason: str,
        output: Output | None = None,
        actual: int | None = None,
        feedback: Feedback | None = None,
    ) -> None:
        self._came_back.discard(request.request_id)
        estimate: Estimate | None = request.estimate
        # fmt: off
        self.on_record(Record(  # positional, since keywords would take three times as long
            request.request_id, request.phase, request.tenant, request.tier, request.job_type, request.category,
            outcome, reason, request.arrival_s, request.dispatch_s,
            output and (output.first_token_s if request.batch_id is None else now), output and output.first_token_s,
            output and output.longest_itl_s, now, request.max_tokens, request.input_tokens,
            output and output.prompt_tokens, output and output.tokens, output and output.words, actual,
            estimate and estimate.output_tokens, estimate and estimate.total_tokens,
            estimate and estimate.base_tokens, estimate and estimate.low_tokens, estimate and estimate.high_tokens,
            estimate and estimate.bias,
            feedback and feedback.bias_before, feedback and feedback.measured, feedback and feedback.bias_after,
            request.batch_id, request.batch_size, request.preemptions,
        ))
        # fmt: on
