"""vLLM's own commands as child processes: its server, and its benchmark client, one process per tenant."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, NamedTuple

import httpx
import pandas as pd
from prometheus_client.parser import text_string_to_metric_families

from driftsched_lib.errors import RunError
from driftsched_lib.validation import in_project

TIMEOUT_S = 600  # for a server to start, and for clients to end
# Nobody writes to standard input: reading returns when the parent is gone, killed or not.
_END_WITH_PARENT = """
import os, runpy, signal, threading
threading.Thread(target=lambda: (os.read(0, 1), os.killpg(0, signal.SIGTERM)), daemon=True).start()
"""
_SERVER = "runpy.run_module('vllm.entrypoints.openai.api_server', run_name='__main__', alter_sys=True)"
# The client takes seconds to import: this is done once, then all tenants start together.
_CLIENTS = """
import argparse, json, sys
from multiprocessing import get_context
from vllm.benchmarks.serve import add_cli_args, main
parser = argparse.ArgumentParser()
add_cli_args(parser)
clients = [parser.parse_args(arguments) for arguments in json.loads(sys.argv[1])]
with get_context("fork").Pool(len(clients)) as pool, open(sys.argv[2], "w") as file:
    json.dump(pool.map(main, clients, chunksize=1), file)
"""
_CLIENT_OPTIONS = (
    "--backend=openai --endpoint=/v1/completions --dataset-name=custom --custom-output-len=-1 --ignore-eos "
    "--disable-shuffle --skip-chat-template --disable-tqdm --save-detailed"
)
_RESULTS = {"start_s": "start_times", "ttft_s": "ttfts", "e2e_s": "latencies", "output_tokens": "output_lens"}


@contextmanager
def child(code: str, *arguments: str, **options) -> Iterator[subprocess.Popen]:
    """Run Python code in a session of its own, which ends afterwards, or when this process does, killed or not.

    So a restarted kernel leaves no server behind.  `options` are those of `subprocess.Popen`, except `stdin`.
    """
    command = [sys.executable, "-c", _END_WITH_PARENT + code, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            for number in (signal.SIGINT, signal.SIGKILL):
                with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(process.pid, number)
                    process.wait(timeout=15)


@contextmanager
def serve_vllm(model: str, *arguments: str, env: Mapping[str, str] | None = None) -> Iterator[str]:
    """Start vLLM's OpenAI-compatible server on a free port, yield its base URL, and end it.

    `model` is a Hugging Face id, or a folder, looked for in the project first; `arguments` are those of `vllm serve`;
    `env` is set for it in addition to this process's variables.  Raises RunError, with its log, if it does not start.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        host, port = free.getsockname()
    options = [f"--model={in_project(model)}", f"--served-model-name={model}", f"--host={host}", f"--port={port}"]
    with TemporaryDirectory(prefix="vllm-") as metrics, TemporaryFile("w+", errors="replace") as log:
        defaults = {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # on a CPU two processes would spin while they wait for each other
            "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) - 1)),  # its clients need a core
            "PROMETHEUS_MULTIPROC_DIR": metrics,  # shared by the processes of the engine and of the server
            "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600",  # or a client sends on a connection that was just closed
        }
        env = defaults | os.environ | (env or {})
        with child(_SERVER, *options, *arguments, env=env, stdout=log, stderr=log) as process:
            _wait("vLLM's server", process, log, lambda status: _is_up(f"http://{host}:{port}/health"))
            yield f"http://{host}:{port}"


def _is_up(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(url, timeout=30, trust_env=False).is_success  # no proxy leads to this machine
    return False


def _wait(what: str, process: subprocess.Popen, log: IO[str], done: Callable[[int | None], bool]) -> None:
    """Wait until a child, whose exit status is given to `done`, has done its work; else raise RunError with its log."""
    until = time.monotonic() + TIMEOUT_S
    while not done(status := process.poll()):
        if status is not None or time.monotonic() > until:
            log.seek(0)
            raise RunError(f"{what} failed, or took over {TIMEOUT_S} s:\n{''.join(log.readlines()[-25:])}")
        time.sleep(0.5)


class TenantLoad(NamedTuple):
    """What one tenant sends: prompts with the output tokens of each, `rate_per_s` of them per second (Poisson)."""

    tenant: str
    tier: str
    rate_per_s: float
    prompts: Sequence[tuple[str, int]]


def send(url: str, model: str, loads: Sequence[TenantLoad], watch: Callable[[], object] = lambda: None) -> pd.DataFrame:
    """Let all tenants send at once through vLLM's benchmark client; return one row per request, as its client saw it.

    `watch` is called every half second meanwhile.  Columns: `tenant`, `tier`, `start_s` (since the first of all),
    `ttft_s`, `e2e_s`, `output_tokens`, `error`.  Raises RunError, with the end of the clients' log, if one fails.
    """
    commands, tables = [], []
    with TemporaryDirectory(prefix="clients-") as folder, TemporaryFile("w+", errors="replace") as log:
        for i, load in enumerate(loads):
            dataset, who = Path(folder, f"{i}.jsonl"), {"vllm_xargs": {"tenant": load.tenant, "tier": load.tier}}
            dataset.write_text("\n".join(json.dumps({"prompt": text, "output_tokens": n}) for text, n in load.prompts))
            mine = {"base-url": url, "model": model, "tokenizer": in_project(model), "dataset-path": dataset}
            mine |= {"num-prompts": len(load.prompts), "request-rate": load.rate_per_s, "seed": i + 1}
            mine["extra-body"] = json.dumps(who)
            commands.append([*_CLIENT_OPTIONS.split(), *(f"--{name}={value}" for name, value in mine.items())])
        out, env = Path(folder, "results.json"), os.environ | {"no_proxy": "127.0.0.1"}
        with child(_CLIENTS, json.dumps(commands), str(out), env=env, stdout=log, stderr=log) as clients:
            _wait("a client", clients, log, lambda status: (watch(), status == 0)[1])
        results = json.loads(out.read_text())
    for load, result in zip(loads, results, strict=True):
        columns = {name: result[key] for name, key in _RESULTS.items()} | {"error": result["errors"]}
        tables.append(pd.DataFrame({"tenant": load.tenant, "tier": load.tier} | columns))
    return pd.concat(tables, ignore_index=True).assign(start_s=lambda table: table.start_s - table.start_s.min())


def scrape(url: str, prefix: str = "driftsched_") -> pd.DataFrame:
    """Return the metrics at `/metrics` whose names begin with `prefix`: columns `name`, `labels` (text), `value`."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=30, trust_env=False).text)
    samples = [sample for family in families for sample in family.samples if sample.name.startswith(prefix)]
    labels = [", ".join(f"{key}={value}" for key, value in one.labels.items() if key != "pid") for one in samples]
    names, values = [one.name for one in samples], [one.value for one in samples]
    return pd.DataFrame({"name": names, "labels": labels, "value": values})
