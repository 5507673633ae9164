"""A live server over HTTP: vLLM's, or another that speaks OpenAI's completions API."""

import asyncio
import json
import os
import queue
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, TypeVar

import httpx
from prometheus_client.parser import text_string_to_metric_families

from driftsched_lib.engines.base import check_idle, check_progress, length_error, wait_s
from driftsched_lib.engines.params import ServerParams
from driftsched_lib.engines.profile import EngineLimits
from driftsched_lib.errors import ParamsError, RunError
from driftsched_lib.requests import Output, Request

RETRIES = 5
FIRST_PAUSE_S = 0.2  # doubled from one retry to the next
BUSY = {429, 503}
PROBE_TIMEOUT_S = 5.0
IDLE_S = 1.0  # then a connection is dropped, before the server (uvicorn after 5 s) drops it just as it is used
T = TypeVar("T")


class _Busy(Exception):
    """The server has not begun with a request."""


async def _retried(send: Callable[[], Awaitable[T]], *errors: type[Exception]) -> T:
    """Return what `send` returns; send again, up to `RETRIES` times, while it raises one of `errors`."""
    for i in range(RETRIES - 1):
        with suppress(*errors):
            return await send()
        await asyncio.sleep(FIRST_PAUSE_S * 2**i)
    return await send()


