"""Results: a folder per run while an experiment grows, one parquet file per study once it is kept.

Everything downstream reads runs through this module and does not see which of the two it is.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import accumulate
from operator import attrgetter
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from driftsched_lib.errors import DriftSchedError, ParamsError
from driftsched_lib.experiments.params import Params
from driftsched_lib.requests import Record
from driftsched_lib.validation import PARTIAL, in_one_move

SPEED, PARAMS = "engine_speed.json", "params.yaml"


@dataclass(frozen=True)
class EngineSpeed:
    """What an engine can do: its capacity with every slot taken, to which load factors refer, and a lone request."""

    capacity_tokens_per_s: float
    idle_ttft_s: float
    idle_tpot_s: float


@dataclass(frozen=True)
class StoredRun:
    """A finished run; `table` returns `requests`, `steps`, `queue_depth` or `telemetry`.

    Its manifest has `run` (its settings), `summary`, parameters, versions, hardware and times.
    """

    name: str
    manifest: dict[str, Any]
    table: Callable[[str], pd.DataFrame] = field(repr=False)

    @property
    def speed(self) -> EngineSpeed:
        """The speed of the engine that served it."""
        return EngineSpeed(**self.manifest["engine_speed"])


def requests_table(records: Sequence[Record]) -> pd.DataFrame:
    """Return one row per record."""
    columns = [field.name for field in fields(Record)]
    return pd.DataFrame(map(attrgetter(*columns), records), columns=columns).convert_dtypes()


def write_run(folder: Path, tables: Mapping[str, pd.DataFrame], manifest: Mapping[str, Any]) -> None:
    """Write a run's folder in one move, with numbers to six decimals; DriftSchedError where it cannot be written."""
    if folder.is_dir() and any(path.is_dir() for path in folder.iterdir()):
        raise DriftSchedError(f"{folder} holds folders, so it is no run's, and is not replaced: give another place")
    with writing(folder), in_one_move(folder) as half:
        shutil.rmtree(half, ignore_errors=True)  # what a killed process left
        half.mkdir(parents=True)
        for name, table in tables.items():
            table.round(6).to_parquet(half / f"{name}.parquet", index=False, compression="zstd")
        (half / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)  # an unfinished run, or this one would not have been served


def write_text(path: Path, text: str) -> None:
    """Write a text file in one move, in a folder that is made; DriftSchedError says why it cannot be written."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with in_one_move(path) as half:
            half.write_text(text, encoding="utf-8")


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Hold a folder, which is made, until its process ends; DriftSchedError if another run is writing there.

    Where there is no such lock, as on Windows and some network disks, two runs are not told apart.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("a")
    with lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DriftSchedError(f"another run is writing to {out}: wait for it, or give another folder") from None
        except (ImportError, OSError):
            pass
        yield


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full disk, or a folder that may not be written, into an error that says what to do."""
    try:
        yield
    except OSError as error:
        mend = "free the disk, or let the folder be written, and run the same again to go on; or give another folder"
        raise DriftSchedError(f"{path} cannot be written: {error}.  Finished runs are kept: {mend}") from error


def is_complete(folder: Path) -> bool:
    """Return whether the run of this folder is finished."""
    return (folder / "manifest.json").exists()


def runs(out: str | Path) -> list[StoredRun]:
    """Return the finished runs as they were served; DriftSchedError if there is none, or something is damaged."""
    out = Path(out)
    if (study := _study(out)) is not None:
        with _damaged(study, delete=study):
            whole = pq.read_table(study)
        rows = enumerate(whole.select(["run", "manifest"]).to_pylist())
        return [StoredRun(row["run"], json.loads(row["manifest"]), partial(_of_study, whole, i)) for i, row in rows]
    folders = [path.parent for path in out.glob("*/manifest.json") if path.parent.suffix != PARTIAL]
    if not folders:
        raise DriftSchedError(f"{out} holds no finished run; `python -m driftsched_lib run PARAMS.yaml --out {out}`")
    return sorted(map(load_run, folders), key=lambda run: run.manifest["started"])


