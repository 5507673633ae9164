"""A real vLLM server in a process of its own, for as long as it is needed."""

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from driftsched_lib.engines import child_process
from driftsched_lib.errors import DriftSchedError
from driftsched_lib.validation import in_project

_SERVER = """
import runpy
runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
"""


@contextmanager
def serve_vllm(
    model: str, *arguments: str, env: Mapping[str, str] | None = None, start_timeout_s: float = 300
) -> Iterator[str]:
    """Start vLLM's OpenAI-compatible server on a free port, yield its base URL, and end it.

    Parameters:
        model: a Hugging Face model id, or a folder, looked for in the project first.
        arguments: of `vllm serve`, such as `--max-num-seqs`, `32`.
        env: variables set for it beside this process's.

    Raises:
        DriftSchedError: it ended, or did not answer in time; the message has the end of its log.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--model", in_project(model), "--served-model-name", model, "--host", "127.0.0.1", "--port", str(port)]
    with tempfile.TemporaryDirectory(prefix="vllm-") as folder:
        log = Path(folder) / "log"
        metrics = Path(folder) / "metrics"  # what the engine's process and the server's share
        metrics.mkdir()
        defaults = {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            # On a CPU the engine and its worker are else two processes that spin while they wait for each other, and
            # leave no core to the server and its clients.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) - 1)),
            "PROMETHEUS_MULTIPROC_DIR": str(metrics),
            "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600",  # or a client sends on a connection that was just closed
        }
        with open(log, "wb") as output:
            process = child_process.start(
                _SERVER,
                *options,
                *arguments,
                env=defaults | os.environ | (env or {}),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        with process:
            try:
                url = f"http://127.0.0.1:{port}"
                _wait(url, process, log, start_timeout_s)
                yield url
            finally:
                _end(process)


def _wait(url: str, process: subprocess.Popen, log: Path, timeout_s: float) -> None:
    """Until it answers."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if process.poll() is not None:
            raise DriftSchedError(f"vLLM's server ended with status {process.returncode}:\n{_tail(log)}")
        try:
            if httpx.get(f"{url}/health", timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise DriftSchedError(f"vLLM's server did not answer within {timeout_s:g} s:\n{_tail(log)}")


def _end(process: subprocess.Popen) -> None:
    """The server and the engine's process, which is its child: asked first, then made."""
    for number in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=15)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _tail(log: Path, lines: int = 25) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
