"""The same parameters give the same results: to the byte in another process, to six decimals on another machine."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from itertools import product

import pytest
import yaml
from simulation import PAPER_L4, contents

from driftsched_lib import Params, results, run_grid
from driftsched_lib.errors import DriftSchedError
from driftsched_lib.policies import POLICIES
from driftsched_lib.validation import PROJECT

SCHEDULER = {"policies": list(POLICIES), "estimators": ["quantiles"], "batching": ["continuous"]}
GRID = {"workload.output_length": "spread", "workload.zipf": 1.0, "workload.queue_timeout_s": 20.0}
GRID |= {"requests": 60, "seeds": [1], **{f"scheduler.{name}": value for name, value in SCHEDULER.items()}}
DIGESTS = PROJECT / "tests" / "determinism.json"


def digest(table):
    """Return the hash of a table's values, not of its file: numbers to six significant digits, whatever their type."""
    rows = table.astype(object).itertuples(index=False, name=None)
    lines = ("|".join(f"{value:.6g}" if isinstance(value, float) else str(value) for value in row) for row in rows)
    return hashlib.sha256("\n".join(["|".join(table.columns), *lines]).encode()).hexdigest()[:16]


@pytest.fixture(scope="module")
def outs(tmp_path_factory):
    """Return the results folders of two processes at a time, each with a hash seed of its own."""
    folder, seeds = tmp_path_factory.mktemp("determinism"), ("0", "1234")
    (folder / "grid.yaml").write_text(yaml.safe_dump(Params.load(PAPER_L4, GRID).model_dump(), sort_keys=False))
    command = [sys.executable, "-m", "driftsched_lib", "run", str(folder / "grid.yaml"), "--jobs", "1", "--out"]
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    processes = [
        subprocess.Popen([*command, str(folder / seed)], env=os.environ | {"PYTHONHASHSEED": seed}, **pipes)
        for seed in seeds
    ]
    for process in processes:
        _, said = process.communicate()
        assert process.returncode == 0, said.decode()
    return [folder / seed for seed in seeds]


def digests(out):
    runs = sorted(results.runs(out), key=lambda run: run.name)
    tables = product(runs, ("requests", "queue_depth"))
    return {f"{run.manifest['run']['policy']}/{table}": digest(run.table(table)) for run, table in tables}


def test_hash_seeds_and_processes_change_no_byte(outs):
    one, other = map(contents, outs)
    assert len(one) > 3 * len(POLICIES) and one == other


def test_another_machine_gets_the_values_that_are_committed(outs):
    """`python tests/test_determinism.py` writes down a change that is meant."""
    assert digests(outs[0]) == json.loads(DIGESTS.read_text())


def test_parameters_in_an_order_that_draws_another_load_are_others(tmp_path):
    params = Params.load(PAPER_L4, GRID | {"scheduler.policies": ["fifo"], "requests": 5})
    run_grid(params, tmp_path, jobs=1)
    turned = dict(reversed(params.workload.tenants.items()))
    with pytest.raises(DriftSchedError, match="holds runs with another workload.tenants"):
        run_grid(params.changed(workload__tenants=turned), tmp_path, jobs=1)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as out:
        run_grid(Params.load(PAPER_L4, GRID), out, jobs=1)
        DIGESTS.write_text(json.dumps(digests(out), indent=2) + "\n")
