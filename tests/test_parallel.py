"""Tasks are done once each, whichever workers do them."""

import os
import subprocess
import sys
from textwrap import dedent

import pytest
import yaml
from simulation import PAPER_L4, SMALL, contents
from test_own_classes import MODULE

from driftsched_lib.errors import DriftSchedError, RunError
from driftsched_lib.experiments.grid import finish_all
from driftsched_lib.validation import overlaid


def double(number):
    return 2 * number


def fail(number):
    raise KeyError(number)


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_task_is_done_once(jobs):
    assert sorted(finish_all(double, [(i,) for i in range(20)], jobs)) == [2 * i for i in range(20)]
    assert list(finish_all(double, [], jobs)) == []


def test_a_dead_worker_what_a_task_raises_and_a_missing_ray_are_told(monkeypatch):
    with pytest.raises(RunError, match="a worker died.*Run the same again to go on"):
        list(finish_all(os._exit, [(1,), (2,)], 2))
    with pytest.raises(KeyError):
        list(finish_all(fail, [(1,)], 2))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DriftSchedError, match="backend: Ray is not installed"):
        list(finish_all(double, [(1,)], 1, "ray"))


RAY = """import sys
from driftsched_lib.experiments import grid, params
grid.run_grid(params.Params.load(sys.argv[1]), sys.argv[2], jobs=2, backend="ray")
"""


def test_ray_gives_the_same_bytes_and_knows_a_users_policy(tmp_path):
    pytest.importorskip("ray")
    (tmp_path / "my_module.py").write_text(dedent(MODULE))
    few = SMALL | {"scheduler.calibration": [True], "scheduler.policies": ["fifo", "my_module:LongestFirst"]}
    params = yaml.safe_load(PAPER_L4.read_text())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(overlaid(params, few, "test")))
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": "/tmp"}  # sockets need a short path
    for script, out in ((RAY, "ray"), (RAY.replace(', backend="ray"', ""), "here")):
        command = [sys.executable, "-c", script, "params.yaml", out]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "ray") == contents(tmp_path / "here")
