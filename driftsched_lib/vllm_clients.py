"""vLLM's own benchmark client, a process a tenant, against a live server; and what the server's metrics say."""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
from prometheus_client.parser import text_string_to_metric_families

from driftsched_lib.corpus import TOPICS
from driftsched_lib.engines.vllm_server import ServerError
from driftsched_lib.prompts import TEMPLATES, build_prompt
from driftsched_lib.validation import in_project

# Its imports take seconds, more for one process than for another: all begin to send when all are there.
_CLIENT = """
import argparse, sys, time
from pathlib import Path
from vllm.benchmarks.serve import add_cli_args, main
parser = argparse.ArgumentParser()
add_cli_args(parser)
ready, go = map(Path, sys.argv[1:3])
ready.touch()
while not go.exists():
    time.sleep(0.01)
main(parser.parse_args(sys.argv[3:]))
"""


@dataclass(frozen=True)
class TenantLoad:
    """What one tenant sends: so many requests a second (Poisson), prompts of some categories, outputs of given lengths.

    Attributes:
        output_tokens: the length of an output, by category.
    """

    tenant: str
    tier: str
    requests: int
    rate_per_s: float
    output_tokens: dict[str, int]

    def rows(self, seed: int) -> list[dict]:
        """Prompts and the lengths of their outputs, as the client's `custom` dataset wants them."""
        rng, rows = np.random.default_rng(seed), []
        for category in rng.choice(list(self.output_tokens), self.requests):
            topic, template = str(rng.choice(TOPICS)), int(rng.integers(len(TEMPLATES[category])))
            tokens = self.output_tokens[category]
            rows.append({"prompt": build_prompt(str(category), topic, template), "output_tokens": tokens})
        return rows


def send(url: str, model: str, loads: Sequence[TenantLoad], seed: int = 1, timeout_s: float = 600) -> pd.DataFrame:
    """Let all tenants send at once; a row a request, as their clients saw it.

    Returns:
        Columns `tenant`, `tier`, `start_s` (since the first of all), `ttft_s`, `e2e_s`, `output_tokens`, `error`.

    Raises:
        ServerError: a client failed; the message has the end of what it printed.
    """
    with tempfile.TemporaryDirectory(prefix="clients-") as folder:
        clients = [_start(url, model, load, seed + i, Path(folder)) for i, load in enumerate(loads)]
        try:
            _wait_for_all(clients, loads, Path(folder))
            tables = [
                _result(load, client, timeout_s, Path(folder)) for load, client in zip(loads, clients, strict=True)
            ]
        finally:
            for client in clients:
                client.kill()
    table = pd.concat(tables, ignore_index=True)
    return table.assign(start_s=table.start_s - table.start_s.min())


def _start(url: str, model: str, load: TenantLoad, seed: int, folder: Path) -> subprocess.Popen:
    dataset = folder / f"{load.tenant}.jsonl"
    dataset.write_text("\n".join(map(json.dumps, load.rows(seed))))
    options = {
        "--backend": "openai",
        "--base-url": url,
        "--endpoint": "/v1/completions",
        "--model": model,
        "--tokenizer": in_project(model),
        "--dataset-name": "custom",
        "--dataset-path": str(dataset),
        "--custom-output-len": "-1",
        "--num-prompts": str(load.requests),
        "--request-rate": str(load.rate_per_s),
        "--seed": str(seed),
        "--extra-body": json.dumps({"vllm_xargs": {"tenant": load.tenant, "tier": load.tier}}),
        "--result-dir": str(folder),
        "--result-filename": f"{load.tenant}.json",
    }
    flags = ["--ignore-eos", "--disable-shuffle", "--skip-chat-template", "--disable-tqdm", "--save-result"]
    command = [
        sys.executable,
        "-c",
        _CLIENT,
        folder / f"{load.tenant}.ready",
        folder / "go",
        *sum(options.items(), ()),
        *flags,
        "--save-detailed",
    ]
    with open(folder / f"{load.tenant}.log", "wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def _wait_for_all(clients: Sequence[subprocess.Popen], loads: Sequence[TenantLoad], folder: Path) -> None:
    while not all((folder / f"{load.tenant}.ready").exists() for load in loads):
        if any(client.poll() is not None for client in clients):
            break  # its result says why
        time.sleep(0.05)
    (folder / "go").touch()


def _result(load: TenantLoad, client: subprocess.Popen, timeout_s: float, folder: Path) -> pd.DataFrame:
    saved = folder / f"{load.tenant}.json"
    try:
        client.wait(timeout_s)
        content = json.loads(saved.read_text())
    except (subprocess.TimeoutExpired, OSError, ValueError) as error:
        log = (folder / f"{load.tenant}.log").read_text(errors="replace").splitlines()[-20:]
        raise ServerError(f"the client of {load.tenant} failed ({error}):\n" + "\n".join(log)) from None
    names = {"start_s": "start_times", "ttft_s": "ttfts", "e2e_s": "latencies", "output_tokens": "output_lens"}
    columns = {name: content[key] for name, key in names.items()} | {"error": content["errors"]}
    return pd.DataFrame({"tenant": load.tenant, "tier": load.tier} | columns)


@contextmanager
def sampled(url: str, prefix: str, interval_s: float = 0.5) -> Iterator[list[pd.DataFrame]]:
    """While it lasts, `scrape` at intervals into a list that grows, each with `time_s`, seconds since the first."""
    tables: list[pd.DataFrame] = []
    over, started = threading.Event(), time.monotonic()

    def watch() -> None:
        while not over.wait(interval_s):
            tables.append(scrape(url, prefix).assign(time_s=time.monotonic() - started))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield tables
    finally:
        over.set()
        watcher.join()


def scrape(url: str, prefix: str = "driftsched_") -> pd.DataFrame:
    """What `/metrics` says now: columns `name`, `labels` (as text) and `value`, of metrics whose names begin so."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=30).text)
    rows = [
        (sample.name, ", ".join(f"{key}={value}" for key, value in sample.labels.items() if key != "pid"), sample.value)
        for family in families
        for sample in family.samples
        if sample.name.startswith(prefix)
    ]
    return pd.DataFrame(rows, columns=["name", "labels", "value"])
