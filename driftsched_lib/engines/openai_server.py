"""A live server, over HTTP: vLLM's, or any other that speaks OpenAI's completions."""

import asyncio
import json
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import lru_cache
from math import isinf
from typing import Any, TypeVar

import httpx
from prometheus_client.parser import text_string_to_metric_families

from driftsched_lib.engines.base import wait_s
from driftsched_lib.engines.profile import EngineLimits
from driftsched_lib.errors import DriftSchedError
from driftsched_lib.requests import Output, Request

RETRIES = 5
FIRST_PAUSE_S = 0.2
"""Doubled from one retry to the next."""
BUSY = {429, 503}
PROBE_TIMEOUT_S = 5.0
IDLE_S = 1.0
"""An idle connection is dropped before a server (uvicorn after 5 s) drops it just as the next request takes it."""

T = TypeVar("T")


class _Refused(Exception):
    """The server has not begun with a request, which may be sent again."""


def _pauses_s() -> Iterator[float]:
    """What to wait between one try and the next."""
    return (FIRST_PAUSE_S * 2**i for i in range(RETRIES - 1))


class VllmServer:
    """Completions streamed from a server, so many in flight; times are the client's, of the parts that it receives.

    A request with `fixed_output_tokens` asks for exactly that many by `min_tokens`, which vLLM knows and others may not.  One
    that the server has not begun with (it refuses the connection, or is busy: 429, 503) is sent again, up to `RETRIES`
    times; one that fails later is not, for its tokens are spent.  After each failure the server is asked whether it is
    still there: if it is, that request has failed; if it is gone, so has all that is in flight, and `step` says so.

    Parameters:
        url: up to, and without, `/v1`.
        model: the name that the server gives it.
        max_in_flight: requests that may be with the server at once.
        timeout_s: the longest that a request may take.
        temperature: sampling temperature.
        api_key: sent as a bearer token; None for none.
        extensions: whether vLLM's additions to OpenAI's completions are sent, which a strict server refuses: tenant and
            tier, and `min_tokens`.
        max_num_batched_tokens: what the server was started with, which it tells no client.

    Attributes:
        limits: of vLLM's server, as its models and its metrics tell them; None for another.

    Raises:
        DriftSchedError: nothing answers at the URL, or it does not serve the model.
    """

    def __init__(
        self,
        url: str,
        model: str,
        max_in_flight: int,
        timeout_s: float,
        temperature: float,
        api_key: str | None = None,
        extensions: bool = True,
        max_num_batched_tokens: int = 2048,
    ):
        self.url = url.rstrip("/")
        self.model = model
        self.max_num_seqs = max_in_flight
        self.timeout_s = timeout_s
        self.temperature = temperature
        self.extensions = extensions
        self.steps: list[tuple] = []  # what a server does in an iteration is not seen from here
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._asking = httpx.Client(headers=headers, timeout=timeout_s, limits=httpx.Limits(keepalive_expiry=IDLE_S))
        self.limits: EngineLimits | None = None
        longest = self._check()
        with suppress(httpx.HTTPError, LookupError, TypeError, ValueError):  # a profile alone needs them
            self.limits = None if longest is None else self._limits(longest, max_num_batched_tokens)
        self.count_tokens = lru_cache(maxsize=10_000)(self._count_tokens)
        self._in_flight: dict[str, Future[None]] = {}
        # No SimpleQueue: a signal at the end of its timeout has CPython wait there for ever.
        self._done: queue.Queue[Output | DriftSchedError] = queue.Queue()
        self._gone: DriftSchedError | None = None
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.close = weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)
        limits = httpx.Limits(max_connections=max_in_flight, keepalive_expiry=IDLE_S)
        self._client = httpx.AsyncClient(headers=headers, timeout=timeout_s, limits=limits)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Time zero is now: a new run begins."""
        if self._in_flight:
            raise RuntimeError(f"{len(self._in_flight)} requests are still in flight")
        self._started = time.monotonic()

    def now(self) -> float:
        return time.monotonic() - self._started

    def has_room(self) -> bool:
        return len(self._in_flight) < self.max_num_seqs

    def add(self, request: Request) -> None:
        self._in_flight[request.request_id] = asyncio.run_coroutine_threadsafe(self._serve(request), self._loop)

    def abort(self, request_id: str) -> None:
        task = self._in_flight.pop(request_id, None)
        if task is not None:
            task.cancel()

    def step(self, until: float) -> list[Output]:
        if not self._in_flight and isinf(until):
            raise RuntimeError("no progress: nothing runs, and nothing is due to arrive or to end")
        if self._gone is not None:
            raise self._why()
        outputs = []
        try:
            outputs.append(self._done.get(timeout=wait_s(until, self.now())))
            while True:
                outputs.append(self._done.get_nowait())
        except queue.Empty:
            pass
        self._gone = next((output for output in outputs if isinstance(output, DriftSchedError)), None)
        # One that was aborted while its output was on its way here has ended already.
        ended = [
            output
            for output in outputs
            if isinstance(output, Output) and self._in_flight.pop(output.request.request_id, None) is not None
        ]
        if self._gone is not None and not ended:
            raise self._why()
        return ended

    def _why(self) -> DriftSchedError:
        """Why the server is gone; what is with it is dropped, and a new run may try again."""
        why, self._gone = self._gone, None
        for request_id in list(self._in_flight):
            self.abort(request_id)
        assert why is not None
        return why

    def _check(self) -> int | None:
        """That the model is served, and its longest context, which vLLM adds to what OpenAI says."""

        def longest(answer: Any) -> dict[str, int | None]:
            return {model["id"]: model.get("max_model_len") for model in answer["data"]}

        served = self._ask("GET", "/v1/models", longest)
        if self.model not in served:
            raise DriftSchedError(f"{self.url} serves {', '.join(map(str, served)) or 'nothing'} and no {self.model}")
        return served[self.model]

    def _limits(self, max_model_len: int, max_num_batched_tokens: int) -> EngineLimits | None:
        answer = self._send("GET", f"{self.url}/metrics")
        for family in text_string_to_metric_families(answer.text if answer.is_success else ""):
            if family.name == "vllm:cache_config_info":
                cache = family.samples[0].labels
                return EngineLimits(
                    max_num_seqs=self.max_num_seqs,
                    max_num_batched_tokens=max_num_batched_tokens,
                    max_model_len=max_model_len,
                    block_size=int(cache["block_size"]),
                    kv_blocks=int(cache["num_gpu_blocks"]) - 1,  # vLLM keeps one to itself
                )
        return None

    def _count_tokens(self, text: str) -> int:
        """A prompt's length in tokens, special ones left out, as vLLM's own `/tokenize` counts it."""
        content = {"model": self.model, "prompt": text, "add_special_tokens": False}
        return self._ask("POST", "/tokenize", lambda answer: int(answer["count"]), content)

    def _send(self, *arguments, **content) -> httpx.Response:
        """An answer; what is asked changes nothing at the server, so it is asked again where the network fails."""
        for pause_s in _pauses_s():
            with suppress(httpx.TransportError):
                return self._asking.request(*arguments, **content)
            time.sleep(pause_s)
        return self._asking.request(*arguments, **content)

    def _ask(self, method: str, path: str, read: Callable[[Any], T], content: dict | None = None) -> T:
        """What `read` makes of the JSON that the server answers with."""
        where = f"{self.url}{path}"
        try:
            answer = self._send(method, where, json=content)
            answer.raise_for_status()
            return read(answer.json())
        except (httpx.HTTPError, httpx.InvalidURL, LookupError, TypeError, ValueError, RecursionError) as error:
            hint = ": only vLLM knows it; count by whitespace" if path == "/tokenize" else ""
            raise DriftSchedError(f"{where} cannot be used: {type(error).__name__}: {error}{hint}") from None

    async def _serve(self, request: Request) -> None:
        """What becomes of a request, put where `step` finds it."""
        output: Output | DriftSchedError
        try:
            async with asyncio.timeout(self.timeout_s):
                output = await self._with_retries(request)
        except TimeoutError:
            output = self._failed(request, f"took longer than {self.timeout_s:g} s")
        except Exception as error:  # whatever it is: `step` would wait for ever for what is not put
            output = self._failed(request, f"{type(error).__name__}: {error}".removeprefix("_Refused: "))
        if output.error is not None and (why := await self._why_gone()):
            output = DriftSchedError(f"{self.url} is gone: {why}")
        self._done.put(output)

    async def _why_gone(self) -> str:
        """Why no request can be served there any more; empty for a server that is there, if maybe slow."""
        try:
            answer = await self._client.get(f"{self.url}/health", timeout=PROBE_TIMEOUT_S)
        except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
            return f"{type(error).__name__}: {error}"
        except httpx.HTTPError:
            return ""
        # vLLM's own word for an engine that died behind it; a server that does not know the path is there.
        return "its engine is dead, HTTP 503" if answer.status_code == 503 else ""

    async def _with_retries(self, request: Request) -> Output:
        for pause_s in _pauses_s():
            with suppress(httpx.ConnectError, httpx.ConnectTimeout, _Refused):
                return await self._stream(request)
            await asyncio.sleep(pause_s)
        return await self._stream(request)

    async def _stream(self, request: Request) -> Output:
        text, usage, times = [], None, []
        async with self._client.stream("POST", f"{self.url}/v1/completions", json=self._content(request)) as answer:
            if answer.status_code in BUSY:
                raise _Refused(f"HTTP {answer.status_code}, {RETRIES} times")
            if answer.is_error:
                raise ValueError(f"HTTP {answer.status_code}: {(await answer.aread()).decode(errors='replace')[:300]}")
            async for line in answer.aiter_lines():
                if not line.startswith("data:") or line.removeprefix("data:").strip() == "[DONE]":
                    continue
                part = json.loads(line.removeprefix("data:"))
                if "error" in part:
                    raise ValueError(str(part["error"])[:300])
                if part["choices"]:  # a token whose text is empty, as a special one's is, has its time too
                    times.append(self.now())
                    text.append(part["choices"][0]["text"])
                usage = part.get("usage") or usage
        if usage is None:
            raise ValueError("the server sent no usage, so the tokens cannot be counted")
        made, pinned = int(usage["completion_tokens"]), request.fixed_output_tokens
        return Output(
            request=request,
            prompt_tokens=int(usage["prompt_tokens"]),
            tokens=made,
            words=len("".join(text).split()),
            first_token_s=times[0] if times else None,
            finish_s=times[-1] if times else self.now(),
            error=None if pinned in (None, made) else f"the server made {made} of {pinned} pinned tokens",
            longest_itl_s=max((after - before for before, after in zip(times, times[1:], strict=False)), default=None),
        )

    def _content(self, request: Request) -> dict[str, Any]:
        content = {
            "model": self.model,
            "prompt": request.prompt,
            "temperature": self.temperature if request.temperature is None else request.temperature,
            "max_tokens": request.fixed_output_tokens or request.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.extensions:
            content["vllm_xargs"] = {"tenant": request.tenant, "tier": request.tier}
            if request.fixed_output_tokens is not None:
                content["min_tokens"] = request.fixed_output_tokens
        return content

    def _failed(self, request: Request, reason: str) -> Output:
        return Output(request, 0, 0, None, None, self.now(), error=reason)
