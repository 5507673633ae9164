"""The simulator beside reality: real runs served again in virtual time, and how far apart the two are."""

import shutil
from collections.abc import Iterable
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import wilcoxon

from driftsched_lib.engines.fit import iterations, predicted_s
from driftsched_lib.engines.profile import EngineLimits, Profile
from driftsched_lib.engines.simulated import SimulatedEngine
from driftsched_lib.experiments import results
from driftsched_lib.experiments.grid import run_grid
from driftsched_lib.experiments.metrics import busy_s, latencies
from driftsched_lib.experiments.params import Params
from driftsched_lib.experiments.run import serve_run
from driftsched_lib.requests import Request

QUANTITIES = {"e2e_s": "E2E", "ttft_s": "TTFT", "queue_wait_s": "queue wait"}
GOALS = {"E2E mean": 0.03, "E2E P50": 0.03, "E2E P99": 0.05, "TTFT mean": 0.08, "TTFT P99": 0.08, "throughput": 0.015}
"""Relative errors that the simulator is to stay within."""

_PHASE = {
    "name": "mixed",
    "share": 1.0,
    "mix": {"short_qa": 0.25, "summary": 0.25, "technical": 0.25, "report": 0.25},
    "gap_s": [0.005, 0.03],
    "load_factor": 2.0,
}
_AZURE = _PHASE | {"name": "azure", "lengths": "data/traces/azure-conv-2023.json"}
ENGINES: dict[str, dict[str, Any]] = {
    "tiny": {},
    "llama-130m": {
        "model": "data/models/llama-130m-shape",
        "engine_args.load_format": "dummy",
        "engine_args.tokenizer": "data/models/driftsched-tiny",
        "engine_args.max_num_batched_tokens": 512,
        "length_scale": 0.0625,
        "requests": 128,
    },
    "qwen-1.8b": {
        "model": "data/models/qwen1.5-1.8b-shape",
        "engine_args.load_format": "dummy",
        "engine_args.tokenizer": "data/models/driftsched-tiny",
        "engine_args.dtype": "float16",
        "engine_args.gpu_memory_utilization": 0.5,
        "length_scale": 0.25,
        "requests": 160,
        "token_counter": ["tokenizer"],
    },
}
"""Three engines with different cost curves, as changes to params/fidelity.yaml: the embedded model and a Llama of 130
million random weights, for a CPU, and the paper's model with random weights, for a GPU.  Few of the ids that the last
makes are in the tokenizer, so its tokens are counted and not its words."""
_STRETCHES = [
    _AZURE | {"name": "light azure", "load_factor": 0.1, "share": 0.04},
    _AZURE | {"name": "heavy azure", "load_factor": 4.0, "share": 0.05},
    _PHASE | {"name": "light", "load_factor": 0.4, "share": 0.04},
    _PHASE | {"name": "heavy", "load_factor": 4.0, "share": 0.12},
]
FIT = {
    "policies": ["fifo"],
    "batching": ["continuous"],
    "rates": [1.0],
    "seeds": [100],
    "workload.phases": [
        stretch | {"name": f"{stretch['name']} {turn}"} for turn in range(1, 5) for stretch in _STRETCHES
    ],
}
"""The run that a profile is fitted to.  Few and many sequences and short and long prompts take turns, so that neither
stands for the other, nor any of them for a minute in which the machine was slow."""
MEASUREMENTS: dict[str, dict[str, Any]] = {
    "policies": {},
    "rates": {"policies": ["fifo", "sjf"], "batching": ["continuous"], "rates": [0.2, 0.45]},
    "azure": {
        "policies": ["fifo", "sjf"],
        "batching": ["continuous"],
        "rates": [0.1, 2.0],
        "workload.phases": [_AZURE],
    },
}
"""The runs that the fit never sees."""


def measure(params_file: str | Path, out: str | Path, engines: Iterable[str]) -> None:
    """Serve every measurement on real vLLM, and all of it twice, to see reality differ from itself.

    Arrivals are those that the engine's speed before the first run asked for, in all of them.

    Parameters:
        engines: which of `ENGINES`.
    """
    for engine in engines:
        changes = ENGINES[engine]
        base = Params.load(params_file, changes)
        grids = {"fit": FIT | {"requests": 2 * base.requests}, **MEASUREMENTS}
        grids |= {f"{name}-again": MEASUREMENTS[name] for name in MEASUREMENTS}
        for name, difference in grids.items():
            folder = Path(out) / f"{engine}-{name}"
            if name != "fit":
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(Path(out) / f"{engine}-fit" / results.SPEED, folder)
            run_grid(Params.load(params_file, changes | difference), folder)


