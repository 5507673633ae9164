"""What engines hold, and give back; what a killed process leaves behind."""

import signal
import subprocess
import sys
from contextlib import closing

import psutil
import pytest

from driftsched_lib.engines.load import load_engine
from driftsched_lib.experiments.params import Params
from driftsched_lib.experiments.speed import warm_up
from driftsched_lib.validation import PROJECT

CHILD = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; print('grandchild', flush=True); time.sleep(1000)"]).wait()
"""
PARENT = f"""
import time
from driftsched_lib.engines.vllm_commands import child
with child({CHILD!r}):
    time.sleep(1000)
"""


def memory_gib():
    """Of the device that holds models and KV caches."""
    import torch

    on_gpu = torch.cuda.is_available()
    return (torch.cuda.memory_reserved() if on_gpu else psutil.Process().memory_info().rss) / 2**30


def test_a_parent_that_is_killed_leaves_nothing_behind():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "grandchild\n"
        parent.send_signal(signal.SIGKILL)
        rest, _ = parent.communicate(timeout=100)  # all three print there: it ends when all are gone
    assert rest == ""


def test_an_engine_that_is_closed_gives_its_memory_back():
    pytest.importorskip("vllm")
    params = Params.load(PROJECT / "params" / "smoke.yaml")  # a GiB of KV cache
    with closing(load_engine(params.engine)) as engine:
        warm_up(params, engine)
        held = memory_gib()
    assert memory_gib() < held - 0.5
