"""vLLM in this process, stepped by the serving loop; any Hugging Face model id or folder, on a CPU or a GPU."""
# ruff: noqa: E402  # vLLM and torch read the environment when they are imported

import gc
import logging
import os
import time
import warnings
from bisect import bisect
from collections.abc import Mapping
from dataclasses import fields
from typing import Any
from zlib import crc32

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine must live in this process, or nothing could step it
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
# Notebooks and the progress bar stay readable; errors are still shown.
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")

import torch
from vllm import EngineArgs, LLMEngine, SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.utils import compute_iteration_details

from driftsched_lib.engines.base import check_context, check_idle, check_progress, fitted, length_error, wait_s
from driftsched_lib.engines.profile import EngineLimits, Profile, StepCost
from driftsched_lib.requests import Output, Request

THREADS = torch.get_num_threads()
gc.freeze()  # seven thousand modules that never become garbage; vLLM freezes them only once an engine has started

if torch.cpu._is_amx_tile_supported():
    # Linux grants these registers on request.  vLLM's attention uses them without asking and dies of an illegal
    # instruction, unless a large product has made oneDNN ask before.
    torch.cpu._init_amx()


class _Generators(dict):
    """On a CPU, start a request's generator anew where vLLM would take back the draw of a partly computed prompt."""

    def get(self, index: int) -> None:
        if index in self:
            self[index].manual_seed(self[index].initial_seed())


