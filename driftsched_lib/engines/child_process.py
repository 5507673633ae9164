"""Python processes that end with the one that started them, however that ends."""

import subprocess
import sys

_END_WITH_PARENT = """
import os, signal, threading

def end_with_parent():
    os.read(0, 1)  # nobody writes there: it returns when the parent is gone
    os.killpg(0, signal.SIGTERM)

threading.Thread(target=end_with_parent, daemon=True).start()
"""


def start(code: str, *arguments: str, **options) -> subprocess.Popen:
    """Run Python code, with `sys.argv[1:]` as given, in a process of its own session.

    When this process is gone, killed or not, that one and all that it has started in its session get SIGTERM: a kernel
    that is restarted leaves no server behind.

    Parameters:
        options: of `subprocess.Popen`, but for `stdin`, which is how it notices.
    """
    command = [sys.executable, "-c", _END_WITH_PARENT + code, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, **options)
