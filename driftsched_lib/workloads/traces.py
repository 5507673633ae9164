"""Request traces, read in chunks: memory does not grow with their length.

The formats, whose columns are in `FORMATS`, are Azure LLM inference traces (CSV), BurstGPT (CSV), Mooncake (JSON
lines), `vllm bench serve --save-result --save-detailed` (JSON, held in memory), a specification of `clients` like
ServeGen's (YAML), and any CSV or Parquet.  Names may differ.  Failed requests have an output of 0.

Rows are sorted by arrival, so a log may list requests as they finish.  A time is a number or a date in ISO 8601, in UTC
unless it names a zone.  A CSV has commas, semicolons, tabs or `|`; its header is line 1, empty lines and line breaks
in quotes do not count.  CSV and JSON may be compressed (gzip, bzip2, zstd).
"""

import heapq
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BufferedReader, StringIO, TextIOWrapper
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

Frames = Iterator[pd.DataFrame]
GapVariation = Annotated[float, Field(ge=0.01, le=100)]
FIELDS = ("arrival", "prompt_tokens", "output_tokens", "tenant", "tier", "category")
EPOCH = pd.Timestamp("1970-01-01", tz="UTC")
UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
CODECS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip"}
CHUNK, CHUNK_BYTES = 20_000, 2**22  # rows, and about so many bytes of a CSV, that are read at once
REACH = 50_000  # rows that a row may stand too late
MAX_S, MAX_APART_S = 1e11, 1.2e9  # 3,000 years, an epoch in ms is more; 38 years, from 1970 and to 9999 is more
RATES_PER_S = 0.01, 500.0  # beyond these, another unit of time is likely
MAX_SHOWN = 5  # faults that are kept to be shown


@dataclass
class Faults:
    """What is odd about a trace: the bad rows that were left out, and an absurd rate."""

    count: int = 0
    first: list[str] = field(default_factory=list)
    rows: int = 0  # that were read, good or bad
    rate_per_s: float = 1.0  # of the first rows

    def __str__(self) -> str:
        shown = [*self.first, f"and {self.count - len(self.first):,} more"][: self.count]
        lines = [f"{self.count:,} of {self.rows:,} rows are bad and were left out", *shown] if self.count else []
        if not RATES_PER_S[0] <= self.rate_per_s <= RATES_PER_S[1]:
            lines.append(f"{self.rate_per_s:,.4g} requests per second: is the time_unit ({', '.join(UNITS)}) right?")
        return "\n  ".join(lines)


class LengthSpec(Validated):
    """Lognormal lengths: their median (tokens) and the standard deviation of their logarithm."""

    median: Positive
    log_sd: NotNegative = 1.0

    def draw(self, rng: np.random.Generator) -> int:
        return max(1, round(min(rng.lognormal(math.log(self.median), self.log_sd), MAX_TOKENS)))


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
    time_unit: str | None = None,
) -> Frames:
    """Yield the good rows of a trace by `arrival_s`, which counts from the first, and other `FIELDS`, "" for none.

    Parameters:
        columns: of a file whose names are not those of the format, by `FIELDS`.
        on_bad_row: leave out a row with an impossible length or time, or an unknown tier or category; or raise.
        faults: collects what is odd, chunk by chunk.
        time_unit: of times that are numbers, one of `UNITS`; None for that of the format.

    Raises ParamsError if the file cannot be read so, a bad row is refused or most are bad, or one is `REACH` rows late.
    """
    path, faults, begin_s = Path(path), Faults() if faults is None else faults, None
    given: dict[str, tuple[str, Iterable[str]]] = {"format": (format, FORMATS), "time_unit": (time_unit or "s", UNITS)}
    given |= {f"columns: {name}": (name, FIELDS) for name in columns or {}}
    for name, (value, allowed) in given.items():
        if value not in allowed:
            raise ParamsError(f"{path}: {name}: {choice(value, allowed)}")
    reader, place, own_names, own_unit = FORMATS[format]
    names, per_s = dict(zip(FIELDS, own_names, strict=False)) | dict(columns or {}), UNITS[time_unit or own_unit]

    def good(rows: pd.DataFrame) -> pd.DataFrame:
        found = [f"{place} {number}: {fault}" for number, fault in rows.fault[rows.fault != ""].items()]
        if found and on_bad_row == "refuse":
            raise ParamsError(f"{path}: {found[0]} (on_bad_row: skip leaves such rows out)")
        faults.first += found[: MAX_SHOWN - len(faults.first)]
        faults.count, faults.rows = faults.count + len(found), faults.rows + len(rows)
        return rows[rows.fault == ""].drop(columns="fault").astype(dict.fromkeys(FIELDS[1:3], "int32"))

    try:
        for rows in _in_order(map(good, _checked(reader(path, [*names.values()]), names, [*tiers], per_s))):
            if rows.empty or 2 * faults.count > faults.rows:
                raise ParamsError(f"{path}: holds no good rows, or more bad ones. {faults}")
            if begin_s is None:
                begin_s, span_s = rows.arrival_s.iloc[0], np.ptp(rows.arrival_s)
                faults.rate_per_s = (len(rows) - 1) / span_s if span_s > 0 else 1.0
            yield rows.assign(arrival_s=rows.arrival_s - begin_s).astype(dict.fromkeys(FIELDS[1:3], int))
    except (OSError, ValueError, pa.ArrowException) as error:
        known = isinstance(error, ParamsError)
        raise error if known else ParamsError(f"{path}: cannot be read as {format}: {error}") from None