class VllmEngine:
    """Serve by vLLM's `LLMEngine`, one iteration per step, in wall time or, with a profile, in virtual time.

    In virtual time vLLM decides, schedules and generates, and each iteration takes what the profile's costs say of what
    it held.  The limits are the engine's own.  With nothing in flight, time jumps.

    A request with `fixed_output_tokens` generates exactly that many: the end token is forbidden before, so that the
    output is still text.  Any other ends by itself or at its `max_tokens`.  Its id and prompt seed its sampling.

    Parameters:
        engine_args: any of vLLM's `EngineArgs` by name; ValueError for one that vLLM does not know.
        temperature: sampling temperature of requests without their own.
    """

    def __init__(self, model: str, engine_args: Mapping[str, Any], temperature: float, profile: Profile | None = None):
        if unknown := sorted(set(engine_args) - {field.name for field in fields(EngineArgs)}):
            raise ValueError(f"args: vLLM does not know {', '.join(unknown)}")
        if profile is not None and engine_args.get("async_scheduling", profile.limits.async_scheduling):
            raise ValueError("virtual time is synchronous: this profile needs args {async_scheduling: false}")
        defaults = {"use_tqdm_on_load": False} | ({} if profile is None else {"async_scheduling": False})
        config = EngineArgs(**(defaults | dict(engine_args)), model=model).create_engine_config()
        self._cost = None if profile is None else profile.step
        torch._C.set_num_threads(THREADS if profile is None else 1)  # of more, their number could decide a sample
        self._llm = LLMEngine.from_vllm_config(config)
        if current_platform.is_cpu():
            self._llm.collective_rpc(lambda one: setattr(one.model_runner.input_batch, "generators", _Generators()))
        self._scheduler = self._llm.engine_core.engine_core.scheduler
        self._update, self._scheduler.update_from_output = self._scheduler.update_from_output, self._noted_update
        self.tokenizer = self._llm.get_tokenizer()
        scheduler, cache = self._llm.vllm_config.scheduler_config, self._llm.vllm_config.cache_config
        self.max_num_seqs = scheduler.max_num_seqs
        self.limits = EngineLimits(
            max_num_seqs=scheduler.max_num_seqs,
            max_num_batched_tokens=scheduler.max_num_batched_tokens,
            max_model_len=self._llm.vllm_config.model_config.max_model_len,
            block_size=cache.block_size,
            kv_blocks=cache.num_gpu_blocks - 1,  # vLLM keeps one that no request gets
            async_scheduling=bool(scheduler.async_scheduling),
        )
        self.temperature = temperature
        self._in_flight: dict[str, Request] = {}
        self.restart_clock()

    def restart_clock(self) -> None:
        """Start a new run at time zero with an empty step log and prefix cache."""
        check_idle(self._in_flight)
        self._llm.reset_prefix_cache()
        self._started, self._virtual_s = time.monotonic(), 0.0
        self.steps: list[tuple] = []  # a row per iteration, with the columns `STEP_COLUMNS`
        self._updates: list[float] = []  # when vLLM was told what each of them made, on its own clock
        self._decoding: set[str] = set()

    def count_tokens(self, text: str) -> int:
        """Return a prompt's length in tokens, without special tokens."""
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    def now(self) -> float:
        return time.monotonic() - self._started if self._cost is None else self._virtual_s

    def has_room(self) -> bool:
        return len(self._in_flight) < self.max_num_seqs

    def add(self, request: Request) -> None:
        params = SamplingParams(
            temperature=self.temperature if request.temperature is None else request.temperature,
            max_tokens=request.fixed_output_tokens or request.max_tokens,
            min_tokens=request.fixed_output_tokens or 0,
            seed=crc32(f"{request.request_id} {request.prompt}".encode()),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        token_ids = self.tokenizer.encode(request.prompt)
        prompt_tokens = request.prompt_tokens or len(token_ids)
        check_context(request, prompt_tokens, self.limits.max_model_len)
        try:
            self._llm.add_request(request.request_id, {"prompt_token_ids": fitted(token_ids, prompt_tokens)}, params)
        except VLLMValidationError as error:
            raise ValueError(str(error)) from error
        self._in_flight[request.request_id] = request

    def abort(self, request_id: str) -> None:
        if self._in_flight.pop(request_id, None) is not None:
            self._llm.abort_request([request_id])

    def step(self, until: float) -> list[Output]:
        self._began_s = self.now()
        if self._in_flight:
            outputs, now = self._llm.step(), self.now()
            return [self._finished(output, now) for output in outputs if output.finished]
        check_progress(until)
        self._virtual_s = max(self._virtual_s, until)
        time.sleep(wait_s(until, self.now()))
        return []

    def close(self) -> None:
        """Give back the engine's memory at once: the next engine may need it before this object is collected.

        All vLLM engines of a process share what this takes down.
        """
        self._llm.engine_core.shutdown()

    def _noted_update(self, scheduled, *made):
        """Let vLLM take in what an iteration made; write its row and, in virtual time, pass its seconds."""
        if not (tokens := scheduled.num_scheduled_tokens):
            return self._update(scheduled, *made)
        self._updates.append(time.monotonic())
        self._virtual_s += 0.0 if self._cost is None else self._seconds(tokens, self._cost)
        outputs = self._update(scheduled, *made)
        queues, usage = self._scheduler.get_request_counts(), self._scheduler.kv_cache_manager.usage
        held, preemptions = compute_iteration_details(scheduled), len(scheduled.preempted_req_ids or ())
        contents = held.num_ctx_requests, held.num_ctx_tokens, held.num_generation_requests, held.num_generation_tokens
        self.steps.append((now := self.now(), now - self._began_s, *queues, *contents, preemptions, usage))
        return outputs

    def _seconds(self, tokens: Mapping[str, int], cost: StepCost) -> float:
        """Return what an iteration takes; a sequence decodes from its first iteration after a whole prompt."""
        requests, decoding = self._scheduler.requests, self._decoding & tokens.keys()
        self._decoding = {name for name in tokens if not requests[name].is_prefill_chunk}
        context = sum(requests[name].num_computed_tokens for name in decoding)
        prompts, computed = len(tokens) - len(decoding), sum(tokens.values()) - len(decoding)
        prefill_s = (prompts > 0) * cost.per_prefill_step_s + prompts * cost.per_prompt_s
        decode_s = cost.decoding_s(len(decoding)) + context * cost.per_context_token_s
        return decode_s + prefill_s + computed * cost.per_prefill_token_s

    def _finished(self, output, now: float) -> Output:
        request, token_ids = self._in_flight.pop(output.request_id), output.outputs[0].token_ids
        prompt_tokens, tokens = len(output.prompt_token_ids), len(token_ids)
        words = len(self.tokenizer.decode(token_ids, skip_special_tokens=True).split())
        first_s = self.steps[bisect(self._updates, output.metrics.first_token_ts) - 1][0]
        return Output(request, prompt_tokens, tokens, words, first_s, now, length_error(request, tokens))
