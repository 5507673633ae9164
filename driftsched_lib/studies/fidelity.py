"""The simulator beside reality: real runs served again in virtual time, and how far apart the two are."""

from collections.abc import Iterable
from itertools import product
from pathlib import Path

import pandas as pd

from driftsched_lib.engines.fit import iterations, predicted_s
from driftsched_lib.engines.profile import EngineLimits, Profile
from driftsched_lib.engines.simulated import SimulatedEngine
from driftsched_lib.experiments import results
from driftsched_lib.experiments.grid import run_grid
from driftsched_lib.experiments.metrics import busy_s, latencies
from driftsched_lib.experiments.params import Params
from driftsched_lib.experiments.results import StoredRun
from driftsched_lib.experiments.run import serve_run
from driftsched_lib.validation import read_yaml

ENGINES = ("tiny", "llama-130m", "qwen-1.8b")
MEASUREMENTS = ("policies", "rates", "azure")  # the fit never sees them; params/fidelity/ has a file for each
QUANTITIES = {"e2e_s": "E2E", "ttft_s": "TTFT"}
GOALS = {"E2E mean": 0.03, "E2E P50": 0.03, "E2E P99": 0.05, "TTFT mean": 0.08, "TTFT P99": 0.08, "throughput": 0.015}
"""Relative errors that the simulator is to stay within."""


def grid_of(params_file: str | Path, engine: str, grid: str) -> Params:
    """Return a grid's parameters: a file under the files of the engine and the grid in the folder of its name."""
    folder = Path(params_file).with_suffix("")
    params = Params.load(params_file, read_yaml(folder / f"{engine}.yaml") | read_yaml(folder / f"{grid}.yaml"))
    return params.changed(requests=2 * params.requests) if grid == "fit" else params


def measure(params_file: str | Path, out: str | Path, engines: Iterable[str]) -> None:
    """Serve the run to fit and all measurements on real vLLM, these twice, to see reality differ from itself.

    All arrivals follow the speed of the engine before the first run.  Raises ParamsError for an engine without a file.
    """
    pairs = product(engines, ("fit", *MEASUREMENTS, *(f"{name}-again" for name in MEASUREMENTS)))
    grids = {(engine, grid): grid_of(params_file, engine, grid.removesuffix("-again")) for engine, grid in pairs}
    for (engine, grid), params in grids.items():
        folder = Path(out) / f"{engine}-{grid}"
        if grid != "fit":
            results.write_text(folder / results.SPEED, (Path(out) / f"{engine}-fit" / results.SPEED).read_text())
        run_grid(params, folder)


def stored(out: str | Path, engine: str) -> dict[str, StoredRun]:
    """Return an engine's runs by `grid/run`, in a fixed order."""
    paths = sorted(Path(out).glob(f"{engine}-*"))
    grids = {path.name.removesuffix(".parquet").removeprefix(f"{engine}-"): path for path in paths}
    return {f"{grid}/{run.name}": run for grid, path in grids.items() for run in results.runs(path)}


def replay(run: StoredRun, profile: Profile) -> pd.DataFrame:
    """Return a real run's requests as a simulated engine serves them; only what iterations cost is the profile's."""
    params = Params.parse(run.manifest["params"], run.name)
    [mine] = [planned for planned in params.runs() if planned.name == run.name]
    limits = EngineLimits(**run.manifest["engine_limits"])
    real = run.table("requests").query("outcome == 'completed'")
    known = {row.request_id: (int(row.prompt_tokens), int(row.output_tokens)) for row in real.itertuples()}
    refused, own = (limits.max_model_len, 1), profile.model_copy(update={"limits": limits})  # too long again
    engine = SimulatedEngine(own, lambda request: known.get(request.request_id, refused))
    return serve_run(params, mine, engine, run.speed)[0]["requests"]


def slowness(run: StoredRun, profile: Profile) -> float:
    """Return the time of a run's iterations over the profile's time for them: how slow the machine was in that run."""
    held = iterations(run.table("steps"), run.table("requests"), profile.launch_bound)
    return float(held.seconds.sum() / predicted_s(held, profile.step).sum())


def measures(requests: pd.DataFrame) -> pd.Series:
    """Return throughput (output tokens per second), and mean, P50 and P99 of each of `QUANTITIES` (s)."""
    done = latencies(requests, 1.0, 1.0)
    values = {"throughput": done.output_tokens.sum() / busy_s(done)}
    for column, name in QUANTITIES.items():
        values[f"{name} mean"] = done[column].mean()
        values[f"{name} P50"], values[f"{name} P99"] = done[column].quantile([0.50, 0.99])
    return pd.Series(values, dtype=float)


def compare(out: str | Path, engine: str, profile: Profile) -> pd.DataFrame:
    """Return `measures` of every measured run of an engine, one row per run and `source`, `real` first.

    The other sources are `simulated`; `at its speed`, with the profile slowed by the run's `slowness`; and, where the
    run was served a second time, `real again`.
    """
    rows, runs = [], stored(out, engine)
    for key, run in runs.items():
        name = key.partition("/")[0]
        if name in MEASUREMENTS:
            again, slow = runs.get(f"{name}-again/{run.name}"), slowness(run, profile)
            sides = {"real": run.table("requests"), "simulated": replay(run, profile)}
            sides["at its speed"] = replay(run, profile.slowed(slow))
            sides |= {} if again is None else {"real again": again.table("requests")}
            setting = {column: run.manifest["run"][column] for column in ("batching", "policy", "rate")}
            setting |= {"engine": engine, "measurement": name, "run": run.name, "slowness": slow}
            rows += [setting | {"source": source, **measures(requests)} for source, requests in sides.items()]
    return pd.DataFrame(rows)


def by_policy(out: str | Path) -> pd.DataFrame:
    """Return `measures` of one grid's real runs by batching and policy."""
    rows = {
        (run.manifest["run"]["batching"], run.manifest["run"]["policy"]): measures(run.table("requests"))
        for run in results.runs(out)
    }
    return pd.DataFrame(rows).T.rename_axis(["batching", "policy"])
