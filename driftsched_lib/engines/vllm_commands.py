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
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO

import httpx
import pandas as pd
from prometheus_client.parser import text_string_to_metric_families

from driftsched_lib.errors import RunError
from driftsched_lib.validation import in_project

TIMEOUT_S = 600
"""A server must start, and clients must end, within this time."""

# Nobody writes to standard input: reading returns when the parent is gone, killed or not.
_END_WITH_PARENT = """
import os, signal, threading
threading.Thread(target=lambda: (os.read(0, 1), os.killpg(0, signal.SIGTERM)), daemon=True).start()
"""
_SERVER = """
import runpy
runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
"""
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
    """Run Python code in a process with its own session, and end that session afterwards.

    The session also ends when this process does, killed or not: a restarted kernel leaves no server behind.  `options`
    are those of `subprocess.Popen`, except `stdin`.
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


def _failure(what: str, log: IO[str]) -> RunError:
    log.seek(0)
    return RunError(f"{what} failed, or took over {TIMEOUT_S} s:\n{''.join(log.readlines()[-25:])}")


@contextmanager
def serve_vllm(model: str, *arguments: str, env: Mapping[str, str] | None = None) -> Iterator[str]:
    """Start vLLM's OpenAI-compatible server on a free port, yield its base URL, and end it.

    Parameters:
        model: a Hugging Face model id, or a folder, looked for in the project first.
        arguments: of `vllm serve`, such as `--max-num-seqs`, `32`.
        env: variables set for it in addition to this process's.

    Raises:
        RunError: it does not start; the message has the end of its log.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = ["--model", in_project(model), "--served-model-name", model, "--host", "127.0.0.1", "--port", port]
    url, until = f"http://127.0.0.1:{port}", time.monotonic() + TIMEOUT_S
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
            while not _answers(f"{url}/health"):
                if process.poll() is not None or time.monotonic() > until:
                    raise _failure("vLLM's server", log)
                time.sleep(0.2)
            yield url


def _answers(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(url, timeout=5).is_success
    return False


@dataclass(frozen=True)
class TenantLoad:
    """What one tenant sends: prompts with the output tokens of each, `rate_per_s` of them per second (Poisson)."""

    tenant: str
    tier: str
    rate_per_s: float
    prompts: Sequence[tuple[str, int]]


def send(url: str, model: str, loads: Sequence[TenantLoad], watch: Callable[[], object] = lambda: None) -> pd.DataFrame:
    """Let all tenants send at once through vLLM's benchmark client; return one row per request, as its client saw it.

    Parameters:
        watch: called every half second meanwhile.

    Returns:
        Columns `tenant`, `tier`, `start_s` (since the first of all), `ttft_s`, `e2e_s`, `output_tokens`, `error`.

    Raises:
        RunError: a client failed; the message has the end of the clients' log.
    """
    commands = []
    with TemporaryDirectory(prefix="clients-") as folder, TemporaryFile("w+", errors="replace") as log:
        for i, load in enumerate(loads):
            dataset, sender = Path(folder, f"{i}.jsonl"), {"tenant": load.tenant, "tier": load.tier}
            rows = [json.dumps({"prompt": prompt, "output_tokens": tokens}) for prompt, tokens in load.prompts]
            dataset.write_text("\n".join(rows))
            body = json.dumps({"vllm_xargs": sender})
            mine = {"base-url": url, "model": model, "tokenizer": in_project(model), "dataset-path": dataset}
            mine |= {"num-prompts": len(rows), "request-rate": load.rate_per_s, "seed": i + 1, "extra-body": body}
            commands.append([*_CLIENT_OPTIONS.split(), *(f"--{name}={value}" for name, value in mine.items())])
        out, until = Path(folder, "results.json"), time.monotonic() + TIMEOUT_S
        with child(_CLIENTS, json.dumps(commands), str(out), stdout=log, stderr=log) as clients:
            while clients.poll() is None and time.monotonic() < until:
                watch()
                time.sleep(0.5)
        if clients.returncode != 0:
            raise _failure("a client", log)
        results = json.loads(out.read_text())
    tables = []
    for load, result in zip(loads, results, strict=True):
        columns = {name: result[key] for name, key in _RESULTS.items()} | {"error": result["errors"]}
        tables.append(pd.DataFrame({"tenant": load.tenant, "tier": load.tier} | columns))
    table = pd.concat(tables, ignore_index=True)
    return table.assign(start_s=table.start_s - table.start_s.min())


def scrape(url: str, prefix: str = "driftsched_") -> pd.DataFrame:
    """Return the metrics at `/metrics` whose names begin with `prefix`: columns `name`, `labels` (text), `value`."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=30).text)
    rows = [
        (sample.name, ", ".join(f"{key}={value}" for key, value in sample.labels.items() if key != "pid"), sample.value)
        for family in families
        for sample in family.samples
        if sample.name.startswith(prefix)
    ]
    return pd.DataFrame(rows, columns=["name", "labels", "value"])
