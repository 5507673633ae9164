"""vLLM's scheduler with a policy of ours as its waiting queue.

vLLM keeps its running requests, its KV cache and its batches.  The policy decides which waiting request comes next, by
estimates that learn from every request that finishes in the engine.
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

from driftsched_lib.classify import KeywordClassifier, TextClassifier
from driftsched_lib.errors import ParamsError
from driftsched_lib.estimators import Estimator
from driftsched_lib.estimators.state import load_estimator, save_estimator
from driftsched_lib.requests import Output, Request
from driftsched_lib.scheduler import Scheduler
from driftsched_lib.tokens import TokenizerCounter
from driftsched_lib.vllm_plugin import metrics
from driftsched_lib.vllm_plugin.settings import PluginSettings

CONFIG = "DRIFTSCHED_CONFIG"
TESTED = ("0.32.0",)
"""Versions of vLLM that the tests ran with.  Its scheduler is not a public interface and may change in any version."""
READ_TOKENS = 64
"""Tokens read from a prompt's end, plus half as many from its start: enough to classify it.  Many prompts share their
start (a system prompt), and reading all of a long one would take too long."""
SAVE_EVERY_S = 180.0
COMPLETED = {RequestStatus.FINISHED_STOPPED, RequestStatus.FINISHED_LENGTH_CAPPED, RequestStatus.FINISHED_REPETITION}

logger = logging.getLogger("vllm.driftsched")  # a child of vLLM's logger, so it is shown as vLLM's are


class DriftSchedScheduler(AsyncScheduler):
    """vLLM's scheduler, which takes waiting requests in the order of a policy.

    A request that vLLM preempts comes before all requests of the policy, as in vLLM.  A request that vLLM pops and
    cannot start yet (its grammar compiles, its LoRA has no room) goes back to the policy.

    Raises:
        ParamsError: the settings or the state file cannot be used.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        warn_if_untested(__version__)
        tokenizer = cached_tokenizer_from_config(self.vllm_config.model_config)
        # Prefer the tokenizer written in Rust: the Python wrapper around it takes longer than decoding itself.
        self._decode = None if tokenizer is None else getattr(tokenizer, "backend_tokenizer", tokenizer).decode
        if not self.scheduler_config.async_scheduling:  # skip the bookkeeping of `AsyncScheduler` for each token
            self._update_after_schedule = super(AsyncScheduler, self)._update_after_schedule
            self._update_request_with_output = super(AsyncScheduler, self)._update_request_with_output
        self._epoch_s = time.time() - time.monotonic()
        self.use(load_settings(self.vllm_config))
        if metrics.MULTIPROCESS not in os.environ:
            logger.warning("/metrics shows DriftSched's metrics if %s names an empty folder", metrics.MULTIPROCESS)

    def use(self, settings: PluginSettings) -> None:
        """Start with these settings and an empty queue."""
        shared = {"base_tokens": settings.base_tokens, "tiers": settings.tiers}
        estimator = settings.estimator.build(**shared)
        parallel = self.vllm_config.parallel_config
        rank = f"-rank{parallel.data_parallel_index}" if parallel.data_parallel_size > 1 else ""
        self._state_file = None
        if settings.state_file is not None:
            path = Path(settings.state_file)
            self._state_file = path.with_stem(path.stem + rank)
            estimator = resumed(estimator, self._state_file)
        self._settings = settings
        self._save_at_s = self._now() + SAVE_EVERY_S
        self.core = Scheduler(
            policy=settings.policy.build(**shared),
            estimator=estimator,
            counter=TokenizerCounter(lambda text: 0),  # counts only prompts given as embeddings, which have no tokens
            classifier=TextClassifier() if settings.classifier == "text" else KeywordClassifier(),
            on_record=metrics.on_record,
            tiers=settings.tiers,
        )
        self.waiting = PolicyQueue(self.core, self._read, self._now)
        logger.info("DriftSched: %s on estimates by %s", settings.policy, settings.estimator)

    def schedule(self, *args, **kwargs) -> SchedulerOutput:
        """Preempt a running request if the policy wants it, then schedule one iteration as vLLM does."""
        self.waiting.now = self._now()
        if self.core.policy.preemptive and self._policy_may_preempt():
            with metrics.decision("preempt"):
                self._preempt_for_policy()
        output = super().schedule(*args, **kwargs)
        self.waiting.settle()
        return output

    def shutdown(self) -> None:
        """Save what was learnt, then shut down as vLLM does."""
        self._save()
        super().shutdown()

    def _policy_may_preempt(self) -> bool:
        """Return whether a freed slot would go at once to the policy's first request."""
        taken = len(self.running) + self.num_waiting_for_streaming_input
        return (
            self._pause_state is PauseState.UNPAUSED
            and taken >= self.max_num_active_reqs
            and not self.kv_holding_waiting
            and self.waiting.policy_is_next()
            and not self._is_blocked_waiting_status(self.waiting.peek_request().status)
        )

    def _preempt_for_policy(self) -> None:
        """Preempt the policy's victim as vLLM itself preempts; vLLM then starts the policy's first request."""
        free = [request for request in self.running if self._request_blocks_can_be_freed(request)]
        num_output_tokens = {request.request_id: request.num_output_tokens for request in free}
        victim = self.core.preempt(num_output_tokens, self.waiting.now)
        if victim is not None:
            request = self.requests[victim.request_id]
            self.waiting.requeue(request)
            self.running.remove(request)
            self._preempt_request(request, time.monotonic(), drop_stale_output=True)
            self.prev_step_scheduled_req_ids.discard(request.request_id)  # it may run again in this same iteration

    def _free_request(self, request: VllmRequest, *args, **kwargs):
        """Record a dispatched request that ended, learn from it if it completed, then free it as vLLM does."""
        served, tokens, now = self.waiting.served.pop(request.request_id, None), request.num_output_tokens, self._now()
        if served is not None and request.status is RequestStatus.FINISHED_ABORTED:
            self.core.cancel(request.request_id, now, tokens)
        elif served is not None:
            error = None if request.status in COMPLETED else f"vLLM: {request.status}"
            with metrics.decision("learn"):
                self.core.complete(Output(served, request.num_prompt_tokens, tokens, None, None, now, error))
        if now >= self._save_at_s:
            self._save()
        return super()._free_request(request, *args, **kwargs)

    def _save(self) -> None:
        """Save what was learnt; a full disk must not stop the engine, so it only warns."""
        self._save_at_s = self._now() + SAVE_EVERY_S
        if self._state_file is not None:
            try:
                save_estimator(self.core.estimator, self._state_file)
            except OSError as error:
                logger.warning("DriftSched's estimates are not saved: %s", error)

    def _read(self, request: VllmRequest) -> Request:
        """Return our view of a request that arrives now."""
        sent = request.sampling_params.extra_args if request.sampling_params is not None else None
        tenant, tier, category = self._settings.identify(sent or {}, request.priority)
        prompt = ""
        if request.prompt_token_ids is not None and self._decode is not None:
            prompt = self._decode(both_ends(request.prompt_token_ids), skip_special_tokens=True)
        room = self.max_model_len - request.num_prompt_tokens  # vLLM ends an output there, as at `max_tokens`
        lengths = {"max_tokens": max(1, min(request.max_tokens, room)), "input_tokens": request.num_prompt_tokens}
        return Request(request.request_id, self._now(), prompt, tenant, tier, category=category, **lengths)

    def _now(self) -> float:
        """Return seconds since the epoch by a clock that never goes back, so no wait is negative."""
        return self._epoch_s + time.monotonic()


