"""vLLM in this process, stepped by the serving loop; any Hugging Face model id or folder, on a CPU or a GPU."""

import gc
import logging
import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import fields
from math import isinf
from typing import Any

# Read by vLLM when it is first imported: the engine must live in this process, or nothing could step it.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
# What follows keeps notebooks and the progress bar readable; errors are still shown.
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")

# Seven thousand modules come to stay.  To look for garbage among them takes a fifth of the time of loading them, and as
# long again while an engine starts: vLLM puts them aside only then.
gc.disable()
try:
    import torch
    from vllm import EngineArgs, LLMEngine, SamplingParams
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.metrics.loggers import StatLoggerBase
finally:
    gc.enable()
gc.freeze()

from driftsched_lib.engines import wait_s  # noqa: E402
from driftsched_lib.engines.profile import EngineLimits  # noqa: E402
from driftsched_lib.requests import Output, Request  # noqa: E402

if torch.cpu._is_amx_tile_supported():
    # A process has to ask Linux for these registers.  vLLM's attention uses them without, and dies of an illegal
    # instruction unless a product before it was large enough for oneDNN to ask.
    torch.cpu._init_amx()


class _StepLog(StatLoggerBase):
    """Turns vLLM's own statistics of each iteration into rows with the columns `STEP_COLUMNS`."""

    def __init__(self):
        self.rows: list[tuple] = []
        self.step_began = 0.0

    def log_engine_initialized(self):
        pass

    def record(self, scheduler_stats, iteration_stats, mm_cache_stats=None, engine_idx: int = 0):
        details = scheduler_stats and scheduler_stats.iteration_details
        if details is not None:
            now = time.monotonic()
            self.rows.append(
                (
                    now,
                    now - self.step_began,
                    scheduler_stats.num_running_reqs,
                    scheduler_stats.num_waiting_reqs,
                    details.num_ctx_requests,
                    details.num_ctx_tokens,
                    details.num_generation_requests,
                    details.num_generation_tokens,
                    iteration_stats.num_preempted_reqs if iteration_stats else 0,
                    scheduler_stats.kv_cache_usage,
                )
            )


class VllmEngine:
    """vLLM's `LLMEngine`, one iteration a step.

    A request with `fixed_output_tokens` generates exactly that many: the end token is forbidden before, so that what is
    made is still text.  Any other ends by itself or at its `max_tokens`.

    Parameters:
        model: a Hugging Face model id or a folder.
        engine_args: any of vLLM's `EngineArgs` by name.
        temperature: sampling temperature.

    Raises:
        ValueError: an engine argument that vLLM does not know.
    """

    def __init__(self, model: str, engine_args: Mapping[str, Any], temperature: float):
        known = {field.name for field in fields(EngineArgs)}
        if unknown := sorted(set(engine_args) - known):
            raise ValueError(f"engine_args: vLLM knows no {', '.join(unknown)}")
        defaults = {"enable_logging_iteration_details": True, "use_tqdm_on_load": False}
        args = EngineArgs(**(defaults | dict(engine_args)), model=model)
        self._log = _StepLog()
        self._llm = LLMEngine.from_vllm_config(
            args.create_engine_config(), stat_loggers=[lambda config, index: self._log]
        )
        self.tokenizer = self._llm.get_tokenizer()
        config = self._llm.vllm_config
        self.max_num_seqs = config.scheduler_config.max_num_seqs
        self.limits = EngineLimits(
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=config.scheduler_config.max_num_batched_tokens,
            max_model_len=config.model_config.max_model_len,
            block_size=config.cache_config.block_size,
            kv_blocks=config.cache_config.num_gpu_blocks - 1,  # vLLM keeps one that no request gets
            async_scheduling=bool(config.scheduler_config.async_scheduling),
        )
        self.temperature = temperature
        self._in_flight: dict[str, Request] = {}
        self.restart_clock()

    def restart_clock(self) -> None:
        """Time zero is now and the step log is empty: a new run begins."""
        if self._in_flight:
            raise RuntimeError(f"{len(self._in_flight)} requests are still in flight")
        self._started = time.monotonic()
        self._log.rows = []

    @property
    def steps(self) -> list[tuple]:
        """A row for each iteration since the clock was started, with the columns `STEP_COLUMNS`."""
        return [(row[0] - self._started, *row[1:]) for row in self._log.rows]

    def count_tokens(self, text: str) -> int:
        """A prompt's length in tokens, special ones left out."""
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
        try:
            self._llm.add_request(request.request_id, request.prompt, params)
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
        if isinf(until):
            raise RuntimeError("no progress: nothing runs, and nothing is due to arrive or to end")
        time.sleep(wait_s(until, self.now()))
        return []

    def close(self) -> None:
        """Give back the engine's memory, most of a GPU's: waiting until nobody holds the engine would be too late for
        the next one.  All vLLM engines of a process share what this takes down."""
        self._llm.engine_core.shutdown()

    def _finished(self, output, now: float) -> Output:
        completion = output.outputs[0]
        request = self._in_flight.pop(output.request_id)
        pinned, made = request.fixed_output_tokens, len(completion.token_ids)
        return Output(
            request=request,
            prompt_tokens=len(output.prompt_token_ids),
            tokens=made,
            words=len(self.tokenizer.decode(completion.token_ids, skip_special_tokens=True).split()),
            first_token_s=output.metrics.first_token_ts - self._started,
            finish_s=now,
            error=None if pinned in (None, made) else f"the context holds {made} of {pinned} pinned tokens",
        )