class OpenAIServer:
    """Stream completions from a server; times are the client's, of the parts that it receives.

    A request that the server has not begun (it refuses the connection or is busy: 429, 503) is sent again, up to
    `RETRIES` times.  A request that fails later is not: its tokens are spent.  After a failure the server's health is
    asked.  If it answers, only that request has failed.  If not, all requests in flight have, and `step` raises.

    Parameters:
        server: its address, limits and API key.
        model: the name that the server gives it.
        temperature: sampling temperature of requests without their own.

    Attributes:
        limits: of vLLM's server, as its models and metrics state them; None for another server.
        steps: empty; clients do not see iterations.

    Raises:
        ParamsError: the API key is not in the environment, or the server does not serve the model.
        RunError: the address cannot be used.
    """

    def __init__(self, server: ServerParams, model: str, temperature: float):
        self.url = server.url.rstrip("/")
        self.model, self.temperature = model, temperature
        self.max_num_seqs = server.max_in_flight
        self.steps: list[tuple] = []
        self._server = server
        headers, name = {}, server.api_key_env
        if name is not None and name not in os.environ:
            raise ParamsError(f"engine.server.api_key_env: the environment holds no {name}")
        if name is not None:
            headers["Authorization"] = f"Bearer {os.environ[name]}"
        connections = httpx.Limits(max_connections=None, keepalive_expiry=IDLE_S)
        self._client = httpx.AsyncClient(headers=headers, timeout=server.timeout_s, limits=connections)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.close = weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)
        self.count_tokens = lru_cache(maxsize=10_000)(self._count_tokens)
        self._in_flight: dict[str, Future[None]] = {}
        self.restart_clock()
        served = self._ask("GET", "/v1/models", _context_lengths)
        if model not in served:
            raise ParamsError(f"{self.url} serves {', '.join(map(str, served)) or 'nothing'} and no {model}")
        self.limits = self._ask_limits(served[model])

    def restart_clock(self) -> None:
        """Start a new run at time zero."""
        check_idle(self._in_flight)
        self._started = time.monotonic()
        # A SimpleQueue would not do: CPython waits for ever if a signal arrives as its timeout ends.
        self._done: queue.Queue[Output | RunError] = queue.Queue()

    def now(self) -> float:
        return time.monotonic() - self._started

    def has_room(self) -> bool:
        return len(self._in_flight) < self.max_num_seqs

    def add(self, request: Request) -> None:
        self._in_flight[request.request_id] = asyncio.run_coroutine_threadsafe(self._serve(request), self._loop)

    def abort(self, request_id: str) -> None:
        if (task := self._in_flight.pop(request_id, None)) is not None:
            task.cancel()

    def step(self, until: float) -> list[Output]:
        """Return the requests that have ended; wait for the first.

        Raises:
            RunError: the server is gone; its requests are dropped, and a new run may try again.
        """
        if not self._in_flight:
            check_progress(until)
        done: list[Output | RunError] = []
        with suppress(queue.Empty):
            done.append(self._done.get(timeout=wait_s(until, self.now())))
            while True:
                done.append(self._done.get_nowait())
        outputs = [one for one in done if isinstance(one, Output)]
        ended = [one for one in outputs if self._in_flight.pop(one.request.request_id, None)]  # others were aborted
        if gone := [one for one in done if isinstance(one, RunError)]:
            if not ended:
                for request_id in list(self._in_flight):
                    self.abort(request_id)
                raise gone[0]
            self._done.put(gone[0])  # raised by the next step
        return ended

    def _count_tokens(self, text: str) -> int:
        """Return a prompt's length in tokens, without special tokens, as vLLM's `/tokenize` counts it."""
        content = {"model": self.model, "prompt": text, "add_special_tokens": False}
        return self._ask("POST", "/tokenize", lambda answer: int(answer.json()["count"]), content)

    def _ask_limits(self, max_model_len: int | None) -> EngineLimits | None:
        with suppress(RunError, LookupError, TypeError, ValueError):  # only a profile needs them
            families = self._ask("GET", "/metrics", lambda answer: list(text_string_to_metric_families(answer.text)))
            [cache] = [one.samples[0].labels for one in families if one.name == "vllm:cache_config_info"]
            return EngineLimits(
                max_num_seqs=self.max_num_seqs,
                max_num_batched_tokens=self._server.max_num_batched_tokens,
                max_model_len=max_model_len,
                block_size=int(cache["block_size"]),
                kv_blocks=int(cache["num_gpu_blocks"]) - 1,  # vLLM keeps one that no request gets
            )
        return None

    def _ask(self, method: str, path: str, read: Callable[[httpx.Response], T], content: dict | None = None) -> T:
        """Return what `read` makes of an answer; asking changes nothing, so it is repeated where the network fails."""
        url = f"{self.url}{path}"
        asking = _retried(lambda: self._client.request(method, url, json=content), httpx.TransportError)
        try:
            answer = asyncio.run_coroutine_threadsafe(asking, self._loop).result()
            return read(answer.raise_for_status())
        except (httpx.HTTPError, httpx.InvalidURL, LookupError, TypeError, ValueError, RecursionError) as error:
            hint = ": only vLLM knows it; count by whitespace" if path == "/tokenize" else ""
            raise RunError(f"{url} cannot be used: {type(error).__name__}: {error}{hint}") from None

    async def _serve(self, request: Request) -> None:
        """Serve a request and put its output where `step` finds it."""
        try:
            async with asyncio.timeout(self._server.timeout_s):
                send = partial(self._stream, request)
                output = await _retried(send, httpx.ConnectError, httpx.ConnectTimeout, _Busy)
        except Exception as error:  # any: `step` would wait for ever for an output that is not put
            late = isinstance(error, TimeoutError)
            reason = f"took longer than {self._server.timeout_s:g} s" if late else f"{type(error).__name__}: {error}"
            output = Output(request, 0, 0, None, None, self.now(), error=reason.removeprefix("_Busy: "))
        gone = output.error and await self._why_gone()
        self._done.put(RunError(f"{self.url} is gone: {gone}") if gone else output)

    async def _why_gone(self) -> str:
        """Return why the server can serve no request any more; empty if it is there, even if slow."""
        try:
            answer = await self._client.get(f"{self.url}/health", timeout=PROBE_TIMEOUT_S)
        except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
            return f"{type(error).__name__}: {error}"
        except httpx.HTTPError:
            return ""
        # vLLM's answer if its engine has died; a server that does not know the path is there.
        return "its engine is dead, HTTP 503" if answer.status_code == 503 else ""

    async def _stream(self, request: Request) -> Output:
        text, usage, times = [], None, []
        async with self._client.stream("POST", f"{self.url}/v1/completions", json=self._content(request)) as answer:
            if answer.status_code in BUSY:
                raise _Busy(f"HTTP {answer.status_code}, {RETRIES} times")
            if answer.is_error:
                raise ValueError(f"HTTP {answer.status_code}: {(await answer.aread()).decode(errors='replace')[:300]}")
            async for line in answer.aiter_lines():
                field, _, data = line.partition(":")
                if field != "data" or data.strip() == "[DONE]":
                    continue
                part = json.loads(data)
                if "error" in part:
                    raise ValueError(str(part["error"])[:300])
                if part["choices"]:  # a token whose text is empty, such as a special token, has its time too
                    times.append(self.now())
                    text.append(part["choices"][0]["text"])
                usage = part.get("usage") or usage
        if usage is None:
            raise ValueError("the server sent no usage, so the tokens cannot be counted")
        prompt_tokens, tokens = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
        words, error = len("".join(text).split()), length_error(request, tokens, "the server made")
        first_s, last_s = (times[0], times[-1]) if times else (None, self.now())
        longest_itl_s = max((after - before for before, after in pairwise(times)), default=None)
        return Output(request, prompt_tokens, tokens, words, first_s, last_s, error, longest_itl_s)

    def _content(self, request: Request) -> dict[str, Any]:
        content = {
            "model": self.model,
            "prompt": request.prompt,
            "temperature": self.temperature if request.temperature is None else request.temperature,
            "max_tokens": request.fixed_output_tokens or request.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._server.extensions:
            content["vllm_xargs"] = {"tenant": request.tenant, "tier": request.tier}
            if request.fixed_output_tokens is not None:
                content["min_tokens"] = request.fixed_output_tokens
        return content


def _context_lengths(answer: httpx.Response) -> dict[str, int | None]:
    """Return the context length of each model; vLLM adds it to what OpenAI's API states."""
    return {model["id"]: model.get("max_model_len") for model in answer.json()["data"]}