class PolicyQueue(RequestQueue):
    """vLLM's waiting queue: first the requests that vLLM put in front, then those of the policy in its order.

    Parameters:
        read: makes our request from vLLM's.
        clock: returns seconds, and never goes back.

    Attributes:
        now: when scheduling of this iteration began.  The policy is asked with this time, because vLLM peeks at a
            request, finds room for it and then pops it, and both must give the same request.
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
        self._popped: dict[str, Request] = {}  # popped in this iteration, and not returned

    def add_request(self, request: VllmRequest) -> None:
        if request.request_id in self.served:  # the next turn of a session
            self._front.append(request)
            return
        with metrics.decision("submit"):
            ours = self._read(request)
            self._core.submit(ours, ours.arrival_s)
            self._queued[request.request_id] = request
            self._show_depth(ours.tier)

    def peek_request(self) -> VllmRequest:
        if self._front:
            return self._front[0]
        return self._queued[self._core.policy.peek(self.now).request_id]

    def policy_is_next(self) -> bool:
        """Return whether `peek_request` would return the policy's choice."""
        return bool(self._queued) and not self._front

    def pop_request(self) -> VllmRequest:
        if self._front:
            return self._front.popleft()
        with metrics.decision("dispatch"):
            ours = self._core.next(self.now)
            if ours is None:
                raise IndexError("pop from an empty queue")
            self.served[ours.request_id] = self._popped[ours.request_id] = ours
            self._show_depth(ours.tier)
            return self._queued.pop(ours.request_id)

    def settle(self) -> None:
        """Count the requests that were popped in this iteration and not returned as dispatched."""
        for ours in self._popped.values():
            metrics.on_dispatch(ours, self._clock())
        self._popped.clear()

    def requeue(self, request: VllmRequest) -> None:
        """Queue a dispatched request that the core has just queued again."""
        self._queued[request.request_id] = request
        self._show_depth(self.served.pop(request.request_id).tier)

    def prepend_request(self, request: VllmRequest) -> None:
        self.prepend_requests([request])

    def prepend_requests(self, requests: Iterable[VllmRequest]) -> None:
        """Return what this iteration popped and could not start to the policy, and put all else in front.

        A request that the policy preempted is queued there already.  vLLM gives the last popped request first.
        """
        requests = list(requests)
        for request in reversed(requests):
            if self._popped.pop(request.request_id, None) is not None:
                self._core.give_back(request.request_id)
                self.requeue(request)
        self._front.extendleft(request for request in requests if request.request_id not in self._queued)

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
        metrics.on_queue_depth(tier, self._core.depth[tier])

    def __bool__(self) -> bool:
        return bool(self._front) or bool(self._queued)

    def __len__(self) -> int:
        return len(self._front) + len(self._queued)

    def __iter__(self) -> Iterator[VllmRequest]:
        yield from self._front
        for ours in self._core.policy:
            yield self._queued[ours.request_id]