def replay(folder: str | Path, profile: Profile) -> pd.DataFrame:
    """Serve a real run's load on a simulated engine.

    Requests, arrivals, policy, batching and limits are the run's, prompts and outputs are as long as the engine said
    they were; what an iteration costs is the profile's.

    Returns:
        A row a request, as in `requests.parquet`.
    """
    finished = results.load_manifest(Path(folder))["finished"]
    return _replayed(Path(folder), finished, profile.model_dump_json()).copy()


@lru_cache(maxsize=256)
def _replayed(folder: Path, finished: str, profile_json: str) -> pd.DataFrame:
    """Remembered, for a notebook asks for each run several times; `finished` tells two runs of a folder apart."""
    manifest, profile = results.load_manifest(folder), Profile.model_validate_json(profile_json)
    params = Params.parse(manifest["params"], f"{folder}/manifest.json")
    [run] = [run for run in params.runs() if run.name == folder.name]
    limits = EngineLimits(**manifest["engine_limits"])
    real = pd.read_parquet(folder / "requests.parquet").set_index("request_id")
    served = real.loc[real.outcome == "completed", ["prompt_tokens", "output_tokens"]].astype(int)
    known = dict(zip(served.index, served.itertuples(index=False, name=None), strict=True))
    too_long = (limits.max_model_len, 1)

    def lengths(request: Request) -> tuple[int, int]:
        return known.get(request.request_id, too_long)  # what reality refused is refused again

    engine = SimulatedEngine(profile.model_copy(update={"limits": limits}), lengths)
    speed = results.EngineSpeed(**manifest["engine_speed"])
    return serve_run(params, run, engine, speed)[0]["requests"]


def slowness(folder: str | Path, profile: Profile) -> float:
    """Seconds that a run's iterations took, over those that the profile gives the same iterations: how slow the machine
    was in that run against the one that the profile was fitted to."""
    steps, requests = (pd.read_parquet(Path(folder) / f"{table}.parquet") for table in ("steps", "requests"))
    held = iterations(steps, requests, profile.launch_bound)
    return float(held.seconds.sum() / predicted_s(held, profile.step).sum())


def measures(requests: pd.DataFrame) -> pd.Series:
    """Throughput (output tokens a second), and mean, P50 and P99 of each of `QUANTITIES` (s)."""
    done = latencies(requests, 1.0, 1.0)
    values = {"throughput": done.output_tokens.sum() / busy_s(done)}
    for column, name in QUANTITIES.items():
        values[f"{name} mean"] = done[column].mean()
        values[f"{name} P50"], values[f"{name} P99"] = done[column].quantile([0.50, 0.99])
    return pd.Series(values, dtype=float)


def speeds(out: str | Path, engine: str, profile: Profile, last: int = 3) -> pd.DataFrame:
    """How slow the machine was in each run of an engine, and what the runs before it told of that.

    Parameters:
        last: so many runs, the fitted one among them.

    Returns:
        By the run's folder `slowness`, and `expected`, the mean over the runs that were served last before.
    """
    folders = [folder for grid in Path(out).glob(f"{engine}-*") for folder in results.run_folders(grid)]
    folders.sort(key=lambda folder: results.load_manifest(folder)["started"])
    slow = pd.Series([slowness(folder, profile) for folder in folders], folders)
    return pd.DataFrame({"slowness": slow, "expected": slow.rolling(last, min_periods=1).mean().shift(fill_value=1.0)})


