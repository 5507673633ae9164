"""Request traces, read in chunks: memory does not grow with their length.

The formats, whose columns are in `FORMATS`, are Azure LLM inference traces (CSV), BurstGPT (CSV), Mooncake (JSON lines,
in milliseconds), `vllm bench serve --save-result --save-detailed` (JSON, held in memory), a specification of `clients`
like ServeGen's (YAML), and any CSV or Parquet, whose names `columns` gives.  Failed requests have an output of 0.  The
header of a CSV is its line 1; empty lines and line breaks inside quotes do not count.
"""

import heapq
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from driftsched_lib.errors import ParamsError
from driftsched_lib.estimators.base import MAX_TOKENS
from driftsched_lib.requests import CATEGORIES, TIERS, Category
from driftsched_lib.validation import Name, NotNegative, Positive, Validated, choice

GapVariation = Annotated[float, Field(ge=0.01, le=100)]
FIELDS = ("arrival", "prompt_tokens", "output_tokens", "tenant", "tier", "category")
CHUNK = 20_000  # rows that are held in memory at once
MAX_S = 1e12  # 30,000 years: results keep microseconds, which doubles do not hold far beyond
MAX_SHOWN = 5  # faults that are kept to be shown


@dataclass
class Faults:
    """The bad rows that were left out: how many, and the place and fault of the first of them."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        more = self.count - len(self.first)
        rows = "1 bad row was" if self.count == 1 else f"{self.count:,} bad rows were"
        return "\n  ".join([f"{rows} left out", *self.first, *([f"and {more:,} more"] if more else [])])


class LengthSpec(Validated):
    """Lognormal lengths: their median (tokens) and the standard deviation of their logarithm."""

    median: Positive
    log_sd: NotNegative = 1.0

    def draw(self, rng: np.random.Generator) -> int:
        log_length = math.log(self.median) + self.log_sd * rng.standard_normal()
        return max(1, round(math.exp(min(log_length, math.log(MAX_TOKENS)))))


class Client(Validated):
    """A client with a mean rate, and gamma gaps of coefficient of variation `arrival_cv`."""

    tenant: Annotated[str, Field(min_length=1)]
    tier: Name | Literal[""] = ""
    category: Category | Literal[""] = ""
    rate_per_s: Positive
    arrival_cv: GapVariation = 1.0
    prompt_tokens: LengthSpec
    output_tokens: LengthSpec

    def requests(self, rng: np.random.Generator, duration_s: float) -> Iterator[tuple]:
        """Yield the client's requests, as `FIELDS`."""
        variance, now = self.arrival_cv**2, 0.0
        while (now := now + rng.gamma(1 / variance, variance) / self.rate_per_s) < duration_s:
            yield now, self.prompt_tokens.draw(rng), self.output_tokens.draw(rng), self.tenant, self.tier, self.category


class ClientSpec(Validated):
    """The content of a `clients` file."""

    seed: Annotated[int, Field(ge=0)] = 0
    duration_s: Positive
    clients: Annotated[list[Client], Field(min_length=1)]


