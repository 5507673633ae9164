"""A user's own policy and estimator, written beside the notebook, run wherever the built-in ones do."""

import os
import subprocess
import sys
from operator import index
from textwrap import dedent

import pandas as pd
import pytest
from simulation import contents

from driftsched_lib import Params, results
from driftsched_lib.errors import ParamsError
from driftsched_lib.experiments.grid import finish_all, run_grid
from driftsched_lib.validation import PROJECT

SMOKE = PROJECT / "params" / "smoke-l4.yaml"
MODULE = """
    from driftsched_lib.estimators import PaperEstimator
    from driftsched_lib.policies import KeyedQueue


    class LongestFirst(KeyedQueue):
        def __init__(self, sign: float = -1.0, note: str = ""):
            super().__init__()
            self.sign = sign

        def key(self, request):
            return self.sign * request.estimate.total_tokens


    class Doubled(PaperEstimator):
        def estimate(self, request):
            estimate = super().estimate(request)
            estimate.output_tokens *= 2
            return estimate
"""
FEW = {"scheduler.batching": ["continuous"], "scheduler.calibration": [True], "scheduler.token_counter": ["tokenizer"]}
FEW |= {"scheduler.estimators": ["paper"], "seeds": [1], "requests": 200}


def printed(*arguments):
    """What Python writes, run where the user works."""
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": "/tmp"}  # sockets need a short path
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """A folder with the user's file, where the user works."""
    (tmp_path / "my_module.py").write_text(dedent(MODULE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("my_module", None)


def test_by_name_in_worker_processes_that_were_there_before_the_file(beside, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", sys.path[1:])
        assert sum(finish_all(index, [(1,), (2,)], 2)) == 3
    policies = ["sjf", "my_module:LongestFirst", {"my_module:LongestFirst": {"sign": 1.0}}]
    params = Params.load(SMOKE, FEW | {"scheduler.policies": policies, "scheduler.vary_estimates_for": []})
    summary = run_grid(params, beside / "runs", jobs=2)
    p50 = summary.set_index("policy").p50_e2e_s
    assert list(p50.index) == ["sjf", "my_module:LongestFirst", "my_module:LongestFirst-sign=1.0"]
    assert p50.iloc[0] == p50.iloc[2] < p50.iloc[1]
    assert run_grid(params, beside / "runs", jobs=1).equals(summary)  # taken up again


def test_by_name_on_the_command_line(beside):
    given = FEW | {"scheduler.policies": "[fifo, my_module:LongestFirst]"}
    options = [option for key, value in given.items() for option in ("--set", f"{key}={value}")]
    printed("-m", "driftsched_lib", "run", SMOKE, "--out", "runs", *options)
    assert set(results.load(beside / "runs").policy) == {"fifo", "my_module:LongestFirst"}


RAY = """from driftsched_lib.experiments import grid, params
grid.run_grid(params.Params.load("here/params.yaml"), "ray", jobs=2, backend="ray")
"""


def test_ray_gives_the_same_bytes_as_one_process(beside):
    pytest.importorskip("ray")
    policies = ["fifo", "sjf", "my_module:LongestFirst"]
    run_grid(Params.load(SMOKE, FEW | {"scheduler.policies": policies, "requests": 50}), beside / "here", jobs=1)
    printed("-c", RAY)
    assert contents(beside / "ray") == contents(beside / "here")


def test_an_estimator_by_name(beside):
    changes = FEW | {"scheduler.policies": ["sjf"], "scheduler.estimators": ["paper", "my_module:Doubled"]}
    summary = run_grid(Params.load(SMOKE, changes), beside / "runs", jobs=1).set_index("estimator")
    assert summary.mean_error_tokens["my_module:Doubled"] > summary.mean_error_tokens["paper"] + 50


NOTEBOOK = """
    from driftsched_lib import Params, run_grid
    from driftsched_lib.policies import KeyedQueue

    class LongestFirst(KeyedQueue):
        def key(self, request):
            return -request.estimate.total_tokens

    if __name__ == "__main__":
        params = Params.load({smoke!r}, {few!r}).changed(scheduler__policies=["fifo", LongestFirst])
        for _ in range(2):
            print(run_grid(params, "runs", jobs=2)[["policy", "p99_e2e_s"]].to_string())
"""


def test_a_class_of_the_notebook_itself(beside):
    (beside / "cell.py").write_text(dedent(NOTEBOOK).format(smoke=str(SMOKE), few=FEW))
    assert printed("cell.py").count("__main__:LongestFirst") == 2


def test_in_the_explorer(beside):
    from driftsched_lib.explorer import Explorer  # takes seconds to import

    params = Params.load(SMOKE, FEW | {"scheduler.policies": ["fifo", "my_module:LongestFirst"]})
    explorer = Explorer(params, "data/profiles/l4-qwen1.5-1.8b.json", beside / "out")
    explorer.side_controls["B"]["policy"].value = "my_module:LongestFirst"
    assert explorer.message.value == "" and explorer.served["B"].params.scheduler.policies[0].name.endswith("First")


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("my_module:Nothing", "cannot be imported: module 'my_module' has no attribute 'Nothing'"),
        ("no_module:Nothing", "cannot be imported: No module named 'no_module'"),
        ("my_module:KeyedQueue.key", "cannot be imported"),
        ({"my_module:LongestFirst": {"size": 1}}, "unknown key: 'size' is unknown.*Known: sign, note"),
    ],
)
def test_what_is_not_there_and_options_that_would_share_a_folder_are_named(beside, policy, message):
    with pytest.raises(ParamsError, match=r"scheduler\.policies\[0\]: .*" + message):
        Params.load(SMOKE, {"scheduler.policies": [policy]})
    policies = [{"my_module:LongestFirst": {"note": note}} for note in ("a b", "A/b")]
    with pytest.raises(ParamsError, match="policies: .* twice, or two that name one folder: .*note=a b, .*note=A/b"):
        Params.load(SMOKE, {"scheduler.policies": policies})


def test_four_tiers_of_other_names(tmp_path):
    tiers = {
        "gold": {"weight": 8.0, "safety": 1.3, "ttft_slo_s": 1.0, "e2e_slo_s": 10.0},
        "silver": {"weight": 4.0, "ttft_slo_s": 5.0, "e2e_slo_s": 30.0},
        "bronze": {"weight": 2.0, "ttft_slo_s": 20.0, "e2e_slo_s": 90.0},
        "spot": {"weight": 1.0, "safety": 0.7, "ttft_slo_s": 120.0, "e2e_slo_s": 600.0},
    }
    policies = ["fifo", "priority", "weighted", "aging", "edf", "least_slack", "vtc", "drr", "wfq", "express"]
    tenants = {f"tenant-{tier}": tier for tier in tiers}
    changes = {"scheduler.tiers": tiers, "scheduler.policies": policies, "workload.tenants": tenants}
    params = Params.load(SMOKE, FEW | changes)
    assert list(params.tiers) == list(tiers) and Params.parse(params.model_dump(), "again") == params
    run_grid(params, tmp_path / "runs", jobs=1)
    requests = results.load(tmp_path / "runs")
    waits = (requests.dispatch_s - requests.arrival_s).groupby([requests.policy, requests.tier]).mean().unstack()
    assert pd.Series(waits.loc["priority", list(tiers)]).is_monotonic_increasing
    assert list(results.load(tmp_path / "runs", "queue_depth").columns[1:5]) == list(tiers)
    with pytest.raises(ParamsError, match="the tier of tenant-gold, 'gold' is unknown"):
        Params.load(SMOKE, {"workload.tenants": {"tenant-gold": "gold"}})