def both_ends(token_ids: list[int]) -> list[int]:
    """Return the part of a prompt that is read; see `READ_TOKENS`."""
    is_short = len(token_ids) <= 3 * READ_TOKENS // 2
    return token_ids if is_short else token_ids[: READ_TOKENS // 2] + token_ids[-READ_TOKENS:]


def resumed(asked: Estimator, path: Path) -> Estimator:
    """Return the estimator of a state file, or `asked` if there is no file yet; write the file once, as a check.

    Raises:
        ParamsError: the file cannot be read or written, or holds another estimator than `asked`.
    """
    estimator = load_estimator(path) if path.exists() else asked
    if _described(estimator) != _described(asked):
        message = f"{path}: holds {_described(estimator)}, and the settings ask for {_described(asked)}"
        raise ParamsError(f"{message}: name another state_file, or delete it")
    try:
        save_estimator(estimator, path)
    except (OSError, ValueError) as error:
        raise ParamsError(f"{path}: cannot be written: {error}") from None
    return estimator


def _described(estimator: Estimator) -> str:
    """Return an estimator's class and parameters, as text."""
    parameters = {name: getattr(estimator, name, None) for name in inspect.signature(type(estimator)).parameters}
    return f"{type(estimator).__name__} with {parameters}"


def load_settings(config: VllmConfig) -> PluginSettings:
    """Return the settings of the YAML file that is named, or the defaults.

    The environment's DRIFTSCHED_CONFIG names it, or `--additional-config '{"driftsched_config": "FILE"}'`.
    """
    additional = config.additional_config if isinstance(config.additional_config, dict) else {}
    path = os.environ.get(CONFIG) or additional.get("driftsched_config")
    return PluginSettings() if path is None else PluginSettings.load(path)


def warn_if_untested(version: str) -> None:
    """Warn of a version of vLLM that is not in `TESTED`."""
    if version.partition("+")[0] not in TESTED:
        logger.warning("DriftSched is tested with vLLM %s, this is %s", ", ".join(TESTED), version)