def _checked(chunks: Frames, names: dict[str, str], tiers: list[str], per_s: float) -> Frames:
    """Yield the chunks as `read_trace` does, with a column `fault`: what is wrong with a row, or ""."""
    middle_s = math.nan
    for raw in chunks:
        raw = pd.DataFrame({name: raw.get(names.get(name), "") for name in FIELDS}, index=raw.index)
        rows = raw[[*FIELDS[:3]]].apply(lambda column: pd.to_numeric(column.astype(str), errors="coerce")).astype(float)
        dates = raw.arrival[rows.arrival.isna()].astype(str).str.replace(" UTC", "Z")
        times = pd.to_datetime(dates, format="ISO8601", utc=True, errors="coerce").dropna()
        rows["arrival"] = (rows.arrival / per_s).fillna((times - EPOCH) / pd.Timedelta(seconds=1))
        is_time, known = rows.arrival.abs() < MAX_S, {"tier": tiers, "category": CATEGORIES}
        middle_s = rows.arrival[is_time].median() if math.isnan(middle_s) else middle_s
        whole = rows.ge(1) & rows.le(MAX_TOKENS) & (rows % 1 == 0)
        rows = rows.join(raw[[*FIELDS[3:]]].fillna("").astype(str)).assign(fault="")
        checks = [
            ("arrival", is_time, f"no time: a date in ISO 8601 or a number below {MAX_S:g} s (time_unit: ms, us, ns?)"),
            ("arrival", (rows.arrival - middle_s).abs() < MAX_APART_S, "decades away from the first rows"),
            *((name, whole[name], f"no whole number from 1 to {MAX_TOKENS:,}") for name in FIELDS[1:3]),
            *((name, rows[name].isin(["", *those]), f"it may be {', '.join(those)}") for name, those in known.items()),
        ]
        for name, is_good, text in checks:
            wrong = ~is_good & (rows.fault == "")
            rows.loc[wrong, "fault"] = [f"{name} is {repr(value)[:160]}, {text}" for value in raw[name][wrong]]
        yield rows.rename(columns={"arrival": "arrival_s"})


def _in_order(chunks: Frames) -> Frames:
    """Yield the rows by arrival, once `REACH` later ones are read; ValueError for a row that stands farther down."""
    held, last_s = [], -math.inf
    for chunk in chain(chunks, [None]):
        held += [] if chunk is None else [chunk]
        if not held or (chunk is not None and sum(map(len, held)) < 2 * REACH):
            continue
        rows = pd.concat(held).sort_values("arrival_s", kind="stable")
        if rows.arrival_s.min() < last_s:
            raise ValueError(f"row {rows.index[0]} is over {REACH:,} rows too late: sort the trace in order of arrival")
        end = len(rows) - (0 if chunk is None else REACH)
        yield rows[:end]
        held, last_s = [rows[end:]], rows.arrival_s.iloc[end - 1]


@contextmanager
def _opened(path: Path, unpack: bool = True) -> Iterator[tuple[TextIOWrapper, BufferedReader]]:
    """Yield the text of a file, decompressed, and the file; ValueError if it is compressed and cannot be unpacked."""
    with open(path, "rb") as file:
        codec = next((codec for magic, codec in CODECS.items() if file.peek(6).startswith(magic)), None)
        if codec in ("xz", "zip") or (codec and not unpack):
            raise ValueError(f"it is compressed with {codec}: unpack it first")
        yield TextIOWrapper(pa.input_stream(file, codec), "utf-8-sig", "replace", newline=""), file


