"""A child process ends with its parent."""

import signal
import subprocess
import sys

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


def test_a_parent_that_is_killed_leaves_nothing_behind():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "grandchild\n"
        parent.send_signal(signal.SIGKILL)
        rest, _ = parent.communicate(timeout=100)  # all three print there: it ends when all are gone
    assert rest == ""