def read_trace(
    path: str | Path,
    format: str,
    columns: Mapping[str, str] | None = None,
    on_bad_row: Literal["skip", "refuse"] = "refuse",
    faults: Faults | None = None,
    tiers: Iterable[str] = TIERS,
) -> Iterator[pd.DataFrame]:
    """Yield the good rows of a trace, in its order, in chunks.

    Columns: `arrival_s` (seconds since the first row), `prompt_tokens`, `output_tokens`, and `tenant`, `tier` and
    `category`, which are "" where the trace does not name them.

    Parameters:
        columns: of a `csv` or `parquet`, by `FIELDS`, where the names differ; the last three may be missing.
        on_bad_row: leave out a row with an impossible length, a time that is none or out of order, or an unknown tier
            or category; or end with an error after the rows above it.
        faults: collects what is left out, chunk by chunk.

    Raises ParamsError if the file cannot be read in this format, lacks a column, or has a bad row that is refused.
    """
    path, faults = Path(path), Faults() if faults is None else faults
    if format not in FORMATS:
        raise ParamsError(f"{path}: format: {choice(format, FORMATS)}")
    reader, place, own_names = FORMATS[format]
    if columns and format not in ("csv", "parquet"):
        raise ParamsError(f"{path}: columns: the format {format} has its own")
    if unknown := set(columns or {}) - set(FIELDS):
        raise ParamsError(f"{path}: columns: {choice(min(unknown), FIELDS)}")
    names, begin_s = dict(zip(FIELDS, own_names, strict=False)) | dict(columns or {}), None
    try:
        for chunk in _in_order(_checked(raw, names, list(tiers)) for raw in reader(path, list(names.values()))):
            bad = (chunk.fault != "").to_numpy()
            refused = bad.any() and on_bad_row == "refuse"
            found = [f"{place} {number}: {fault}" for number, fault in chunk.fault[bad].items()]
            faults.first += found[: MAX_SHOWN - len(faults.first)]
            faults.count += len(found)
            rows = chunk[: bad.argmax()] if refused else chunk[~bad]
            if len(rows):
                begin_s = rows.arrival_s.iloc[0] if begin_s is None else begin_s
                rows = rows.assign(arrival_s=rows.arrival_s - begin_s).drop(columns="fault")
                yield rows.astype({"prompt_tokens": int, "output_tokens": int})
            if refused:
                raise ParamsError(f"{path}: {faults.first[0]} (on_bad_row: skip leaves such rows out)")
    except ParamsError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ParamsError(f"{path}: cannot be read as {format}: {error}") from None


def _checked(raw: pd.DataFrame, names: Mapping[str, str], tiers: list[str]) -> pd.DataFrame:
    """Return a chunk as `read_trace` yields it, with a column `fault`: what is wrong with a row, or ""."""
    if missing := [names[name] for name in FIELDS[:3] if names[name] not in raw]:
        raise ValueError(f"lacks the column {', '.join(missing)}")
    raw = pd.DataFrame({name: raw.get(names.get(name), "") for name in FIELDS}, index=raw.index)
    rows = raw[[*FIELDS[:3]]].apply(lambda column: pd.to_numeric(column.astype(str), errors="coerce")).astype(float)
    rows["arrival"] = rows.arrival.fillna(raw.arrival[rows.arrival.isna()].map(_seconds).astype(float))
    rows = rows.join(raw[[*FIELDS[3:]]].fillna("").astype(str)).assign(fault="")
    checks = {"arrival": (rows.arrival.abs() < MAX_S, "no time")}
    for name in ("prompt_tokens", "output_tokens"):
        whole = rows[name].between(1, MAX_TOKENS) & (rows[name] % 1 == 0)
        checks[name] = whole, f"no whole number from 1 to {MAX_TOKENS:,}"
    for name, known in (("tier", tiers), ("category", CATEGORIES)):
        checks[name] = rows[name].isin(["", *known]), f"it may be {', '.join(known)}"
    for name, (good, allowed) in checks.items():
        wrong = ~good & (rows.fault == "")
        rows.loc[wrong, "fault"] = [f"{name} is {value!r}, {allowed}" for value in raw[name][wrong]]
    return rows.rename(columns={"arrival": "arrival_s"})


