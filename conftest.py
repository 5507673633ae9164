"""How the suite runs: each process on a core of its own, the longest files first, fuzzing reproducible."""

import os
import signal

from hypothesis import settings

LONGEST = ["test_live_server", "test_explorer", "test_faults", "test_explorer_in_a_browser", "test_fuzz"]
LONGEST += ["test_fidelity", "test_estimator_state", "test_queueing_theory", "test_soak", "test_vllm_plugin"]
LONGEST += ["test_simulated_grid", "test_own_classes", "test_interrupts", "test_packaging"]

if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # vLLM's threads wait by spinning: two engines that share cores stand still.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

# A suite that a shell starts in the background inherits that Ctrl-C is ignored, and some tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("suite", deadline=None, derandomize=True)
settings.register_profile("thorough", deadline=None, max_examples=20_000)


def pytest_addoption(parser):
    parser.addoption(
        "--thorough", action="store_true", help="fuzz and soak 50 to 100 times as long, break real vLLM too"
    )


def pytest_configure(config):
    settings.load_profile("thorough" if config.getoption("thorough") else "suite")


def pytest_collection_modifyitems(items):
    """Put notebooks first, cell by cell, then the longest files: no process is left alone with one of them."""
    items.sort(key=_turn)


def _turn(item):
    if hasattr(item, "cell_num"):
        return 0, str(item.path), item.cell_num
    return 1, "", (LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
