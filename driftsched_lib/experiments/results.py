"""A results folder: one folder a run, written whole or not at all, and everything downstream reads only that."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

import pandas as pd

from driftsched_lib.errors import DriftSchedError
from driftsched_lib.requests import Record
from driftsched_lib.validation import PARTIAL, in_one_move

SPEED = "engine_speed.json"


@dataclass(frozen=True)
class EngineSpeed:
    """What an engine can do, measured before the first run and kept with the results.

    Attributes:
        capacity_tokens_per_s: output tokens a second with every slot taken; what load factors refer to.
        idle_ttft_s: time to first token of a request alone on the engine; what slowdowns refer to.
        idle_tpot_s: time per output token after the first, alone on the engine.
    """

    capacity_tokens_per_s: float
    idle_ttft_s: float
    idle_tpot_s: float


def requests_table(records: Sequence[Record]) -> pd.DataFrame:
    """A row a record."""
    columns = [field.name for field in fields(Record)]
    return pd.DataFrame(map(attrgetter(*columns), records), columns=columns).convert_dtypes()


def write_run(folder: Path, tables: Mapping[str, pd.DataFrame], manifest: Mapping[str, Any]) -> None:
    """Write a run's folder in one move: what lies there under its final name is whole.

    Numbers are kept to six decimals, so times to the microsecond.

    Parameters:
        tables: by file name without suffix.

    Raises:
        DriftSchedError: it cannot be written, or another's folder lies there; nothing of it is left.
    """
    if folder.is_dir() and any(path.is_dir() for path in folder.iterdir()):
        raise DriftSchedError(f"{folder} holds folders, so it is no run's, and is not replaced: give another place")
    partial = folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with writing(folder):
            partial.mkdir(parents=True)
            for name, table in tables.items():
                table.round(6).to_parquet(partial / f"{name}.parquet", index=False, compression="zstd")
            write_json(partial / "manifest.json", manifest)
            shutil.rmtree(folder, ignore_errors=True)  # what lies there is not finished, or this would not be run
            os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one move."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file in one move; DriftSchedError says why it cannot be written."""
    with writing(path), in_one_move(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a parquet file in one move; DriftSchedError says why it cannot be written."""
    with writing(path), in_one_move(path) as partial:
        table.to_parquet(partial, index=False, compression="zstd")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full disk, or a folder that may not be written, into a DriftSchedError that says what to do."""
    try:
        yield
    except OSError as error:
        raise DriftSchedError(
            f"{path} cannot be written: {error}.  Finished runs are kept: free the disk, or let the folder be written, "
            "and run the same again to go on from there; or give another folder"
        ) from error


def read_table(folder: Path, table: str) -> pd.DataFrame:
    """One table of one finished run; DriftSchedError names a damaged file."""
    path = folder / f"{table}.parquet"
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's own errors are among these
        raise _damaged(path, error, delete=folder) from None


def _damaged(path: Path, error: Exception, delete: Path) -> DriftSchedError:
    return DriftSchedError(f"{path} is damaged ({error}): delete {delete} and run again")


def load_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of one finished run."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(manifest, dict) or not {"run", "started"} <= set(manifest):
            raise ValueError("it is no manifest")
    except (OSError, ValueError) as error:
        raise _damaged(path, error, delete=folder) from None
    return manifest


def is_complete(folder: Path) -> bool:
    """Whether the run of this folder is finished."""
    return (folder / "manifest.json").exists()


def run_folders(out: str | Path) -> list[Path]:
    """The folders of the finished runs, in the order in which they were served.

    Raises:
        DriftSchedError: there is none.
    """
    folders = [path.parent for path in Path(out).glob("*/manifest.json") if path.parent.suffix != PARTIAL]
    if not folders:
        raise DriftSchedError(f"{out} holds no finished run; `python -m driftsched_lib run PARAMS.yaml --out {out}`")
    return sorted(folders, key=lambda folder: load_manifest(folder)["started"])


def load(out: str | Path, table: str = "requests") -> pd.DataFrame:
    """One table of all finished runs, a row a row, behind the columns that say which run it is of."""
    frames = []
    for folder in run_folders(out):
        frames.append(read_table(folder, table).assign(run=folder.name, **load_manifest(folder)["run"]))
    return pd.concat(frames, ignore_index=True)


def load_speed(out: str | Path) -> EngineSpeed:
    """What was measured of the engine before the first run."""
    path = Path(out) / SPEED
    try:
        return EngineSpeed(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(path, error, delete=path) from None
