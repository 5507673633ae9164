"""A results folder: one folder a run, written whole or not at all, and everything downstream reads only that."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

import pandas as pd

from driftsched_lib.requests import Record

PARTIAL = ".partial"
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


class ResultsError(RuntimeError):
    """A results folder that cannot be read or must not be written; the message says which and what to do."""


def requests_table(records: Sequence[Record]) -> pd.DataFrame:
    """A row a record."""
    columns = [field.name for field in fields(Record)]
    return pd.DataFrame(map(attrgetter(*columns), records), columns=columns).convert_dtypes()


def write_run(folder: Path, tables: Mapping[str, pd.DataFrame], manifest: Mapping[str, Any]) -> None:
    """Write a run's folder in one move: what lies there under its final name is whole.

    Numbers are kept to six decimals, so times to the microsecond.

    Parameters:
        tables: by file name without suffix.
    """
    partial = folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, table in tables.items():
        table.round(6).to_parquet(partial / f"{name}.parquet", index=False, compression="zstd")
    write_json(partial / "manifest.json", manifest)
    shutil.rmtree(folder, ignore_errors=True)  # what lies there is not finished, or this would not be run
    os.replace(partial, folder)


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one move."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file in one move."""
    partial = path.with_name(path.name + PARTIAL)
    partial.write_text(text)
    os.replace(partial, path)


def read_json(path: Path) -> Any:
    """Read JSON; ResultsError names a damaged file."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ResultsError(f"{path} is damaged ({error}): delete {path.parent} and run again") from None


def load_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of one finished run."""
    return read_json(folder / "manifest.json")


def is_complete(folder: Path) -> bool:
    """Whether the run of this folder is finished."""
    return (folder / "manifest.json").exists()


def run_folders(out: str | Path) -> list[Path]:
    """The folders of the finished runs, in the order in which they were served.

    Raises:
        ResultsError: there is none.
    """
    folders = [path.parent for path in Path(out).glob("*/manifest.json") if path.parent.suffix != PARTIAL]
    if not folders:
        raise ResultsError(f"{out} holds no finished run; `python -m driftsched_lib run PARAMS.yaml --out {out}`")
    return sorted(folders, key=lambda folder: load_manifest(folder)["started"])


def load(out: str | Path, table: str = "requests") -> pd.DataFrame:
    """One table of all finished runs, a row a row, behind the columns that say which run it is of."""
    frames = []
    for folder in run_folders(out):
        frame = pd.read_parquet(folder / f"{table}.parquet")
        frames.append(frame.assign(run=folder.name, **load_manifest(folder)["run"]))
    return pd.concat(frames, ignore_index=True)


def load_speed(out: str | Path) -> EngineSpeed:
    """What was measured of the engine before the first run."""
    return EngineSpeed(**read_json(Path(out) / SPEED))
