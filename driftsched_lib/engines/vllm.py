"""vLLM in this process, stepped by the serving loop; any Hugging Face model id or folder, on a CPU or a GPU."""
# ruff: noqa: E402  # vLLM and torch read the environment when they are imported

import gc
import logging
import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

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
from vllm.sampling_params import RequestOutputKind
from vllm.v1.metrics.loggers import StatLoggerBase

from driftsched_lib.engines.base import check_context, check_idle, check_progress, fitted, length_error, wait_s
from driftsched_lib.engines.profile import EngineLimits
from driftsched_lib.requests import Output, Request

gc.freeze()  # seven thousand modules that never become garbage; vLLM freezes them only once an engine has started

if torch.cpu._is_amx_tile_supported():
    # Linux grants these registers on request.  vLLM's attention uses them without asking and dies of an illegal
    # instruction, unless a large product has made oneDNN ask before.
    torch.cpu._init_amx()


class _StepLog(StatLoggerBase):
    """Turn vLLM's statistics of each iteration into rows with the columns `STEP_COLUMNS`."""

    def __init__(self):
        self.rows: list[tuple] = []
        self.step_began = 0.0

    def log_engine_initialized(self):
        pass

    def record(self, scheduler_stats, iteration_stats, mm_cache_stats=None, engine_idx: int = 0):
        if scheduler_stats is None or (held := scheduler_stats.iteration_details) is None:
            return
        now = time.monotonic()
        queues = (scheduler_stats.num_running_reqs, scheduler_stats.num_waiting_reqs)
        prompts = (held.num_ctx_requests, held.num_ctx_tokens)
        outputs = (held.num_generation_requests, held.num_generation_tokens)
        preemptions = iteration_stats.num_preempted_reqs if iteration_stats else 0
        usage = scheduler_stats.kv_cache_usage
        self.rows.append((now, now - self.step_began, *queues, *prompts, *outputs, preemptions, usage))


class VllmEngine:
    """Serve by vLLM's `LLMEngine`, one iteration per step.

    A request with `fixed_output_tokens` generates exactly that many: the end token is forbidden before, so that the
    output is still text.  Any other ends by itself or at its `max_tokens`.

    Parameters:
        engine_args: any of vLLM's `EngineArgs` by name; ValueError for one that vLLM does not know.
        temperature: sampling temperature of requests without their own.
    """

    def __init__(self, model: str, engine_args: Mapping[str, Any], temperature: float):
        if unknown := sorted(set(engine_args) - {field.name for field in fields(EngineArgs)}):
            raise ValueError(f"args: vLLM does not know {', '.join(unknown)}")
        defaults = {"enable_logging_iteration_details": True, "use_tqdm_on_load": False}
        config = EngineArgs(**(defaults | dict(engine_args)), model=model).create_engine_config()
        self._log = _StepLog()
        self._llm = LLMEngine.from_vllm_config(config, stat_loggers=[lambda config, index: self._log])
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
        """Start a new run at time zero with an empty step log."""
        check_idle(self._in_flight)
        self._started = time.monotonic()
        self._log.rows = []

    @property
    def steps(self) -> list[tuple]:
        """One row per iteration of this run, with the columns `STEP_COLUMNS`."""
        return [(row[0] - self._started, *row[1:]) for row in self._log.rows]

    def count_tokens(self, text: str) -> int:
        """Return a prompt's length in tokens, without special tokens."""
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    def now(self) -> float:
        return time.monotonic() - self._started

    def has_room(self) -> bool:
        return len(self._in_flight) < self.max_num_seqs

    def add(self, request: Request) -> None:
        params = SamplingParams(
            temperature=self.temperature if request.temperature is None else request.temperature,
            max_tokens=request.fixed_output_tokens or request.max_tokens,
            min_tokens=request.fixed_output_tokens or 0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        token_ids = self.tokenizer.encode(request.prompt)
        prompt_tokens = request.prompt_tokens or len(token_ids)
        check_context(request, prompt_tokens, self.limits.max_model_len)
        prompt = {"prompt_token_ids": fitted(token_ids, prompt_tokens)}
        try:
            self._llm.add_request(request.request_id, prompt, params)
        except VLLMValidationError as error:
            raise ValueError(str(error)) from error
        self._in_flight[request.request_id] = request

    def abort(self, request_id: str) -> None:
        if self._in_flight.pop(request_id, None) is not None:
            self._llm.abort_request([request_id])

    def step(self, until: float) -> list[Output]:
        if self._in_flight:
            self._log.step_began = time.monotonic()
            outputs = self._llm.step()
            now = self.now()
            return [self._finished(output, now) for output in outputs if output.finished]
        check_progress(until)
        time.sleep(wait_s(until, self.now()))
        return []

    def close(self) -> None:
        """Give back the engine's memory at once: the next engine may need it before this object is collected.

        All vLLM engines of a process share what this takes down.
        """
        self._llm.engine_core.shutdown()

    def _finished(self, output, now: float) -> Output:
        request, token_ids = self._in_flight.pop(output.request_id), output.outputs[0].token_ids
        prompt_tokens, tokens = len(output.prompt_token_ids), len(token_ids)
        words = len(self.tokenizer.decode(token_ids, skip_special_tokens=True).split())
        first_s, error = output.metrics.first_token_ts - self._started, length_error(request, tokens)
        return Output(request, prompt_tokens, tokens, words, first_s, now, error)
