"""A server over HTTP that misbehaves, in each way that servers do."""

import asyncio
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager, nullcontext
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from math import inf
from unittest.mock import DEFAULT, Mock

import httpx
import pandas as pd
import pytest
import yaml
from helpers import SMOKE_SERVER, make_scheduler, params_at
from hypothesis import given
from hypothesis import strategies as st
from simulation import PAPER_L4, SMALL

from driftsched_lib import Params, results, run_grid
from driftsched_lib.__main__ import main
from driftsched_lib.engines import base, openai_server
from driftsched_lib.engines.load import load_engine
from driftsched_lib.engines.openai_server import OpenAIServer, events
from driftsched_lib.engines.params import ServerParams
from driftsched_lib.errors import ParamsError, RunError
from driftsched_lib.experiments.run import serve_or_fail
from driftsched_lib.requests import Request
from driftsched_lib.serving import ContinuousBatching, serve

MODEL = "data/models/driftsched-tiny"
WORD = {"choices": [{"text": "word "}]}
STOP = {"choices": [{"text": "word ", "finish_reason": "length"}]}
USAGE = {"usage": {"prompt_tokens": 3, "completion_tokens": 3}}


def lines_of(*parts, indent=None):
    """The stream of these parts; strings as they are."""
    texts = [part if isinstance(part, str) else json.dumps(part, ensure_ascii=False, indent=indent) for part in parts]
    return "".join("data: " + text.replace("\n", "\ndata: ") + "\n\n" for text in texts)


def words(n, tokens=0):
    """The stream of so many words, whose usage tells of as many tokens, or other ones."""
    usage = {"prompt_tokens": 3, "completion_tokens": tokens or n}
    return lines_of(*[WORD] * n, {"choices": [], "usage": usage}, "[DONE]")


