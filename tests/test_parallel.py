"""Tasks are done once each, whichever workers do them, and done again where a worker died."""

import os
import subprocess
import sys
from collections import Counter

import pytest
import yaml
from simulation import PAPER_L4, SMALL, contents

from driftsched_lib.errors import DriftSchedError
from driftsched_lib.experiments.grid import run_grid
from driftsched_lib.experiments.parallel import MAX_DEATHS, finish_all
from driftsched_lib.experiments.params import Params


def double(number):
    return 2 * number


def die_once(number, marks):
    """The first time that it is asked for 3, the worker's process ends."""
    if number == 3 and not (marks / "died").exists():
        (marks / "died").touch()
        os._exit(1)
    return number


def die(number):
    os._exit(1)


def fail(number):
    raise KeyError(number)


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_task_is_done_once(jobs):
    assert sorted(finish_all(double, [(i,) for i in range(20)], jobs)) == [2 * i for i in range(20)]
    assert list(finish_all(double, [], jobs)) == []


def test_what_a_dead_worker_had_is_done_again(tmp_path):
    assert sorted(finish_all(die_once, [(i, tmp_path) for i in range(10)], 2)) == list(range(10))
    assert (tmp_path / "died").exists()


def test_workers_that_only_die_are_no_loop():
    with pytest.raises(DriftSchedError, match=f"workers died {MAX_DEATHS} times in a row and nothing got done"):
        list(finish_all(die, [(1,), (2,)], 2))


def test_what_a_task_raises_is_raised():
    with pytest.raises(KeyError):
        list(finish_all(fail, [(1,)], 2))


def test_ray_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DriftSchedError, match="backend: Ray is not installed"):
        list(finish_all(double, [(1,)], 1, "ray"))


CLUSTER = """
import sys
import threading
import time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from driftsched_lib.experiments import grid as experiment
from driftsched_lib.experiments.grid import run_grid
from driftsched_lib.experiments.params import Params

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
second = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False)
cluster.wait_for_nodes()
assert ray.cluster_resources()["CPU"] == 2
starts, simulate = Path(sys.argv[3]), experiment._simulate
head = ray.get_runtime_context().get_node_id()

def the_other_node_works():
    return any(start.read_text() not in ("", head) for start in starts.iterdir())

def slow(params, run, *task):
    start = starts / f"{run.name}--{time.time_ns()}"
    start.write_text(ray.get_runtime_context().get_node_id())
    while not the_other_node_works():  # or the head might do all there is to do
        time.sleep(0.1)
    time.sleep(0.5)
    return simulate(params, run, *task)

def kill_the_node_that_works():
    while not the_other_node_works():
        time.sleep(0.02)
    cluster.remove_node(second, allow_graceful=False)

experiment._simulate = slow
killer = threading.Thread(target=kill_the_node_that_works, daemon=True)
killer.start()
params = Params.load(sys.argv[1])
run_grid(params, Path(sys.argv[2]), backend="ray")
killer.join()
"""


def test_a_ray_cluster_that_loses_a_node_gives_the_same_bytes(tmp_path):
    pytest.importorskip("ray")
    few = SMALL | {"calibration": [True], "token_counter": ["tokenizer"]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(Params.load(PAPER_L4, few).model_dump()))
    environment = os.environ | {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": "/tmp",  # sockets need a short path
        "RAY_health_check_initial_delay_ms": "1000",  # or it takes half a minute to see that a node is gone
        "RAY_health_check_period_ms": "1000",
    }
    (tmp_path / "starts").mkdir()
    script = [sys.executable, "-c", CLUSTER, tmp_path / "params.yaml", tmp_path / "ray", tmp_path / "starts"]
    outcome = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=300)
    assert outcome.returncode == 0, outcome.stderr
    params = Params.load(tmp_path / "params.yaml")
    started = Counter(start.name.partition("--")[0] for start in (tmp_path / "starts").iterdir())
    assert set(started) == {run.name for run in params.runs()} and max(started.values()) > 1  # one was done again
    run_grid(params, tmp_path / "here", jobs=1)
    assert contents(tmp_path / "ray") == contents(tmp_path / "here")
