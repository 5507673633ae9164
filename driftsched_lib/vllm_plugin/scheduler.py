"""The core inside vLLM: `--scheduler-cls driftsched_lib.vllm_plugin.DriftSchedScheduler`.

vLLM's scheduler (the class is a subclass of its `AsyncScheduler`) keeps its running requests, its KV cache and its
batches.  Which waiting request comes next is decided by a policy of ours, from estimates that learn from every request
that finishes in the engine.  On a CPU vLLM itself switches asynchronous scheduling off; the tests drive it with a model
runner that answers one step late.

Settings (`plugin_settings`) come from the YAML file that DRIFTSCHED_CONFIG names, or
`--additional-config '{"driftsched_config": "FILE"}'`; without either the defaults hold.
"""

import inspect
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from vllm import __version__
from vllm.config import VllmConfig
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request as VllmRequest
from vllm.v1.request import RequestStatus

from driftsched_lib.classify import KeywordClassifier
from driftsched_lib.errors import ParamsError
from driftsched_lib.estimators import ESTIMATORS, Estimator
from driftsched_lib.estimators.state import load_estimator, save_estimator
from driftsched_lib.policies import POLICIES
from driftsched_lib.requests import Output, Request
from driftsched_lib.scheduler import Scheduler
from driftsched_lib.tokens import TokenizerCounter
from driftsched_lib.vllm_plugin import metrics as plugin_metrics
from driftsched_lib.vllm_plugin.settings import PluginSettings
from driftsched_lib.workloads.text_classifier import TextClassifier

CONFIG = "DRIFTSCHED_CONFIG"
TESTED = ("0.32.0",)
READ_TOKENS = 64
"""Of a prompt's end, and half as many of its beginning: one of them says what it asks for, for all may begin alike (a
system prompt), and a prompt can be a thousand times as long as that."""
SAVE_EVERY_S = 180.0
COMPLETED = {
    RequestStatus.FINISHED_STOPPED,
    RequestStatus.FINISHED_LENGTH_CAPPED,
    RequestStatus.FINISHED_REPETITION,
}

logger = logging.getLogger("vllm.driftsched")  # below vLLM's own, so that it is shown as that is