class Server(ThreadingHTTPServer):
    """Serves completions of one word per token; `answer` may do otherwise with a request of a given number."""

    def __init__(self, answer, port):
        super().__init__(("127.0.0.1", port), Handler)
        self.answer, self.seen, self.lock = answer, [], threading.Lock()
        self.health, self.models, self.metrics, self.tokens = 200, {"data": [{"id": MODEL}]}, "", None

    def die(self):
        threading.Thread(target=self.shutdown).start()
        self.socket.close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        known = {"/health": (self.server.health, {}), "/metrics": (200, self.server.metrics)}
        known["/v1/models"] = known["/llm/v1/models"] = (200, self.server.models)
        self.send(*known.get(self.path, (404, {})))

    def do_POST(self):
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            count = {"count": len(content["prompt"].split())}
            return self.send(200, count if self.server.tokens is None else count | {"tokens": self.server.tokens})
        with self.server.lock:
            number = len(self.server.seen)
            self.server.seen.append(content)
        if not self.server.answer(self, number):
            self.send(200, words(content["max_tokens"]))

    def send(self, status, content, **headers):
        body = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        for name, value in {"Content_Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)
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


def connect(url, max_in_flight=2, timeout_s=60.0):
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
    until = engine.now() + 60
    while not (outputs := engine.step(until)) and engine.now() < until:
        pass
    return outputs


def hang(handler, number):
    time.sleep(1.5)
    return True


def cut(handler, number):
    handler.close_connection = True
    return handler.send(200, lines_of(WORD), Content_Length=1000)


def answers(status, content, before=inf, **headers):
    """Answer the first requests so."""
    return lambda handler, number: number < before and handler.send(status, content, **headers)


def busy_for(seconds, told):
    """Refuse all requests for some time, which is told in some form."""
    first_s = []

    def answer(handler, number):
        first_s.append(time.time())
        return time.time() < first_s[0] + seconds and handler.send(429, {}, Retry_After=told())

    return answer


PLAIN = words(3)
SERVED = [
    *(PLAIN, lines_of(WORD, WORD, WORD, USAGE), lines_of(WORD, WORD, STOP | USAGE)),
    *(lines_of(WORD, WORD, WORD, {"choices": choices} | USAGE, "[DONE]") for choices in ([], None, [{}])),
    lines_of(WORD, WORD, WORD, {"choices": [{"text": None, "finish_reason": "length"}]} | USAGE),
    lines_of(WORD, WORD | {"error": None}, WORD | USAGE, "[DONE]"),
    lines_of(WORD | USAGE, WORD, WORD | {"usage": None}, "[DONE]"),
    lines_of(WORD | {"usage": {"prompt_tokens": 3, "completion_tokens": 1}}, WORD, WORD | USAGE, "[DONE]"),
    lines_of(WORD | {"usage": {"prompt_tokens": 3}}, WORD, WORD, {"usage": {"completion_tokens": 3}}),
    lines_of(WORD, WORD, WORD, USAGE, "[DONE]", indent=1),
    *("\ufeff" + PLAIN, PLAIN.rstrip(), PLAIN.replace("data: ", "data:"), PLAIN.replace("word ", "word\u2028\x85")),
    PLAIN.replace("data: ", ": ping\n\n:\nevent: message\nid: 1\nretry\ndata: "),
    *(PLAIN.replace("\n", "\r"), PLAIN.replace("\n", "\r\n")),
]


@pytest.mark.parametrize(
    ("answer", "error", "sent"),
    [
        *((answers(200, body), None, 1) for body in SERVED),
        (answers(429, {}, before=1), None, 2),
        (answers(503, {}, before=2), None, 3),
        (busy_for(0.5, lambda: "0.6"), None, 2),
        (busy_for(1, lambda: formatdate(time.time() + 2, usegmt=True)), None, 2),
        (answers(429, {}, before=8, Retry_After=0), None, 9),
        (answers(503, "full"), "^HTTP 503 .*: full", 5),
        (answers(429, "full", Retry_After=3600), "^HTTP 429 .*Retry-After: 3600.*: full", 1),
        (answers(400, {"error": "too long"}), "^HTTP 400: .*too long", 1),
        (answers(500, "oops"), "^HTTP 500: oops", 1),
        (answers(307, "elsewhere"), "^HTTP 307: elsewhere", 1),
        (hang, "took longer than 1 s", 1),
        (cut, "RemoteProtocolError", 1),
        (answers(200, lines_of(WORD | USAGE, WORD, WORD)), "the server broke off the stream", 1),
        (answers(200, PLAIN[:-40]), "JSONDecodeError", 1),
        (answers(200, lines_of("{garbage")), "JSONDecodeError", 1),
        (answers(200, lines_of("[" * 100_000)), "RecursionError", 1),
        (answers(200, words(3, tokens=inf)), "OverflowError", 1),
        (answers(200, words(3, tokens="x")), "ValueError", 1),
        (answers(200, lines_of(WORD, {"error": "out of memory"})), "out of memory", 1),
        (answers(200, lines_of(WORD, WORD, WORD, "[DONE]")), "sent no usage", 1),
        (answers(200, words(2)), "made 2 of 3 fixed tokens", 1),
    ],
)
def test_what_a_server_does_ends_in_one_output(answer, error, sent):
    with small_server(answer) as (server, url):
        output = serve_one(connect(url, timeout_s=1.0 if answer is hang else 60.0))
        if error is None:
            assert (output.error, output.tokens, output.words, output.prompt_tokens) == (None, 3, 3, 3)
            assert 0 < output.first_token_s <= output.finish_s and output.longest_itl_s >= 0
        else:
            assert re.search(error, output.error)
        assert len(server.seen) == sent
        assert server.seen[0]["vllm_xargs"] == {"tenant": "acme", "tier": "premium"}


@pytest.mark.parametrize("n", [2, 3])
def test_an_empty_part_is_a_token_unless_there_are_more_parts_than_tokens(n):
    first, rest = lines_of({"choices": [{"text": ""}]}), lines_of(*[WORD] * n, USAGE)

    def answer(handler, number):
        handler.send(200, first, Content_Length=len(first + rest))
        time.sleep(0.1)
        handler.server.first_word_s = time.monotonic()
        return handler.wfile.write(rest.encode())

    with small_server(answer) as (server, url):
        engine = connect(url)
        assert (engine._started + serve_one(engine).first_token_s < server.first_word_s) == (n == 2)


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1),
    st.sampled_from([b"\n", b"\r", b"\r\n"]),
    st.sets(st.integers(1, 300)),
    st.booleans(),
)
def test_events_are_the_same_wherever_their_bytes_are_split(texts, end, cuts, ended):
    blocks = [f"id: 1\ndata: {json.dumps(text, ensure_ascii=False)}".encode() for text in texts]
    stream = b"\n\n".join(blocks).replace(b"\n", end) + end * 2 * ended
    edges = [0, *sorted(cuts), len(stream)]

    async def chunks():
        for first, last in pairwise(edges):
            yield stream[first:last]

    async def read():
        return [[*filter(None, event.splitlines())] async for event in events(chunks()) if event.strip()]

    assert asyncio.run(read()) == [block.split(b"\n") for block in blocks]


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/llm/v1"])
def test_an_address_may_end_in_v1(path):
    with small_server() as (_, url):
        assert connect(url + path).url == url + path.removesuffix("/").removesuffix("/v1")


