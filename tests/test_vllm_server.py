"""A server over HTTP that misbehaves, in each way that servers do."""

import json
import os
import re
import signal
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import inf
from unittest.mock import DEFAULT, Mock

import httpx
import pandas as pd
import pytest
from helpers import SMOKE_SERVER, make_scheduler, params_at

from driftsched_lib.engines import base, openai_server
from driftsched_lib.engines.load import load_engine
from driftsched_lib.engines.openai_server import OpenAIServer
from driftsched_lib.engines.params import ServerParams
from driftsched_lib.errors import ParamsError, RunError
from driftsched_lib.experiments import results
from driftsched_lib.experiments.grid import run_grid
from driftsched_lib.experiments.params import Params
from driftsched_lib.experiments.run import serve_or_fail
from driftsched_lib.requests import Request
from driftsched_lib.serving import ContinuousBatching, serve

MODEL = "data/models/driftsched-tiny"


class Server(ThreadingHTTPServer):
    """Serves completions of one word per token; `answer` may do otherwise with a request of a given number."""

    def __init__(self, answer, port):
        super().__init__(("127.0.0.1", port), Handler)
        self.answer, self.seen, self.lock = answer, [], threading.Lock()
        self.health, self.models, self.metrics = 200, {"data": [{"id": MODEL}]}, b""

    def die(self):
        threading.Thread(target=self.shutdown).start()
        self.socket.close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        known = {"/health": (self.server.health, {}), "/metrics": (200, self.server.metrics)}
        self.send(*known.get(self.path, (200, self.server.models)))

    def do_POST(self):
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            return self.send(200, {"count": len(content["prompt"].split())})
        with self.server.lock:
            number = len(self.server.seen)
            self.server.seen.append(content)
        if not self.server.answer(self, number):
            self.stream(content["max_tokens"])

    def send(self, status, content):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        return True

    def stream(self, tokens, usage=0, lines=()):
        """Send so many words; the usage tells of as many tokens, or other ones."""
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        parts = [{"choices": [{"text": "word "}]}] * tokens
        if usage is not None:
            parts.append({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": usage or tokens}})
        for line in [*(f"data: {json.dumps(part)}" for part in parts), *lines, "data: [DONE]"]:
            self.wfile.write(f"{line}\n\n".encode())
            self.wfile.flush()
        self.close_connection = True
        return True


@contextmanager
def small_server(answer=lambda handler, number: False, port=0):
    server = Server(answer, port)
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()  # it ends as often as it looks
    try:
        yield server, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(openai_server, "FIRST_PAUSE_S", 0.01)


def connect(url, max_in_flight=2, timeout_s=5.0):
    return OpenAIServer(ServerParams(url=url, max_in_flight=max_in_flight, timeout_s=timeout_s), MODEL, 0.0)


@pytest.fixture
def hanging():
    """An engine for one request at once, at a server that hangs."""
    with small_server(hang) as (_, url):
        yield connect(url, 1, 60.0)


def question(arrival_s=0.0, max_tokens=9, **fields):
    return Request("1", arrival_s, "What is DNS?", "acme", "premium", max_tokens, **fields)


def serve_one(engine):
    """The output of one request for three tokens."""
    engine.add(question(fixed_output_tokens=3))
    (output,) = outputs_of(engine)
    assert engine.has_room() and not engine._in_flight
    return output


def outputs_of(engine):
    """The next outputs, none of which may come for a while."""
    until = engine.now() + 10
    while not (outputs := engine.step(until)) and engine.now() < until:
        pass
    return outputs


def hang(handler, number):
    time.sleep(1.5)
    return True


def cut(handler, number):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'data: {"choices": [{"text": "word "}]}\n\n')
    handler.close_connection = True
    return True


@pytest.mark.parametrize(
    ("answer", "error", "sent"),
    [
        (lambda handler, number: False, None, 1),
        (lambda handler, number: number == 0 and handler.send(429, {}), None, 2),
        (lambda handler, number: number < 2 and handler.send(503, {}), None, 3),
        (lambda handler, number: handler.send(503, {}), "HTTP 503, 5 times", 5),
        (lambda handler, number: handler.send(400, {"error": "too long"}), "HTTP 400: .*too long", 1),
        (lambda handler, number: handler.send(500, b"oops"), "HTTP 500: oops", 1),
        (hang, "took longer than 1 s", 1),
        (cut, "RemoteProtocolError", 1),
        (lambda handler, number: handler.stream(3, lines=["data: {garbage"]), "JSONDecodeError", 1),
        (lambda handler, number: handler.stream(3, lines=["data: " + "[" * 100_000]), "RecursionError", 1),
        (lambda handler, number: handler.stream(3, usage=inf), "OverflowError", 1),
        (lambda handler, number: handler.stream(3, usage="x"), "ValueError", 1),
        (lambda handler, number: handler.stream(3, lines=['data: {"error": "out of memory"}']), "out of memory", 1),
        (lambda handler, number: handler.stream(3, usage=None), "sent no usage", 1),
        (lambda handler, number: handler.stream(2), "made 2 of 3 fixed tokens", 1),
        (lambda handler, number: handler.stream(3, lines=["", ": a comment", 'data: {"choices": []}']), None, 1),
    ],
)
def test_what_a_server_does_ends_in_one_output(answer, error, sent):
    with small_server(answer) as (server, url):
        output = serve_one(connect(url, timeout_s=1.0 if answer is hang else 5.0))
        if error is None:
            assert (output.error, output.tokens, output.words, output.prompt_tokens) == (None, 3, 3, 3)
            assert 0 < output.first_token_s <= output.finish_s and output.longest_itl_s >= 0
        else:
            assert re.search(error, output.error)
        assert len(server.seen) == sent
        assert server.seen[0]["vllm_xargs"] == {"tenant": "acme", "tier": "premium"}


KNOWN_TO_OPENAI = {"model", "prompt", "temperature", "max_tokens", "stream", "stream_options"}


@pytest.mark.parametrize("extensions", [True, False])
def test_a_strict_server_is_served_without_vllms_additions(extensions):
    def strict(handler, number):
        unknown = set(handler.server.seen[number]) - KNOWN_TO_OPENAI
        return bool(unknown) and handler.send(400, {"error": f"unknown {sorted(unknown)}"})

    with small_server(strict) as (_, url):
        output = serve_one(load_engine(params_at(url, engine__server__extensions=extensions).engine))
        assert output.error is None if not extensions else "unknown ['min_tokens', 'vllm_xargs']" in output.error


CACHE = b'vllm:cache_config_info{block_size="16",num_gpu_blocks="%s"} 1.0\n'


@pytest.mark.parametrize(
    ("metrics", "max_in_flight", "kv_blocks"),
    [(CACHE % b"100", 8, 99), (CACHE % b"None", 8, None), (b'{"no": "metrics"}', 8, None), (CACHE % b"9", 4096, None)],
)
def test_limits_that_a_server_does_not_tell_are_no_reason_not_to_use_it(metrics, max_in_flight, kv_blocks):
    with small_server() as (server, url):
        server.models, server.metrics = {"data": [{"id": MODEL, "max_model_len": 512}]}, metrics
        limits = connect(url, max_in_flight).limits
        assert (limits and (limits.kv_blocks, limits.max_model_len)) == (kv_blocks and (kv_blocks, 512))


def test_an_aborted_request_gives_no_output(hanging):
    hanging.add(question())
    assert not hanging.has_room() and hanging.step(until=hanging.now() + 0.1) == []
    hanging.abort("1")
    assert hanging.has_room() and hanging.step(until=hanging.now() + 0.1) == []


def test_what_ended_with_a_servers_death_is_returned_before_it_is_said():
    with small_server() as (_, url):
        engine = connect(url)
        engine.add(request := question(max_tokens=3))
        engine._in_flight["1"].result()
        engine._done.put(RunError("gone"))
        assert [output.request for output in outputs_of(engine)] == [request]
        with pytest.raises(RunError, match="gone"):
            outputs_of(engine)
        engine.restart_clock()


def test_an_error_of_the_loop_leaves_nothing_with_the_server(hanging):
    with pytest.raises(ValueError, match="already here"):
        serve([question(t) for t in (0.0, 0.1)], make_scheduler()[0], hanging, ContinuousBatching())
    hanging.restart_clock()


@pytest.mark.parametrize(("method", "error"), [("request", httpx.ReadError), ("stream", httpx.ConnectTimeout)])
def test_what_fails_before_a_request_has_begun_is_tried_again(monkeypatch, method, error):
    with small_server() as (_, url):
        engine = connect(url)
        outcomes = iter([error("the network failed"), DEFAULT])
        send = Mock(wraps=getattr(engine._client, method), side_effect=outcomes)
        monkeypatch.setattr(engine._client, method, send)
        if method == "request":
            assert engine.count_tokens("What is DNS?") == 3
        else:
            assert serve_one(engine).error is None
        assert send.call_count == 2


def test_an_interrupt_leaves_nothing_with_the_server(hanging):
    scheduler, records = make_scheduler()
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        serve_or_fail("a run", [question()], scheduler, hanging, ContinuousBatching())
    assert [record.reason for record in records] == ["KeyboardInterrupt: "] and hanging.has_room()
    hanging.restart_clock()


def test_signals_do_not_keep_a_step_from_coming_back(hanging, monkeypatch):
    monkeypatch.setattr(base, "MAX_WAIT_S", 5e-4)
    hanging.add(question())
    rescue = threading.Timer(30, hanging._done.put, [RunError("a step never came back")])
    before = signal.signal(signal.SIGALRM, lambda number, frame: None)
    try:
        rescue.start()
        signal.setitimer(signal.ITIMER_REAL, 3e-4, 3.7e-4)  # many come as a wait ends
        for _ in range(3000):
            assert hanging.step(inf) == []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        rescue.cancel()
        hanging.abort("1")


def cut_and_die(handler, number):
    handler.server.die()
    return cut(handler, number)


def engine_dies(handler, number):
    handler.server.health = 503
    return handler.stream(1, usage=None, lines=['data: {"error": "EngineCore died"}'])


@pytest.mark.parametrize(
    ("answer", "why"), [(cut_and_die, "(ConnectError|ReadError): "), (engine_dies, "its engine is dead, HTTP 503")]
)
def test_a_server_that_dies_with_its_last_request_is_noticed(answer, why):
    with small_server(answer) as (_, url), pytest.raises(RunError, match=f"{url} is gone: {why}"):
        serve_one(connect(url))


def test_a_server_that_dies_before_a_request_is_noticed_however_short_its_time(monkeypatch):
    monkeypatch.setattr(openai_server, "FIRST_PAUSE_S", 60.0)
    monkeypatch.setattr(openai_server, "IDLE_S", 0.0)  # connections of this small server outlive it
    with small_server() as (server, url):
        engine = connect(url, 1, 1.0)
        server.die()
        engine.add(question())
        with pytest.raises(RunError, match=f"{url} is gone: "):
            outputs_of(engine)


def test_a_server_that_dies_fails_its_run_and_the_rest_goes_on_when_it_is_back(tmp_path):
    with small_server() as (server, url):
        params = params_at(url, scheduler__vary_estimates_for=[], scheduler__batching=["continuous"])
        runs, later = params.runs(), []

        def die_in_the_second_run(handler, number):
            if results.is_complete(tmp_path / runs[0].name):
                later.append(number)
            if len(later) > params.engine.server.max_in_flight and server.fileno() > 0:  # one has been answered
                server.die()
            handler.close_connection = server.fileno() < 0
            return False

        server.answer = die_in_the_second_run
        with pytest.raises(RunError, match=rf"run {runs[1].name}: .*{url} is gone.*run the same again"):
            run_grid(params, tmp_path)
    first = (tmp_path / runs[0].name / "requests.parquet").read_bytes()
    ended = pd.read_parquet(tmp_path / f"{runs[1].name}.failed.parquet")
    assert ended.request_id.is_unique and set(ended.outcome) == {"completed", "failed"}
    assert ended.reason[ended.outcome == "failed"].str.len().min() > 0

    with small_server(port=server.server_port):
        summary = run_grid(params, tmp_path)
    assert (summary.completed == params.requests).all() and len(summary) == 2
    assert (tmp_path / runs[0].name / "requests.parquet").read_bytes() == first
    assert not list(tmp_path.glob("*.failed.parquet"))


def test_nothing_at_the_address_is_said_before_any_work(tmp_path):
    with pytest.raises(RunError, match=r"http://127.0.0.1:9/v1/models cannot be used: ConnectError"):
        run_grid(params_at("http://127.0.0.1:9"), tmp_path)


@pytest.mark.parametrize("models", [[], [1], 5, {}, {"data": None}, {"data": [1]}, {"data": [{}]}, b"<html>"], ids=repr)
def test_what_is_no_openai_server_is_named(models):
    with small_server() as (server, url):
        server.models = models
        with pytest.raises(RunError, match=f"{url}/v1/models cannot be used: "):
            connect(url)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine.server.url": "localhost:8000"}, "engine.server.url: string should match pattern"),
        ({"engine.server": None}, "engine: server says where `kind: server` is"),
        ({"engine.kind": "vllm"}, "engine: server says where `kind: server` is"),
        ({"engine.args": {"max_num_seqs": 8}}, "engine: a live server was started with its own args"),
        ({"engine.server.max_in_flight": 0}, "engine.server.max_in_flight: input should be greater than or equal to 1"),
        ({"engine.server.api_key_env": "NO_KEY"}, "engine.server.api_key_env: the environment holds no NO_KEY"),
    ],
)
def test_parameters_of_a_server_that_are_wrong_are_named(changes, message, tmp_path, monkeypatch):
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(ParamsError, match=message):
        run_grid(Params.load(SMOKE_SERVER, changes), tmp_path)