class DriftSchedScheduler(AsyncScheduler):
    """vLLM's scheduler with a policy as its waiting queue.

    A request that vLLM preempts comes before all that the policy holds, as in vLLM.  One that it takes up and cannot
    begin with (its grammar compiles, its LoRA has no room) goes back to the policy.

    Raises:
        ParamsError, ParamsError: settings or learnt state that cannot be used.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        warn_if_untested(__version__)
        tokenizer = cached_tokenizer_from_config(self.vllm_config.model_config)
        # The one in Rust, where there is one: the wrapper around it takes longer than it.
        self._decode = None if tokenizer is None else getattr(tokenizer, "backend_tokenizer", tokenizer).decode
        if not self.scheduler_config.async_scheduling:  # what `AsyncScheduler` does for each token would be in vain
            self._update_after_schedule = super(AsyncScheduler, self)._update_after_schedule
            self._update_request_with_output = super(AsyncScheduler, self)._update_request_with_output
        self._epoch_s = time.time() - time.monotonic()
        self.use(load_settings(self.vllm_config))
        if plugin_metrics.MULTIPROCESS not in os.environ:
            logger.warning(
                "DriftSched's metrics are seen at /metrics where %s names an empty folder", plugin_metrics.MULTIPROCESS
            )

    def use(self, settings: PluginSettings) -> None:
        """Begin with these settings and an empty queue."""
        make = ESTIMATORS[settings.estimator.name]
        estimator = make(base_tokens=settings.base_tokens, **settings.estimator.options)
        parallel = self.vllm_config.parallel_config
        rank = parallel.data_parallel_index if parallel.data_parallel_size > 1 else None
        self._state_file = state_path(settings.state_file, rank)
        if self._state_file is not None:
            estimator = resumed(estimator, self._state_file)
        self._settings = settings
        self._save_at_s = self._now() + SAVE_EVERY_S
        self.core = Scheduler(
            policy=POLICIES[settings.policy.name](**settings.policy.options),
            estimator=estimator,
            counter=TokenizerCounter(lambda text: 0),  # asked only for a prompt of embeddings, which has no tokens
            classifier=TextClassifier() if settings.classifier == "text" else KeywordClassifier(),
            on_record=plugin_metrics.ended,
        )
        self.waiting = PolicyQueue(self.core, self._read, self._now)
        logger.info("DriftSched: %s on estimates by %s", settings.policy, settings.estimator)

    def schedule(self, *args, **kwargs) -> SchedulerOutput:
        self.waiting.now = self._now()
        if self.core.policy.preemptive and self._policy_may_preempt():
            with plugin_metrics.decision("preempt"):
                self._preempt_for_policy()
        output = super().schedule(*args, **kwargs)
        self.waiting.settle()
        return output

    def _policy_may_preempt(self) -> bool:
        """Whether a slot that is taken back would go at once to the policy's first request."""
        taken = len(self.running) + self.num_waiting_for_streaming_input
        return (
            self._pause_state is PauseState.UNPAUSED
            and taken >= self.max_num_active_reqs
            and not self.kv_holding_waiting
            and self.waiting.first_is_the_policys()
            and not self._is_blocked_waiting_status(self.waiting.peek_request().status)
        )

    def _preempt_for_policy(self) -> None:
        """If the policy wants it, preempt a running request as vLLM itself does; vLLM then takes the first waiting."""
        free = [request for request in self.running if self._request_blocks_can_be_freed(request)]
        num_output_tokens = {request.request_id: request.num_output_tokens for request in free}
        victim = self.core.preempt(num_output_tokens, self.waiting.now)
        if victim is not None:
            request = self.requests[victim.request_id]
            self.waiting.take_back(request)
            self.running.remove(request)
            self._preempt_request(request, time.monotonic(), drop_stale_output=True)
            self.prev_step_scheduled_req_ids.discard(request.request_id)  # it may come back in this very step

    def _free_request(self, request: VllmRequest, *args, **kwargs):
        self._learn(request)
        return super()._free_request(request, *args, **kwargs)

    def shutdown(self) -> None:
        self._save()
        super().shutdown()

    def _learn(self, request: VllmRequest) -> None:
        served, tokens = self.waiting.served.pop(request.request_id, None), request.num_output_tokens
        if served is None:
            return  # it was never dispatched, and left the queue as cancelled
        if request.status is RequestStatus.FINISHED_ABORTED:
            self.core.cancel(request.request_id, self._now(), tokens)
            return
        error = None if request.status in COMPLETED else f"vLLM: {request.status}"
        with plugin_metrics.decision("learn"):
            output = Output(served, request.num_prompt_tokens, tokens, None, None, self._now(), error)
            self.core.complete(output)
        if self._now() >= self._save_at_s:
            self._save()

    def _save(self) -> None:
        """Keep what was learnt; an engine does not end because a disk is full."""
        self._save_at_s = self._now() + SAVE_EVERY_S
        if self._state_file is not None:
            try:
                save_estimator(self.core.estimator, self._state_file)
            except OSError as error:
                logger.warning("DriftSched's estimates are not kept: %s", error)

    def _read(self, request: VllmRequest) -> Request:
        """Our view of a request: who sent it, how it begins, and when."""
        sent = request.sampling_params.extra_args if request.sampling_params is not None else None
        tenant, tier, category = self._settings.identify(sent or {}, request.priority)
        prompt = ""
        if request.prompt_token_ids is not None and self._decode is not None:
            prompt = self._decode(both_ends(request.prompt_token_ids), skip_special_tokens=True)
        return Request(
            request_id=request.request_id,
            arrival_s=self._now(),
            prompt=prompt,
            tenant=tenant,
            tier=tier,
            max_tokens=max(1, request.max_tokens),
            category=category,
            input_tokens=request.num_prompt_tokens,
        )

    def _now(self) -> float:
        """Seconds since the epoch, by a clock that never goes back: waits are right, and so is the time of day."""
        return self._epoch_s + time.monotonic()