@pytest.mark.parametrize(("tokens", "sent"), [([1, 2], [1, 2, 1, 2, 1]), ([*range(9)], [*range(5)]), (None, None)])
def test_a_prompt_has_the_length_that_the_load_gives_or_is_not_sent(tokens, sent):
    with small_server() as (server, url):
        server.tokens, engine = tokens, connect(url)
        engine.add(question(prompt_tokens=5))
        [output] = outputs_of(engine)
        assert [content["prompt"] for content in server.seen] == ([] if sent is None else [sent])
        assert (output.error is None) == (sent is not None)
        assert sent or "/tokenize cannot be used: KeyError: 'tokens': without it" in output.error


DEAD, FAR, UNUSABLE = "http://127.0.0.1:9", "192.0.2.1", "in the environment cannot be used: "


@pytest.mark.parametrize(
    ("variable", "value", "host", "message"),
    [
        ("http_proxy", DEAD, "127.0.0.1", None),
        ("ALL_PROXY", DEAD, "localhost", None),
        ("http_proxy", DEAD, FAR, "/v1/models cannot be used: ConnectError: .*; the environment sets .*http_proxy"),
        ("ALL_PROXY", "socks://127.0.0.1:1080/", FAR, f"^ALL_PROXY {UNUSABLE}.*socks"),
        ("SSL_CERT_FILE", "/nowhere", FAR, f"^SSL_CERT_FILE .* {UNUSABLE}.*No such file"),
    ],
)
def test_proxies_and_certificates_of_the_environment(variable, value, host, message, monkeypatch):
    for name in [name for name in os.environ if name.lower().endswith("_proxy") or name.startswith("SSL_CERT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv(variable, value)
    with small_server() as (_, url):
        expected = nullcontext() if message is None else pytest.raises((ParamsError, RunError), match=message)
        with expected:
            assert serve_one(connect(url.replace("127.0.0.1", host))).error is None


def test_a_certificate_that_nobody_vouches_for(tmp_path, monkeypatch):
    if shutil.which("openssl") is None:
        pytest.skip("nothing here makes certificates")
    command = "openssl req -x509 -newkey rsa -nodes -keyout key -out pem -subj /CN=me -addext"
    subprocess.run([*command.split(), "subjectAltName=IP:127.0.0.1"], cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem", tmp_path / "key")
    with small_server() as (server, url):
        server.socket = context.wrap_socket(server.socket, server_side=True)
        url = url.replace("http", "https")
        with pytest.raises(RunError, match="CERTIFICATE_VERIFY_FAILED.*let SSL_CERT_FILE name a file with"):
            connect(url)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "pem"))
        assert serve_one(connect(url)).error is None


ONE_POLICY = {"scheduler.vary_estimates_for": [], "scheduler.policies": ["fifo"]}
SHORT_CONTEXT = Params.load(PAPER_L4, SMALL | ONE_POLICY | {"engine.args": {"max_model_len": 400}})


@pytest.mark.parametrize(
    ("simulated", "why"), [(None, "HTTP 500: .* too many"), (SHORT_CONTEXT, "the context holds .* tokens")]
)
def test_the_command_says_how_many_requests_failed_and_why(simulated, why, tmp_path, capsys):
    """And says the same if all is there."""
    file, out, said = tmp_path / "params.yaml", str(tmp_path / "out"), []
    with small_server(lambda handler, number: number >= 70 and handler.send(500, f"{number} are too many")) as (_, url):
        params = simulated or params_at(url, **ONE_POLICY)
        file.write_text(yaml.safe_dump(params.model_dump()))
        for _ in range(2):
            assert main(["run", str(file), "--out", out, "--jobs", "1"]) == 1
            said.append(capsys.readouterr().err.splitlines()[-1])
    summary = pd.read_csv(f"{out}/summary.csv")
    failed, requests = summary.failed.sum(), summary.requests.sum()
    assert 0 < failed < requests and said[0] == said[1]
    assert re.fullmatch(rf"{failed} of {requests} requests failed: {why} \({failed} times\)", said[0])


KNOWN_TO_OPENAI = {"model", "prompt", "temperature", "max_tokens", "stream", "stream_options"}


@pytest.mark.parametrize("extensions", [True, False])
def test_a_strict_server_is_served_without_vllms_additions(extensions):
    def strict(handler, number):
        unknown = set(handler.server.seen[number]) - KNOWN_TO_OPENAI
        return bool(unknown) and handler.send(400, {"error": f"unknown {sorted(unknown)}"})

    with small_server(strict) as (_, url):
        output = serve_one(load_engine(params_at(url, engine__server__extensions=extensions).engine))
        assert output.error is None if not extensions else "unknown ['min_tokens', 'vllm_xargs']" in output.error


CACHE = 'vllm:cache_config_info{block_size="16",num_gpu_blocks="%s"} 1.0\n'


@pytest.mark.parametrize(
    ("metrics", "max_in_flight", "kv_blocks"),
    [(CACHE % 100, 8, 99), (CACHE % None, 8, None), ('{"no": "metrics"}', 8, None), (CACHE % 9, 4096, None)],
)
def test_limits_that_a_server_does_not_tell_are_no_reason_not_to_use_it(metrics, max_in_flight, kv_blocks):
    with small_server() as (server, url):
        server.models, server.metrics = {"data": [{"id": MODEL, "max_model_len": 512}]}, metrics
        limits = connect(url, max_in_flight).limits
        assert (limits and (limits.kv_blocks, limits.max_model_len)) == (kv_blocks and (kv_blocks, 512))


def test_what_is_aborted_or_left_by_an_error_of_the_loop_is_not_with_the_server(hanging):
    hanging.add(question())
    assert not hanging.has_room() and hanging.step(until=hanging.now() + 0.1) == []
    hanging.abort("1")
    assert hanging.has_room() and hanging.step(until=hanging.now() + 0.1) == []
    with pytest.raises(ValueError, match="already here"):
        serve([question(t) for t in (0.0, 0.1)], make_scheduler()[0], hanging, ContinuousBatching())
    hanging.restart_clock()


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


BUSY = httpx.HTTPStatusError("", request=httpx.Request("GET", "http://host"), response=httpx.Response(503))


@pytest.mark.parametrize(
    ("method", "error"), [("request", httpx.ReadError("")), ("request", BUSY), ("stream", httpx.ConnectTimeout(""))]
)
def test_what_fails_before_a_request_has_begun_is_tried_again(monkeypatch, method, error):
    with small_server() as (_, url):
        engine = connect(url)
        send = Mock(wraps=getattr(engine._client, method), side_effect=[error, DEFAULT])
        monkeypatch.setattr(engine._client, method, send)
        assert serve_one(engine).error is None if method == "stream" else engine.count_tokens("What is DNS?") == 3
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
        for i in range(3000):
            signal.setitimer(signal.ITIMER_REAL, 4e-4 + i % 100 * 2e-6)  # one per step, and many come as a wait ends
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
    return handler.send(200, lines_of(WORD, {"error": "EngineCore died"}))


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


@pytest.mark.parametrize("models", [[], [1], 5, {}, {"data": None}, {"data": [1]}, {"data": [{}]}, "<html>"], ids=repr)
def test_what_is_no_openai_server_is_named(models):
    with small_server() as (server, url):
        server.models = models
        with pytest.raises(RunError, match=f"{url}/v1/models cannot be used: "):
            connect(url)


KEYS = {"EMPTY": "", "TWO_LINES": "key\n", "UMLAUT": "schlüssel"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine.server.url": "localhost:8000"}, "engine.server.url: string should match pattern"),
        ({"engine.server.url": "http://host:8000/v1?key=1"}, "engine.server.url: string should match pattern"),
        ({"engine.server": None}, "engine: server says where `kind: server` is"),
        ({"engine.kind": "vllm"}, "engine: server says where `kind: server` is"),
        ({"engine.args": {"max_num_seqs": 8}}, "engine: a live server was started with its own args"),
        ({"engine.server.max_in_flight": 0}, "engine.server.max_in_flight: input should be greater than or equal to 1"),
        *(
            ({"engine.server.api_key_env": name}, f"engine.server.api_key_env: the environment holds no {name}")
            for name in ("NO_KEY", *KEYS)
        ),
    ],
)
def test_parameters_of_a_server_that_are_wrong_are_named(changes, message, tmp_path, monkeypatch):
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)
    with pytest.raises(ParamsError, match=message):
        run_grid(Params.load(SMOKE_SERVER, changes), tmp_path)
