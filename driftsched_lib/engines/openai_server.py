"""A live server over HTTP: vLLM's, or another that speaks OpenAI's completions API."""

import asyncio
import json
import os
import queue
import re
import threading
import time
import weakref
from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from email.utils import mktime_tz, parsedate_tz
from functools import lru_cache, partial
from itertools import count, pairwise
from math import inf
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from driftsched_lib.engines.base import check_idle, check_progress, fitted, length_error, wait_s
from driftsched_lib.engines.params import ServerParams
from driftsched_lib.engines.profile import EngineLimits
from driftsched_lib.errors import ParamsError, RunError
from driftsched_lib.requests import Output, Request

TRIES = 5
FIRST_PAUSE_S = 0.2  # doubled from one try to the next
BUSY = {429, 503}
LOOPBACK = ("all://127.0.0.1", "all://localhost", "all://[::1]")  # reached without a proxy
IDLE_S = 1.0  # then a connection is dropped, before the server (uvicorn after 5 s) drops it just as it is used


class OpenAIServer:
    """Stream completions from a server; times are the client's, of the parts that it receives.

    A request that the server has not begun (it refuses the connection or is busy: 429, 503) is sent again within its
    time: when `Retry-After` says, else up to `TRIES` times.  A request that fails later is not: its tokens are spent.
    After a failure the server's health is asked.  If it answers, only that request has failed.  If not, all requests
    in flight have, and `step` raises.

    `limits` are those that vLLM's server states; None for another server.  `steps` is empty: clients see none.

    Raises ParamsError if the environment's key, proxy or certificates cannot be used, or the server lacks the model;
    RunError if the address cannot be used.
    """

    def __init__(self, server: ServerParams, model: str, temperature: float):
        self.url = server.url.rstrip("/").removesuffix("/v1").rstrip("/")
        self.model, self.temperature, self.max_num_seqs = model, temperature, server.max_in_flight
        self.steps: list[tuple] = []
        self._server = server
        self._proxies = ", ".join(name for name in os.environ if re.fullmatch("(?i)(all|https?|no)_proxy", name))
        self._client = self._connect()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.close = weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)
        self.count_tokens = lru_cache(maxsize=10_000)(self._count_tokens)
        self._in_flight: dict[str, Future[None]] = {}
        self.restart_clock()
        served = self._ask("GET", "/v1/models", lambda answer: {each["id"]: each for each in answer.json()["data"]})
        if model not in served:
            raise ParamsError(f"{self.url} serves {', '.join(map(str, served)) or 'nothing'} and no {model}")
        self.limits = self._ask_limits(served[model].get("max_model_len"))

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
        """Return the requests that have ended; wait for the first.  Raise RunError if the server is gone."""
        if not self._in_flight:
            check_progress(until)
        done: list[Output | RunError] = []
        with suppress(queue.Empty):
            done.append(self._done.get(timeout=wait_s(until, self.now())))
            while True:
                done.append(self._done.get_nowait())
        ended = [one for one in done if isinstance(one, Output) and self._in_flight.pop(one.request.request_id, None)]
        for error in [one for one in done if isinstance(one, RunError)]:
            if not ended:
                raise error
            self._done.put(error)  # raised by the next step
        return ended  # without those that were aborted

    def _connect(self) -> httpx.AsyncClient:
        headers, name = {}, self._server.api_key_env
        if name is not None:
            headers["Authorization"] = f"Bearer {os.environ.get(name, '')}"
            if not re.fullmatch("Bearer [!-~]+", headers["Authorization"]):
                raise ParamsError(f"engine.server.api_key_env: the environment holds no {name} of ASCII without spaces")
        limits, direct = httpx.Limits(max_connections=None, keepalive_expiry=IDLE_S), dict.fromkeys(LOOPBACK)
        try:
            return httpx.AsyncClient(headers=headers, timeout=self._server.timeout_s, limits=limits, mounts=direct)
        except (ValueError, ImportError, OSError, httpx.InvalidURL) as error:
            names = "SSL_CERT_FILE or SSL_CERT_DIR" if isinstance(error, OSError) else self._proxies
            raise ParamsError(f"{names} in the environment cannot be used: {error}") from None

    def _count_tokens(self, text: str) -> int:
        """Return a prompt's length in tokens, without special tokens, as vLLM's `/tokenize` counts it."""
        content = {"model": self.model, "prompt": text, "add_special_tokens": False}
        return self._ask("POST", "/tokenize", lambda answer: int(answer.json()["count"]), content)

    def _ask_limits(self, max_model_len: int | None) -> EngineLimits | None:
        with suppress(RunError, LookupError, TypeError, ValueError):  # only a profile needs them
            families = self._ask("GET", "/metrics", lambda answer: list(text_string_to_metric_families(answer.text)))
            [cache] = [one.samples[0].labels for one in families if one.name == "vllm:cache_config_info"]
            kv_blocks = int(cache["num_gpu_blocks"]) - 1  # vLLM keeps one that no request gets
            told = {"max_num_seqs": self.max_num_seqs, "max_num_batched_tokens": self._server.max_num_batched_tokens}
            told |= {"max_model_len": max_model_len, "block_size": int(cache["block_size"]), "kv_blocks": kv_blocks}
            return EngineLimits(**told)
        return None

    def _ask(self, *question: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(self._answer(*question), self._loop).result()

    async def _answer(self, method: str, path: str, read: Callable[[httpx.Response], Any], content: Any = None) -> Any:
        """Return what `read` makes of an answer; asking changes nothing, so it is repeated where the network fails."""
        url = f"{self.url}{path}"

        async def ask() -> Any:
            return read((await self._client.request(method, url, json=content)).raise_for_status())

        try:
            return await self._retried(ask, httpx.TransportError)
        except (httpx.HTTPError, LookupError, TypeError, ValueError, RecursionError) as error:
            hint = ": without it tokens cannot be counted, nor prompts have a set length" if path == "/tokenize" else ""
            raise RunError(f"{url} cannot be used: {self._why(error)}{hint}") from None

    async def _retried(self, send: Callable[[], Awaitable[Any]], *errors: type[Exception]) -> Any:
        """Return what `send` returns; send again, while there is time, if the server is busy or for one of `errors`."""
        until = time.monotonic() + self._server.timeout_s
        for tries in count(1):
            try:
                return await send()
            except (httpx.HTTPStatusError, *errors) as error:
                if time.monotonic() + (pause_s := _pause_s(error, tries)) >= until:
                    raise
            await asyncio.sleep(pause_s)

    def _why(self, error: Exception) -> str:
        """Return a reason in words, and what to do where that is known."""
        if isinstance(error, TimeoutError):
            return f"took longer than {self._server.timeout_s:g} s"
        if isinstance(error, httpx.HTTPStatusError):
            status, told = error.response.status_code, error.response.headers.get("Retry-After")
            given_up = f" (given up, Retry-After: {told})" if status in BUSY else ""
            return f"HTTP {status}{given_up}: {error.response.text[:300]}"
        why = str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {error}"
        if "CERTIFICATE_VERIFY_FAILED" in why:
            why += "; let SSL_CERT_FILE name a file with the server's certificate"
        elif isinstance(error, httpx.TransportError) and not any(host[4:] in self.url for host in LOOPBACK):
            why += self._proxies and f"; the environment sets {self._proxies}"
        return why

    async def _serve(self, request: Request) -> None:
        """Serve a request and put its output where `step` finds it."""
        try:
            async with asyncio.timeout(self._server.timeout_s):
                send = partial(self._stream, request, await self._content(request))
                output = await self._retried(send, httpx.ConnectError, httpx.ConnectTimeout)
        except Exception as error:  # any: `step` would wait for ever for an output that is not put
            output = Output(request, 0, 0, None, None, self.now(), error=self._why(error))
        gone = output.error and await self._why_gone()
        self._done.put(RunError(f"{self.url} is gone: {gone}") if gone else output)

    async def _why_gone(self) -> str:
        """Return why the server can serve no request any more; empty if it is there, even if slow."""
        try:
            answer = await self._client.get(f"{self.url}/health", timeout=5.0)
        except httpx.HTTPError as error:
            return self._why(error) if isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError) else ""
        # vLLM's answer if its engine has died; a server that does not know the path is there.
        return "its engine is dead, HTTP 503" if answer.status_code == 503 else ""

    async def _stream(self, request: Request, content: dict[str, Any]) -> Output:
        parts, usage, ended = [], {}, False
        async with self._client.stream("POST", f"{self.url}/v1/completions", json=content) as answer:
            if not answer.is_success:
                await answer.aread()  # it says why
            async for event in events(answer.raise_for_status().aiter_bytes()):
                lines = event.removeprefix(BOM_UTF8).splitlines()
                data = b"\n".join(line[5:] for line in lines if line.startswith(b"data:")).strip()
                ended |= data == b"[DONE]"
                part = {} if data in (b"", b"[DONE]") else json.loads(data)
                if part.get("error"):
                    raise RunError(str(part["error"])[:300])
                choices, counts = part.get("choices") or [], part.get("usage") or {}
                parts += [(self.now(), choice["text"]) for choice in choices if choice.get("text") is not None]
                usage |= {name: tokens for name, tokens in counts.items() if tokens is not None}
                ended |= any(choice.get("finish_reason") for choice in choices) or bool(counts and not choices)
        if not ended:
            raise RunError("the server broke off the stream")
        if not {"prompt_tokens", "completion_tokens"} <= usage.keys():
            raise RunError("the server sent no usage: its tokens are not known")
        prompt_tokens, tokens = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
        if len(parts) > tokens:  # else an empty part is a token, such as a special one, and has its time, too
            parts = [(time_s, text) for time_s, text in parts if text]
        times, texts = [time_s for time_s, _ in parts], [text for _, text in parts]
        words, error = len("".join(texts).split()), length_error(request, tokens, "the server made")
        first_s, last_s = (times[0], times[-1]) if times else (None, self.now())
        longest_itl_s = max((after - before for before, after in pairwise(times)), default=None)
        return Output(request, prompt_tokens, tokens, words, first_s, last_s, error, longest_itl_s)

    async def _content(self, request: Request) -> dict[str, Any]:
        prompt: str | list[int] = request.prompt
        if request.prompt_tokens is not None:
            text = {"model": self.model, "prompt": prompt}
            ids = await self._answer("POST", "/tokenize", lambda answer: answer.json()["tokens"], text)
            prompt = fitted(ids, request.prompt_tokens)
        content = {"model": self.model, "prompt": prompt, "stream": True, "stream_options": {"include_usage": True}}
        content["temperature"] = self.temperature if request.temperature is None else request.temperature
        content["max_tokens"] = request.fixed_output_tokens or request.max_tokens
        if self._server.extensions:
            content["vllm_xargs"] = {"tenant": request.tenant, "tier": request.tier}
            content["min_tokens"] = request.fixed_output_tokens or 0
        return content


def _pause_s(error: Exception, tries: int) -> float:
    """Return the seconds until the next try: as `Retry-After` says, else doubled pauses; inf for no more."""
    answer = error.response if isinstance(error, httpx.HTTPStatusError) else httpx.Response(503)
    if answer.status_code not in BUSY:
        return inf
    told = answer.headers.get("Retry-After", "")
    if re.fullmatch(r"\d+(\.\d+)?", told):
        return max(float(told), FIRST_PAUSE_S)
    if date := parsedate_tz(told):
        return max(mktime_tz(date) - time.time(), FIRST_PAUSE_S)
    return FIRST_PAUSE_S * 2 ** (tries - 1) if tries < TRIES else inf


async def events(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield each server-sent event of a stream, which ends with a blank line or the stream (WHATWG's HTML, 9.2).

    Lines end at CR, LF or CRLF alone, since JSON may hold U+2028; `bytes.splitlines` agrees, `str.splitlines` does not.
    """
    rest = b""
    async for chunk in chunks:
        *whole, rest = re.split(rb"(?:\r\n|\r(?!\n)|\n){2}", rest + chunk)
        for event in whole:
            yield event
    yield rest