class PolicyQueue(RequestQueue):
    """vLLM's waiting queue: what vLLM puts in front, then what the core's policy says.

    Parameters:
        read: makes our request of vLLM's.
        clock: seconds, never going back.

    Attributes:
        now: when the iteration's scheduling began, the time at which the policy is asked.  vLLM looks at a request,
            finds room for it, and then takes it, which must be the same one.
        served: our requests that were dispatched and have not ended, by id.
    """

    def __init__(self, core: Scheduler, read: Callable[[VllmRequest], Request], clock: Callable[[], float]):
        self.now = clock()
        self.served: dict[str, Request] = {}
        self._core = core
        self._read = read
        self._clock = clock
        self._front: deque[VllmRequest] = deque()
        self._queued: dict[str, VllmRequest] = {}
        self._popped: dict[str, Request] = {}

    def add_request(self, request: VllmRequest) -> None:
        if request.request_id in self.served:  # the next turn of a session
            self._front.append(request)
            return
        with plugin_metrics.decision("submit"):
            ours = self._read(request)
            self._core.submit(ours, ours.arrival_s)
            self._queued[request.request_id] = request
            self._show_depth(ours.tier)

    def peek_request(self) -> VllmRequest:
        if self._front:
            return self._front[0]
        return self._queued[self._core.policy.peek(self.now).request_id]

    def first_is_the_policys(self) -> bool:
        """Whether what `peek_request` shows is the policy's choice."""
        return bool(self._queued) and not self._front

    def pop_request(self) -> VllmRequest:
        if self._front:
            return self._front.popleft()
        with plugin_metrics.decision("dispatch"):
            ours = self._core.next(self.now)
            if ours is None:
                raise IndexError("pop from an empty queue")
            self.served[ours.request_id] = self._popped[ours.request_id] = ours
            self._show_depth(ours.tier)
            return self._queued.pop(ours.request_id)

    def settle(self) -> None:
        """The iteration's scheduling has ended: what was popped and did not come back is dispatched."""
        for ours in self._popped.values():
            plugin_metrics.dispatched(ours, self._clock())
        self._popped.clear()

    def take_back(self, request: VllmRequest) -> None:
        """A request that the core has queued again is about to be preempted."""
        self._queued[request.request_id] = request
        self._show_depth(self.served.pop(request.request_id).tier)

    def prepend_request(self, request: VllmRequest) -> None:
        if request.request_id not in self._queued:  # else it was preempted for the policy, which has its place
            self._front.appendleft(request)

    def prepend_requests(self, requests: Iterable[VllmRequest]) -> None:
        """What vLLM popped and could not begin with, the last of it first."""
        ran = []
        for request in reversed(list(requests)):
            ours = self._popped.pop(request.request_id, None)
            if ours is None:
                ran.append(request)
                continue
            del self.served[request.request_id]
            self._queued[request.request_id] = request
            self._core.give_back(request.request_id)
            self._show_depth(ours.tier)
        self._front.extendleft(reversed(ran))

    def remove_request(self, request: VllmRequest) -> None:
        self.remove_requests([request])

    def remove_requests(self, requests: Iterable[VllmRequest]) -> None:
        ids = {request.request_id for request in requests}
        if self._front:
            self._front = deque(request for request in self._front if request.request_id not in ids)
        for request_id in ids & self._queued.keys():
            del self._queued[request_id]
            self._core.cancel(request_id, self._clock())
        for tier in self._core.depth:
            self._show_depth(tier)

    def _show_depth(self, tier: str) -> None:
        plugin_metrics.queued(tier, self._core.depth[tier])

    def __bool__(self) -> bool:
        return bool(self._front) or bool(self._queued)

    def __len__(self) -> int:
        return len(self._front) + len(self._queued)

    def __iter__(self) -> Iterator[VllmRequest]:
        yield from self._front
        for ours in self._core.policy:
            yield self._queued[ours.request_id]


def both_ends(token_ids: list[int]) -> list[int]:
    """What is read of a prompt, as `READ_TOKENS` says."""
    if len(token_ids) <= 3 * READ_TOKENS // 2:
        return token_ids
    return token_ids[: READ_TOKENS // 2] + token_ids[-READ_TOKENS:]


def state_path(state_file: str | None, rank: int | None) -> Path | None:
    """Where an engine keeps its state; of several that serve side by side, each in a file of its own."""
    if state_file is None:
        return None
    path = Path(state_file)
    return path if rank is None else path.with_stem(f"{path.stem}-rank{rank}")


def resumed(asked: Estimator, path: Path) -> Estimator:
    """The estimator of a state file where there is one; the file is one that can be written.

    Raises:
        ParamsError: the file cannot be read or written, or holds another estimator than the one asked for.
    """
    estimator = load_estimator(path) if path.exists() else asked
    if _described(estimator) != _described(asked):
        message = f"{path}: holds {_described(estimator)}, and the settings ask for {_described(asked)}"
        raise ParamsError(f"{message}: name another state_file, or delete it")
    try:
        save_estimator(estimator, path)
    except OSError as error:
        raise ParamsError(f"{path}: cannot be written: {error}") from None
    return estimator


def _described(estimator: Estimator) -> str:
    """Its kind and parameters."""
    parameters = {name: getattr(estimator, name) for name in inspect.signature(type(estimator)).parameters}
    return f"{type(estimator).__name__} with {parameters}"


def load_settings(config: VllmConfig) -> PluginSettings:
    """The settings of the file that the environment or vLLM's additional config names, or the defaults."""
    additional = config.additional_config if isinstance(config.additional_config, dict) else {}
    path = os.environ.get(CONFIG) or additional.get("driftsched_config")
    return PluginSettings() if path is None else PluginSettings.load(path)


def warn_if_untested(version: str) -> None:
    """vLLM's scheduler is not a public interface: it may change with each version."""
    if version.partition("+")[0] not in TESTED:
        logger.warning("DriftSched is tested with vLLM %s, this is %s", ", ".join(TESTED), version)