def load_run(folder: str | Path) -> StoredRun:
    """Return one run by its folder, or by its name in a study: `study/run`; ParamsError if it is not there."""
    folder = Path(folder)
    packed = runs(folder.parent) if _study(folder.parent) is not None else []
    if mine := [run for run in packed if run.name == folder.name]:
        return mine[0]
    if not is_complete(folder):
        raise ParamsError(f"{folder}: holds no finished run, it has no manifest.json")
    path = folder / "manifest.json"
    with _damaged(path, delete=folder):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(manifest, dict) or not {"run", "started"} <= set(manifest):
            raise ValueError("it is no manifest")
    return StoredRun(folder.name, manifest, partial(_of_folder, folder))


def load(out: str | Path, table: str = "requests") -> pd.DataFrame:
    """Return one table of all finished runs, behind the columns that say which run a row is of."""
    frames = [run.table(table).assign(run=run.name, **run.manifest["run"]) for run in runs(out)]
    return pd.concat(frames, ignore_index=True)


def load_speed(out: str | Path) -> EngineSpeed:
    """Return what was measured of the engine before the first run."""
    path = Path(out) / SPEED
    if _study(path.parent) is not None:
        return runs(out)[0].speed
    with _damaged(path, delete=path):
        return EngineSpeed(**json.loads(path.read_text(encoding="utf-8")))


def load_params(out: str | Path) -> Params:
    """Return the parameters of a results folder or study."""
    if (study := _study(Path(out))) is None:
        return Params.load(Path(out) / PARAMS)
    return Params.parse(yaml.safe_load(pq.read_schema(study).metadata[PARAMS.encode()]), str(study))


def pack(out: str | Path, study: str | Path) -> None:
    """Write a results folder as one parquet file: one row per run, its tables as nested columns."""
    packed, tables = runs(out), {}
    for name in ("requests", "steps", "queue_depth", "telemetry"):
        paths = [Path(out) / run.name / f"{name}.parquet" for run in packed]
        parts = [pq.read_table(path) if path.exists() else pa.table({}) for path in paths]
        if any(map(len, parts)):
            rows = pa.concat_tables([part for part in parts if len(part)], promote_options="permissive")
            ends = pa.array([0, *accumulate(map(len, parts))], pa.int32())
            tables[name] = pa.ListArray.from_arrays(ends, rows.to_struct_array().combine_chunks())
    columns = {"run": [run.name for run in packed], "manifest": [json.dumps(run.manifest) for run in packed]}
    params = yaml.safe_dump(load_params(out).model_dump(), sort_keys=False)
    table = pa.table(columns | tables).replace_schema_metadata({PARAMS: params})
    with writing(Path(study)), in_one_move(Path(study)) as half:
        pq.write_table(table, half, compression="zstd", compression_level=15)


def _study(out: Path) -> Path | None:
    return next((path for path in (out, out.with_name(out.name + ".parquet")) if path.is_file()), None)


def _of_folder(folder: Path, name: str) -> pd.DataFrame:
    with _damaged(folder / f"{name}.parquet", delete=folder):
        return _as_today(pd.read_parquet(folder / f"{name}.parquet"))


def _of_study(whole: pa.Table, i: int, name: str) -> pd.DataFrame:
    rows = pa.Table.from_struct_array(whole[name][i].values).to_pandas()
    return _as_today(rows.convert_dtypes()) if name == "requests" else rows


def _as_today(rows: pd.DataFrame) -> pd.DataFrame:
    """Return requests whose `first_token_s` is the client's, where a file of older versions has the engine's alone."""
    if "first_token_s" not in rows or "engine_first_token_s" in rows:
        return rows
    made, held = rows.first_token_s, rows.batch_id.notna() & rows.first_token_s.notna()
    return rows.assign(engine_first_token_s=made, first_token_s=made.mask(held, rows.finish_s))


@contextmanager
def _damaged(path: Path, delete: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError) as error:  # pyarrow's own errors are among these
        raise DriftSchedError(f"{path} is damaged ({error}): delete {delete} and run again") from None
