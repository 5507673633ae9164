"""The simulator beside reality: a real run served again in virtual time, and how far apart the two are."""

from pathlib import Path

import pandas as pd

from driftsched_lib import results
from driftsched_lib.engines.simulated import SimulatedEngine
from driftsched_lib.experiment import serve_run
from driftsched_lib.metrics import busy_s, latencies
from driftsched_lib.params import Params
from driftsched_lib.profiles import EngineLimits, Profile

QUANTITIES = {"e2e_s": "E2E", "ttft_s": "TTFT", "queue_wait_s": "queue wait"}


def replay(folder: str | Path, profile: Profile) -> pd.DataFrame:
    """Serve a real run's load on a simulated engine: the same requests, arrivals, policy, batching and limits, and the
    prompt and output lengths that the engine reported; only the time of an iteration is the profile's.

    Returns:
        A row a request, as in `requests.parquet`.
    """
    folder = Path(folder)
    manifest = results.load_manifest(folder)
    params = Params.parse(manifest["params"], f"{folder}/manifest.json")
    [run] = [run for run in params.runs() if run.name == folder.name]
    real = pd.read_parquet(folder / "requests.parquet").set_index("request_id")
    lengths = real[["prompt_tokens", "output_tokens"]].dropna().astype(int)
    known = dict(zip(lengths.index, lengths.itertuples(index=False, name=None), strict=True))
    limits = EngineLimits(**manifest["engine_limits"])
    refused = (limits.max_model_len, 1)  # what reality refused is refused again

    engine = SimulatedEngine(
        profile.model_copy(update={"limits": limits}), lambda request: known.get(request.request_id, refused)
    )
    speed = results.EngineSpeed(**manifest["engine_speed"])
    tables, _ = serve_run(params, run, engine, speed, lambda record: None)
    return tables["requests"]


def errors(real: pd.DataFrame, simulated: pd.DataFrame) -> pd.Series:
    """Relative errors of the simulated run: mean, P50 and P99 of each of `QUANTITIES`, and throughput.

    Parameters:
        real, simulated: the requests of one run.
    """
    theirs, ours = measures(real), measures(simulated)
    return ours / theirs - 1


def measures(requests: pd.DataFrame) -> pd.Series:
    """Mean, P50 and P99 of each of `QUANTITIES` (s), and output tokens a second."""
    done = latencies(requests, 1.0, 1.0)
    values = {"throughput": done.output_tokens.sum() / busy_s(done)}
    for column, name in QUANTITIES.items():
        values[f"{name} mean"] = done[column].mean()
        values[f"{name} P50"], values[f"{name} P99"] = done[column].quantile([0.50, 0.99])
    return pd.Series(values, dtype=float)