def _positions(header: list[str], columns: list[str]) -> list[int]:
    """Return where the columns are; ValueError if one is ambiguous, or one of the first three is missing."""
    if missing := [column for column in columns[:3] if column not in header]:
        raise ValueError(f"lacks the column {', '.join(missing)}; it has {', '.join(header)[:1000]}")
    if twice := [column for column in columns if max(header.count(column), columns.count(column)) > 1]:
        raise ValueError(f"the column {twice[0]} is there twice, or two fields name it")
    return [i for i, name in enumerate(header) if name in columns]


def _read_csv(path: Path, columns: list[str]) -> Frames:
    options: dict[str, Any] = {"header": None, "dtype": object, "na_filter": False, "skipinitialspace": True}
    with _opened(path) as (text, file):
        line = next(filter(str.strip, iter(text.readline, "")), "")
        headers = {mark: pd.read_csv(StringIO(line), sep=mark, **options).iloc[0].str.strip() for mark in ",;\t|"}
        mark, header = max(headers.items(), key=lambda item: item[1].isin(columns).sum())
        options |= {"names": range(len(header)), "usecols": _positions([*header], columns), "index_col": False}
        rows, tell = 100, file.tell if file.seekable() else int
        with suppress(StopIteration), pd.read_csv(text, sep=mark, iterator=True, **options) as reader:
            while True:
                chunk = reader.get_chunk(rows)
                yield chunk.set_axis([header[i] for i in chunk], axis=1).set_axis(chunk.index + 2)
                rows = min(CHUNK, 1 + CHUNK_BYTES * chunk.index.stop // max(1, tell()))


def _read_parquet(path: Path, columns: list[str]) -> Frames:
    number = 1
    with _opened(path, unpack=False), pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        for batch in file.iter_batches(CHUNK, columns=[names[i] for i in _positions(names, columns)]):
            yield batch.to_pandas(integer_object_nulls=True).set_axis(range(number, number + len(batch)))
            number += len(batch)


def _read_json_lines(path: Path, columns: list[str]) -> Frames:
    def values(line: str) -> list[Any]:
        try:
            return [*map(json.loads(line).__getitem__, columns)]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return [f"no JSON object of {', '.join(columns)}: {line[:80]}", *[None] * (len(columns) - 1)]

    with _opened(path) as (text, _):
        yield from _chunks(columns, ((number, values(line)) for number, line in enumerate(text, 1) if line.strip()))


def _read_vllm_bench(path: Path, columns: list[str]) -> Frames:
    try:
        with _opened(path) as (text, _):
            content = json.load(text)
        yield pd.DataFrame({column: content[column] for column in columns}, dtype=object).rename(lambda i: i + 1)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        hint = "holds several results: keep one." if "Extra" in str(error) else "was it saved with --save-detailed?"
        raise ValueError(f"{hint} It needs {', '.join(columns)} of one length: {error!r}") from None


def _read_clients(path: Path, columns: list[str]) -> Frames:
    with _opened(path, unpack=False):
        spec = ClientSpec.load(path)
    generators = np.random.default_rng(spec.seed).spawn(len(spec.clients))
    streams = [client.requests(rng, spec.duration_s) for client, rng in zip(spec.clients, generators, strict=True)]
    yield from _chunks(columns, enumerate(heapq.merge(*streams, key=lambda request: request[0]), start=1))


def _chunks(columns: list[str], numbered: Iterator[tuple[int, Iterable]]) -> Frames:
    while chunk := list(islice(numbered, CHUNK)):
        numbers, values = zip(*chunk, strict=True)
        yield pd.DataFrame(values, index=numbers, columns=columns, dtype=object)


FORMATS = {  # by format: its reader, what a row's number counts, its columns in the order of `FIELDS`, its unit of time
    "azure": (_read_csv, "line", ("TIMESTAMP", "ContextTokens", "GeneratedTokens"), "s"),
    "burstgpt": (_read_csv, "line", ("Timestamp", "Request tokens", "Response tokens"), "s"),
    "mooncake": (_read_json_lines, "line", ("timestamp", "input_length", "output_length"), "ms"),
    "vllm_bench": (_read_vllm_bench, "request", ("start_times", "input_lens", "output_lens"), "s"),
    "clients": (_read_clients, "request", FIELDS, "s"),
    "csv": (_read_csv, "line", FIELDS, "s"),
    "parquet": (_read_parquet, "row", FIELDS, "s"),
}
