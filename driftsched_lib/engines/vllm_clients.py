"""vLLM's own benchmark client, a process a tenant, against a live server; and what the server's metrics say."""

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
from prometheus_client.parser import text_string_to_metric_families

from driftsched_lib.engines import child_process
from driftsched_lib.errors import DriftSchedError
from driftsched_lib.validation import in_project
from driftsched_lib.workloads.corpus import TOPICS
from driftsched_lib.workloads.prompts import TEMPLATES, build_prompt

# The client's imports take seconds: they are done once, then all tenants begin at the same time.
_CLIENTS = """
import argparse, json, os, sys
from multiprocessing import get_context
from vllm.benchmarks.serve import add_cli_args, main

def client(arguments, log):
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    main(parser.parse_args(arguments))

processes = [get_context("fork").Process(target=client, args=each) for each in json.loads(sys.argv[1])]
for process in processes:
    process.start()
for process in processes:
    process.join()
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
        DriftSchedError: a client failed; the message has the end of what it printed.
    """
    with tempfile.TemporaryDirectory(prefix="clients-") as name:
        folders = [Path(name) / str(i) for i in range(len(loads))]
        tenants = [
            (_arguments(url, model, load, seed + i, folder), str(folder / "log"))
            for i, (load, folder) in enumerate(zip(loads, folders, strict=True))
        ]
        with open(Path(name) / "log", "wb") as log:
            clients = child_process.start(_CLIENTS, json.dumps(tenants), stdout=log, stderr=subprocess.STDOUT)
        with clients:
            try:
                with suppress(subprocess.TimeoutExpired):
                    clients.wait(timeout_s)
                tables = [_result(load, folder, timeout_s) for load, folder in zip(loads, folders, strict=True)]
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(clients.pid, signal.SIGKILL)
    table = pd.concat(tables, ignore_index=True)
    return table.assign(start_s=table.start_s - table.start_s.min())


def _arguments(url: str, model: str, load: TenantLoad, seed: int, folder: Path) -> list[str]:
    folder.mkdir()
    dataset = folder / "prompts.jsonl"
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
        "--result-filename": "result.json",
    }
    flags = ["--ignore-eos", "--disable-shuffle", "--skip-chat-template", "--disable-tqdm", "--save-result"]
    return [*sum(options.items(), ()), *flags, "--save-detailed"]


def _result(load: TenantLoad, folder: Path, timeout_s: float) -> pd.DataFrame:
    try:
        content = json.loads((folder / "result.json").read_text())
    except (OSError, ValueError) as error:
        logs = [path for path in (folder.parent / "log", folder / "log") if path.exists()]
        end = "\n".join("".join(path.read_text(errors="replace") for path in logs).splitlines()[-20:])
        why = f"the client of {load.tenant} failed, or took over {timeout_s:g} s ({error}):\n{end}"
        raise DriftSchedError(why) from None
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