def _in_order(chunks: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """Yield the rows, with a fault for each good one that is out of order.

    A row is held back until the next is not before it.  If the next two are before it, it is the bad row, not they.
    """
    last_s, held_rows = -math.inf, None
    for chunk in chain(chunks, [pd.DataFrame({"arrival_s": [math.inf], "fault": [""]})]):
        rows, held, wrong = pd.concat([held_rows, chunk]), [], []
        for number, time_s in rows.arrival_s[rows.fault == ""].items():
            held.append((time_s, number))
            if time_s < last_s:
                wrong.append(held.pop()[1])
            elif len(held) == 3:  # the second is before the first
                wrong.append(held.pop(1 if time_s >= held[0][0] else 0)[1])
            if len(held) == 2 and held[0][0] <= held[1][0]:
                last_s, _ = held.pop(0)
        rows.loc[wrong, "fault"] = "arrival is out of order"
        is_held = rows.index.isin([number for _, number in held])
        held_rows = rows[is_held]
        yield rows[~is_held]


def _seconds(date: Any) -> float:
    """Return a date (ISO 8601) in seconds; without a zone it is in UTC, where no hour comes twice."""
    try:
        moment = datetime.fromisoformat(str(date))
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return math.nan


def _read_csv(path: Path, columns: list[str]) -> Iterator[pd.DataFrame]:
    wanted = {"usecols": columns.__contains__, "index_col": False, "dtype": object, "na_filter": False}
    for chunk in pd.read_csv(path, chunksize=CHUNK, encoding="utf-8-sig", compression=None, **wanted):
        yield chunk.set_axis(chunk.index + 2)


def _read_parquet(path: Path, columns: list[str]) -> Iterator[pd.DataFrame]:
    number = 1
    with pq.ParquetFile(path) as file:
        present = [column for column in columns if column in file.schema_arrow.names]
        for batch in file.iter_batches(CHUNK, columns=present):
            yield batch.to_pandas(integer_object_nulls=True).set_axis(range(number, number + len(batch)))
            number += len(batch)


def _read_json_lines(path: Path, columns: list[str]) -> Iterator[pd.DataFrame]:
    def values(line: str) -> list[Any]:
        try:
            content = json.loads(line)
            milliseconds, *lengths = (content[column] for column in columns)
            return [float(milliseconds) / 1000, *lengths]
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return [f"no JSON object of {', '.join(columns)}: {line[:80]}", None, None]

    with open(path, encoding="utf-8-sig") as file:
        yield from _chunks(columns, ((number, values(line)) for number, line in enumerate(file, 1) if line.strip()))


def _read_vllm_bench(path: Path, columns: list[str]) -> Iterator[pd.DataFrame]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = pd.DataFrame({column: content[column] for column in columns}, dtype=object)
        yield rows.set_axis(rows.index + 1).sort_values(columns[0], kind="stable")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        needed = f"it needs {', '.join(columns)} of one length"
        raise ValueError(f"{error!r}; {needed}: was it saved with --save-detailed?") from None


def _read_clients(path: Path, columns: list[str]) -> Iterator[pd.DataFrame]:
    spec = ClientSpec.load(path)
    generators = np.random.default_rng(spec.seed).spawn(len(spec.clients))
    streams = [client.requests(rng, spec.duration_s) for client, rng in zip(spec.clients, generators, strict=True)]
    yield from _chunks(columns, enumerate(heapq.merge(*streams, key=lambda request: request[0]), start=1))


def _chunks(columns: list[str], numbered: Iterator[tuple[int, Iterable]]) -> Iterator[pd.DataFrame]:
    while chunk := list(islice(numbered, CHUNK)):
        numbers, values = zip(*chunk, strict=True)
        yield pd.DataFrame(values, index=numbers, columns=columns, dtype=object)


FORMATS = {
    "azure": (_read_csv, "line", ("TIMESTAMP", "ContextTokens", "GeneratedTokens")),
    "burstgpt": (_read_csv, "line", ("Timestamp", "Request tokens", "Response tokens")),
    "mooncake": (_read_json_lines, "line", ("timestamp", "input_length", "output_length")),
    "vllm_bench": (_read_vllm_bench, "request", ("start_times", "input_lens", "output_lens")),
    "clients": (_read_clients, "request", FIELDS),
    "csv": (_read_csv, "line", FIELDS),
    "parquet": (_read_parquet, "row", FIELDS),
}
"""By format: its reader, what a row's number counts, and its columns in the order of `FIELDS`."""
