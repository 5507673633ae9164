"""Faults while an experiment runs: no finished run is lost or repeated, nothing half-written is read as whole.

The message says what to do.  Processes that run a grid are forks of one that has imported everything, so that twenty of
them take seconds.  `--thorough` repeats all but the disks on real vLLM, and kills it twenty times.
"""

import gc
import os
import re
import resource
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from math import inf
from pathlib import Path
from random import Random
from traceback import print_exc
from unittest.mock import patch

import pandas as pd
import pytest
import yaml
from jupyter_client.manager import start_new_kernel
from simulation import PAPER_L4, SMALL, contents

from driftsched_lib import Params, results, run_grid
from driftsched_lib.__main__ import main
from driftsched_lib.engines.simulated import SimulatedEngine
from driftsched_lib.errors import DriftSchedError, RunError
from driftsched_lib.experiments.provenance import provenance
from driftsched_lib.validation import PARTIAL, PROJECT

SMOKE = PROJECT / "params" / "smoke.yaml"
FIFO = {"scheduler.policies": ["fifo"]}
GRIDS = {
    "simulated": (PAPER_L4, SMALL | FIFO | {"scheduler.batching": ["static", "continuous"], "requests": 20}),
    "vllm": (SMOKE, FIFO),
}
SUMMARY_COLUMNS = {
    *("engine", "model", "batching", "policy", "estimator", "calibration", "token_counter", "seed", "requests"),
    *("completed", "p50_e2e_s", "p95_e2e_s", "p99_e2e_s", "mean_e2e_s", "p50_ttft_s", "p99_ttft_s"),
    *("mean_queue_wait_s", "output_tokens_per_s", "mae_tokens", "rmse_tokens", "jain_index"),
}
KEPT = "Finished runs are kept"


def pytest_generate_tests(metafunc):
    thorough = metafunc.config.getoption("thorough")
    if "kills" in metafunc.fixturenames:
        metafunc.parametrize(("engine", "kills"), [("simulated", 20), ("vllm", 20 if thorough else 1)])
    elif "engine" in metafunc.fixturenames:
        metafunc.parametrize("engine", GRIDS if thorough else ["simulated"])


def grid(engine, folder, seeds):
    """Write the parameters of a grid with at least two runs per seed; return their file."""
    (file, changes), path = GRIDS[engine], folder / "grid.yaml"
    path.write_text(yaml.safe_dump(Params.load(file, changes | {"seeds": list(range(1, seeds + 1))}).model_dump()))
    return path


def manifests(out):
    return len(list(out.glob("*/manifest.json")))


def finished(out, before=()):
    """Return the bytes of all finished runs: each has one row per request, those finished `before` are unchanged."""
    runs = {}
    for folder in (path.parent for path in out.glob("*/manifest.json")):
        if folder.suffix != PARTIAL:
            run = results.load_run(folder)
            rows = run.table("requests")
            assert rows.request_id.nunique() == len(rows) == run.manifest["params"]["requests"]
            runs[folder.name] = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert all(runs.get(name) == before[name] for name in before)
    return runs


def complete(grid, out):
    """Return whether the folder holds the whole grid and nothing else."""
    summary = pd.read_csv(out / "summary.csv")
    names = [run.name for run in Params.load(grid).runs()]
    assert not list(out.rglob(f"*{PARTIAL}"))
    assert summary.run.tolist() == names and (summary.completed == summary.requests).all()
    assert summary.drop(columns="p99_longest_itl_s").notna().all().all() and set(summary) >= SUMMARY_COLUMNS
    return set(finished(out)) == set(names)