def compare(out: str | Path, engine: str, profile: Profile) -> pd.DataFrame:
    """Relative errors of every measured run of an engine, a row a run and source.

    Under `source` stand side by side: `simulated`; `at the last runs' speed` and `at its speed`, the same with the
    profile slowed to what `speeds` expects before the run and to what the machine was in it; and, where the run was
    served a second time, `reality again`.
    """
    rows, slow = [], speeds(out, engine, profile)
    for name in MEASUREMENTS:
        for folder in results.run_folders(Path(out) / f"{engine}-{name}"):
            real = measures(pd.read_parquet(folder / "requests.parquet"))
            others = {
                "simulated": replay(folder, profile),
                "at the last runs' speed": replay(folder, profile.slowed(slow.expected[folder])),
                "at its speed": replay(folder, profile.slowed(slow.slowness[folder])),
            }
            if (again := Path(out) / f"{engine}-{name}-again" / folder.name).exists():
                others["reality again"] = pd.read_parquet(again / "requests.parquet")
            run = results.load_manifest(folder)["run"]
            setting = {"measurement": name} | {key: run[key] for key in ("batching", "policy", "rate")}
            setting |= {"run": folder.name, "slowness": slow.slowness[folder]}
            rows += [
                setting | {"source": source} | (measures(other) / real - 1).to_dict()
                for source, other in others.items()
            ]
    return pd.DataFrame(rows).assign(engine=engine)


def told_apart(errors: pd.DataFrame, source: str) -> pd.DataFrame:
    """Whether simulated runs are farther from the real ones than these are from themselves, served a second time.

    Parameters:
        errors: of `compare`, of one engine or more.
        source: which simulation.

    Returns:
        A row an engine and measure of `GOALS`, over the runs that were served again: the median absolute error of the
        simulation and `again`, the share of runs in which the simulation is `nearer`, and `p`: how likely errors as
        large or larger are of a simulation that is as near to reality as reality itself (Wilcoxon's signed-rank test,
        one-sided).
    """
    index = ["engine", "measurement", "run"]
    sides = [errors[errors.source == name].set_index(index) for name in (source, "reality again")]
    rows = {}
    for engine in errors.engine.unique():
        for measure in GOALS:
            both = pd.concat(
                [side.loc[[engine], measure].abs() for side in sides], axis=1, keys=["ours", "again"]
            ).dropna()
            rows[engine, measure] = {
                "median": both.ours.median(),
                "again": both.again.median(),
                "nearer": (both.ours < both.again).mean(),
                "p": wilcoxon(both.ours, both.again, alternative="greater").pvalue,
            }
    return pd.DataFrame(rows).T.rename_axis(["engine", "measure"])


def by_policy(out: str | Path, profile: Profile | None = None) -> pd.DataFrame:
    """`measures` of a folder's runs by batching and policy: as they were, or as a profile has them."""
    rows = {}
    for folder in results.run_folders(out):
        run = results.load_manifest(folder)["run"]
        requests = pd.read_parquet(folder / "requests.parquet") if profile is None else replay(folder, profile)
        rows[run["batching"], run["policy"]] = measures(requests)
    return pd.DataFrame(rows).T.rename_axis(["batching", "policy"])


def order_kept(real: pd.Series, again: pd.Series, simulated: pd.Series) -> dict[str, Any]:
    """Whether pairs of policies that reality orders alike twice are in that order in the simulation too.

    Parameters:
        real, again, simulated: one measure by policy.

    Returns:
        The number of `pairs`, of those that both real runs order alike, and of those that are simulated in that order;
        which of the repeated were simulated the other way round, the better one in reality first.
    """
    pairs = list(combinations(real.index, 2))
    repeated = [
        (a, b) if real[a] < real[b] else (b, a) for a, b in pairs if (real[a] < real[b]) == (again[a] < again[b])
    ]
    turned = [f"{a} before {b}" for a, b in repeated if simulated[a] >= simulated[b]]
    kept = len(repeated) - len(turned)
    return {"pairs": len(pairs), "repeat": len(repeated), "simulated alike": kept, "turned": ", ".join(turned)}


def request_by_request(out: str | Path, profile: Profile) -> pd.DataFrame:
    """Real and simulated E2E of every request that completed, with the setting of its run."""
    frames = []
    for folder in results.run_folders(out):
        sides = (pd.read_parquet(folder / "requests.parquet"), replay(folder, profile))
        real, simulated = (latencies(side, 1.0, 1.0).set_index("request_id").e2e_s for side in sides)
        run = results.load_manifest(folder)["run"]
        frames.append(pd.DataFrame({"real_s": real, "simulated_s": simulated}).assign(**run))
    return pd.concat(frames, ignore_index=True)
