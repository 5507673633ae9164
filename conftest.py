"""How the suite runs: each of its processes on a core of its own, notebooks cell by cell with parameters of seconds."""

import os
import signal
import tempfile

if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # vLLM's threads wait by spinning: two engines that share cores stand still.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

# A suite that a shell starts in the background inherits that Ctrl-C is ignored, and some tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)

OUT = tempfile.mkdtemp(prefix="driftsched-")
SMOKE = {
    "samples": 60,
    "lengths": "data/natural_lengths/smoke",
    "seeds": [1, 2],
    "requests": 250,
    "real_seeds": 1,
    "real_requests": 40,
    "requests_a_tenant": 20,
    "sides": {"plug-in, Express": {}},
}
SMOKE_OF = {
    "06_drift_lab": {"real_scenarios": ["abrupt"]},
    "07_policy_frontier": {
        "requests": 40,
        "real_requests": 10,
        "rates": [3.0, 12.0],
        "pair_seeds": 2,
        "pair_rates": [3.0, 12.0],
        "pair_requests": 40,
        "real_pair_seeds": 1,
        "real_pair_rates": [3.0],
    },
}
LONGEST = {"test_live_server", "test_faults", "test_parallel", "test_explorer_in_a_browser", "test_vllm_plugin"}
SMOKE_FILES = {
    "quick.yaml": "smoke.yaml",
    "paper-l4.yaml": "smoke-l4.yaml",
    "natural.yaml": "smoke-natural.yaml",
    "your-trace.yaml": "smoke-trace.yaml",
}


def _turn(item):
    """Notebooks first, then the files that take longest, or a worker would begin one of them when the other is done."""
    if hasattr(item, "cell_num"):
        return 0, str(item.path), item.cell_num
    return (1 if item.path.stem in LONGEST else 2), "", 0


def pytest_collection_modifyitems(items):
    items.sort(key=_turn)
    for item in items:
        if hasattr(item, "cell_num") and "parameters" in item.cell.metadata.get("tags", []):
            item.cell.source = item.cell.source.replace(
                "../runs/", f"{OUT}/"
            )  # notebooks share what they share outside
            for whole, smoke in SMOKE_FILES.items():
                item.cell.source = item.cell.source.replace(f"../params/{whole}", f"../params/{smoke}")
            for name, value in (SMOKE | SMOKE_OF.get(item.path.stem, {})).items():
                if f"{name} = " in item.cell.source:
                    item.cell.source += f"\n{name} = {value!r}"