def in_new_process(function, *arguments):
    """Call a function of this file in a new Python, which must succeed."""
    code = f"import test_faults; test_faults.{function.__name__}(*{[str(argument) for argument in arguments]})"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT / "tests", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def start(work, grid, out):
    """Fork a process that does the work and writes its output to `out`.log."""
    if child := os.fork():
        return child
    try:
        log = os.open(f"{out}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)
        os._exit(work(grid, out) or 0)
    except BaseException:
        print_exc()
    finally:
        os._exit(1)


def run(grid, out):
    return main(["run", str(grid), "--out", str(out), "--jobs", "1"])


def run_interrupted_and_broken(grid, out):
    """Run the grid in one process, as a notebook does: until it is interrupted, until the engine raises, to its end."""
    assert run(grid, out) == 130
    params, before = Params.load(grid), finished(out)
    broken = SimulatedEngine if params.engine.kind == "simulated" else sys.modules["vllm"].LLMEngine
    step, failed = broken.step, r"run (.*): the engine failed \(RuntimeError: illegal memory access\).*run the same"

    def step_or_raise(self, *arguments):
        if manifests(out) > len(before):
            step(self, *arguments)
            raise RuntimeError("illegal memory access")
        return step(self, *arguments)

    with patch.object(broken, "step", step_or_raise), pytest.raises(RunError) as caught:
        run_grid(params, out, jobs=1)
    name = re.match(failed, str(caught.value))[1]
    assert name in [run.name for run in params.runs()] and KEPT in str(caught.value)
    gc.collect()
    assert not [thing for thing in gc.get_objects() if isinstance(thing, broken)], "the traceback keeps the engine"
    before = finished(out, before)
    assert name not in before and run(grid, out) == 0
    before = finished(out, before)
    assert run(grid, out) == 0 and finished(out) == before


def wait(child, out, more, max_s=inf):
    """Wait until so many more runs are finished, or `max_s` seconds have passed."""
    until, runs = time.monotonic() + max_s, manifests(out) + more
    while time.monotonic() < until and manifests(out) < runs:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended by itself"
        time.sleep(0.002)


def end(child, number):
    """Send a signal; return the exit status of the process, or minus the signal that ended it."""
    os.kill(child, number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at_random_moments(engine, grid, out, kills):
    if engine == "vllm":
        import driftsched_lib.engines.vllm  # noqa: F401  # here, so that no fork has to
    provenance()  # a second the first time
    out, random, max_s, before = Path(out), Random(1), inf, {}
    for kill in range(int(kills)):
        started, child = time.monotonic(), start(run, grid, out)
        wait(child, out, 1, max_s)
        if kill == 0:
            first_s, speed = time.monotonic() - started, results.load_speed(out)
        max_s = random.uniform(0, 1.2 * first_s)
        assert end(child, signal.SIGKILL) == -signal.SIGKILL
        before = finished(out, before)
    child, log = start(run_interrupted_and_broken, grid, out), Path(f"{out}.log")
    wait(child, out, 1)
    before = finished(out, before)
    assert len(before) < len(Params.load(grid).runs()) - 2
    assert end(child, signal.SIGINT) == 0, log.read_text()
    assert "interrupted: finished runs are kept, the same command goes on" in log.read_text()
    finished(out, before)
    assert complete(grid, out) and results.load_speed(out) == speed


def test_killed_at_random_moments_interrupted_and_broken(engine, kills, tmp_path):
    file = grid(engine, tmp_path, seeds=kills + 2)
    in_new_process(kill_at_random_moments, engine, file, tmp_path / "out", kills)
    if engine == "simulated":
        run_grid(Params.load(file), tmp_path / "undisturbed")
        assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


@contextmanager
def disk_fault(fault, out):
    """Bring about a fault that has this message."""
    match fault:
        case "File too large":
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
            yield
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        case "Permission denied":
            user = os.geteuid()
            out.chmod(0o555)
            out.parent.chmod(0o755)
            if user == 0:
                os.seteuid(65534)
            yield
            os.seteuid(user)
            out.chmod(0o755)


def serve_on_failing_disks(grid, out):
    out, params = Path(out), Params.load(grid)
    out.mkdir()
    os.chdir(out.parent)
    out, before, write_run = Path(out.name), {}, results.write_run
    for fault in ("File too large", "Permission denied"):
        with ExitStack() as stack:

            def write_one_run(*run):
                write_run(*run)
                stack.enter_context(disk_fault(fault, out))  # noqa: B023

            with patch.object(results, "write_run", write_one_run), pytest.raises(DriftSchedError) as caught:
                run_grid(params, out, jobs=1)
            after = finished(out, before)
            assert len(after) == len(before) + 1 and not list(out.glob("*/*.partial"))
            for _ in range(2):
                assert fault in str(caught.value) and KEPT in str(caught.value), caught.value
                with pytest.raises(DriftSchedError) as caught:
                    run_grid(params, out, jobs=1)
            before = finished(out, after)
    run_grid(params, out, jobs=1)
    finished(out, before)
    assert complete(grid, out)


def test_disks_that_cannot_be_written(tmp_path):
    """Simulated: torch's own files fall under a limit, too, and it ends the process."""
    in_new_process(serve_on_failing_disks, grid("simulated", tmp_path, seeds=3), tmp_path / "out")


@pytest.fixture
def kernel(monkeypatch):
    """Yield a client of a Jupyter kernel of this Python."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    manager, client = start_new_kernel(kernel_name="python3")
    client.kernel_info(reply=True, timeout=100)  # behind it no answer comes to what was asked during the start
    client.interrupt = manager.interrupt_kernel
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_an_interrupted_notebook_goes_on(engine, kernel, tmp_path):
    file, out, before = grid(engine, tmp_path, seeds=20 if engine == "simulated" else 10), tmp_path / "out", {}
    cell = "from driftsched_lib.experiments import grid, params\n"
    cell += f"grid.run_grid(params.Params.load({str(file)!r}), {str(out)!r})"
    for more in (1, 2):
        message = kernel.execute(cell, stop_on_error=False)  # or what is sent soon after its error is not run
        while manifests(out) < len(before) + more:
            assert not kernel.shell_channel.msg_ready(), "it ended by itself"
            time.sleep(0.01)
        kernel.interrupt()
        reply = kernel.get_shell_msg(timeout=100)
        assert reply["parent_header"]["msg_id"] == message
        assert (reply["content"]["status"], reply["content"]["ename"]) == ("error", "KeyboardInterrupt")
        assert reply["content"]["evalue"] == f"finished runs are kept in {out}: run the same again to go on"
        before = finished(out, before)
        assert len(before) < len(Params.load(file).runs())
    kernel.execute(cell)
    assert kernel.get_shell_msg(timeout=600)["content"]["status"] == "ok"
    finished(out, before)
    assert complete(file, out)
