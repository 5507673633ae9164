"""The same parameters give the same results: to the byte in another process, to six decimals on another machine."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile

import pandas as pd
import pytest
import yaml
from simulation import PAPER_L4, contents

from driftsched_lib.errors import DriftSchedError
from driftsched_lib.experiments import results
from driftsched_lib.experiments.grid import run_grid
from driftsched_lib.experiments.params import Params
from driftsched_lib.policies import POLICIES
from driftsched_lib.validation import PROJECT

GRID = {
    "scheduler.policies": list(POLICIES),
    "scheduler.estimators": ["quantiles"],
    "scheduler.batching": ["continuous"],
    "workload.output_length": "spread",
    "requests": 60,
    "seeds": [1],
    "workload.zipf": 1.0,
    "workload.queue_timeout_s": 20.0,
}
COMMAND = [sys.executable, "-m", "driftsched_lib", "run"]
DIGESTS = PROJECT / "tests" / "determinism.json"


def digest(table):
    """Of a table's values, not of its file: numbers to six significant digits, whatever their type."""
    lines = [
        "|".join(f"{value:.6g}" if isinstance(value, float) else str(value) for value in row)
        for row in table.astype(object).itertuples(index=False, name=None)
    ]
    return hashlib.sha256("\n".join(["|".join(table.columns), *lines]).encode()).hexdigest()[:16]


@pytest.fixture(scope="module")
def outs(tmp_path_factory):
    """Results folders of two processes at a time, each with a hash seed of its own."""
    folder = tmp_path_factory.mktemp("determinism")
    (folder / "grid.yaml").write_text(yaml.safe_dump(Params.load(PAPER_L4, GRID).model_dump(), sort_keys=False))
    processes = [
        subprocess.Popen(
            [*COMMAND, str(folder / "grid.yaml"), "--out", str(folder / seed), "--jobs", "1"],
            env=os.environ | {"PYTHONHASHSEED": seed},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        for seed in ("0", "1234")
    ]
    for process in processes:
        _, said = process.communicate()
        assert process.returncode == 0, said.decode()
    return folder / "0", folder / "1234"


def digests(out):
    return {
        f"{run.manifest['run']['policy']}/{table}": digest(run.table(table))
        for run in sorted(results.runs(out), key=lambda run: run.name)
        for table in ("requests", "queue_depth")
    }


def test_hash_seeds_and_processes_change_no_byte(outs):
    """Sets and dictionaries of strings are where a hash seed would show."""
    one, other = map(contents, outs)
    assert len(one) > 3 * len(POLICIES) and one == other


def test_another_machine_gets_the_values_that_are_committed(outs):
    """A change that is meant is written down with `python tests/test_determinism.py`, and its reason in the commit."""
    assert digests(outs[0]) == json.loads(DIGESTS.read_text())


def test_parameters_in_an_order_that_draws_another_load_are_others(tmp_path):
    params = Params.load(PAPER_L4, GRID | {"scheduler.policies": ["fifo"], "requests": 5})
    run_grid(params, tmp_path, jobs=1)
    tenants = dict(reversed(params.workload.tenants.items()))
    turned = params.model_copy(update={"workload": params.workload.model_copy(update={"tenants": tenants})})
    with pytest.raises(DriftSchedError, match="holds runs with another workload.tenants"):
        run_grid(turned, tmp_path, jobs=1)


def test_a_digest_sees_one_value_that_differs():
    table = pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]})
    assert digest(table) == digest(table.copy())
    assert digest(table) != digest(table.assign(a=[1.0, 2.00001]))
    assert digest(table) != digest(table.rename(columns={"a": "c"}))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as out:
        run_grid(Params.load(PAPER_L4, GRID), out, jobs=1)
        DIGESTS.write_text(json.dumps(digests(out), indent=2) + "\n")
