"""Request traces, row by row, so that one of ten million rows need not fit in memory.

Formats and what their files are known by:

- `azure`: Azure LLM inference traces (CSV: TIMESTAMP, ContextTokens, GeneratedTokens);
- `burstgpt`: BurstGPT (CSV: Timestamp in seconds, Request tokens, Response tokens; failed requests have 0 of these);
- `mooncake`: Mooncake (JSON lines: timestamp in milliseconds, input_length, output_length);
- `vllm_bench`: what `vllm bench serve --save-result --save-detailed` saves (one JSON object, so held in memory:
  start_times, input_lens, output_lens; failed requests have an output of 0);
- `clients`: a specification in the manner of ServeGen (YAML): clients, each with its rate, burstiness and lengths;
- `csv`, `parquet`: any table; `columns` says what its columns are called.
"""

import csv
import heapq
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from driftsched_lib.errors import ParamsError
from driftsched_lib.estimators.base import MAX_TOKENS
from driftsched_lib.requests import CATEGORIES, TIERS, Category
from driftsched_lib.validation import Name, NotNegative, Positive, Validated

GapVariation = Annotated[float, Field(ge=0.01, le=100)]
FIELDS = ("arrival", "prompt_tokens", "output_tokens", "tenant", "tier", "category")
SHOWN = 5
"""Faults that are kept to be shown."""


@dataclass(slots=True)
class TraceRow:
    """A request of a trace: seconds since its first, lengths in tokens; empty where the trace does not say."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    tenant: str = ""
    tier: str = ""
    category: str = ""


@dataclass
class Faults:
    """What was wrong with the rows that were left out: how many, and the first of them by line with the reason."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def note(self, fault: str) -> None:
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(fault)

    def __str__(self) -> str:
        more = self.count - len(self.first)
        rows = "1 bad row was" if self.count == 1 else f"{self.count:,} bad rows were"
        return "\n  ".join([f"{rows} left out", *self.first, *([f"and {more:,} more"] if more else [])])


class LengthSpec(Validated):
    """A lognormal of lengths: its median (tokens) and the standard deviation of the logarithm."""

    median: Positive
    log_sd: NotNegative = 1.0


class Client(Validated):
    """Sends at a mean rate; gaps between its requests are gamma with this coefficient of variation."""

    tenant: Annotated[str, Field(min_length=1)]
    tier: Name = "standard"
    category: Category | Literal[""] = ""
    rate_per_s: Positive
    arrival_cv: GapVariation = 1.0
    prompt_tokens: LengthSpec
    output_tokens: LengthSpec


class ClientSpec(Validated):
    """What a file of the format `clients` holds."""

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
) -> Iterator[TraceRow]:
    """The rows of a trace, in its order.

    A row is bad if its lengths are no whole numbers from 1 to `MAX_TOKENS`, if its time is no number or out of order, or
    if its tier or category is unknown.  Of two rows out of order it is the second, unless the next row, too, is before
    the first.

    Parameters:
        columns: what the columns of a `csv` or `parquet` are called, by `FIELDS`, where they are not called so; the
            last three may be missing.
        on_bad_row: leave it out, or end with an error.
        faults: takes note of what was left out.

    Raises:
        ParamsError: the file cannot be read in this format, lacks a column, or has a bad row that is refused.
    """
    path, faults = Path(path), Faults() if faults is None else faults
    if format not in FORMATS:
        raise ParamsError(f"{path}: the format {format!r} is unknown (it may be {', '.join(FORMATS)})")
    reader, names = FORMATS[format]
    if names is None:
        if unknown := sorted(set(columns or {}) - set(FIELDS)):
            raise ParamsError(f"{path}: columns: {', '.join(unknown)} is unknown (it may be {', '.join(FIELDS)})")
        names = {field: field for field in FIELDS} | dict(columns or {})
    elif columns:
        raise ParamsError(f"{path}: columns: the format {format} has its own")
    begin = None
    try:
        for where, row in _in_order(_rows(reader(path, names), tuple(tiers))):
            if isinstance(row, _Fault):
                if on_bad_row == "refuse":
                    raise ParamsError(f"{path}: {where}: {row} (on_bad_row: skip leaves such rows out)")
                faults.note(f"{where}: {row}")
                continue
            begin = row.arrival_s if begin is None else begin
            row.arrival_s -= begin
            yield row
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise ParamsError(f"{path}: cannot be read as {format}: {error}") from None


class _Fault(ValueError):
    """What is wrong with a row."""


Read = tuple[str, "TraceRow | _Fault"]


def _rows(raws: Iterable["Raw"], tiers: tuple[str, ...]) -> Iterator[Read]:
    for where, raw in raws:
        try:
            yield where, raw if isinstance(raw, _Fault) else _row(raw, tiers)
        except _Fault as fault:
            yield where, fault


def _in_order(rows: Iterable[Read]) -> Iterator[Read]:
    """The rows, a fault in the place of each that is out of order.

    One absurdly late time must not make all behind it faults.  So a row is held back until the next is not before it;
    where two are, it is the row that is wrong, else they are.
    """
    last_s, held, behind = -math.inf, None, None
    for where, row in rows:
        if isinstance(row, _Fault):
            yield where, row
        elif row.arrival_s < last_s:
            yield where, _Fault(f"arrival is {last_s - row.arrival_s:g} s before a row above it")
        elif held is None:
            held = where, row
        elif row.arrival_s < held[1].arrival_s and behind is None:
            behind = where, row
        elif behind is None:
            yield held
            last_s, held = held[1].arrival_s, (where, row)
        elif row.arrival_s >= held[1].arrival_s:
            yield held
            yield _early(behind, held)
            last_s, held, behind = held[1].arrival_s, (where, row), None
        else:
            yield held[0], _Fault(f"arrival is {held[1].arrival_s - row.arrival_s:g} s after the rows below it")
            if behind[1].arrival_s <= row.arrival_s:
                yield behind
                last_s, held, behind = behind[1].arrival_s, (where, row), None
            else:
                held, behind = behind, (where, row)
    if held is not None:
        yield held
        if behind is not None:
            yield _early(behind, held)


def _early(row: tuple[str, TraceRow], before: tuple[str, TraceRow]) -> Read:
    return row[0], _Fault(f"arrival is {before[1].arrival_s - row[1].arrival_s:g} s before the row above it")


def _row(raw: Mapping[str, Any], tiers: tuple[str, ...]) -> TraceRow:
    arrival = _time(raw["arrival"])
    lengths = [_tokens(name, raw[name]) for name in ("prompt_tokens", "output_tokens")]
    words = {}
    for name, known in (("tenant", None), ("tier", tiers), ("category", CATEGORIES)):
        value = raw.get(name)
        words[name] = "" if value is None else str(value)
        if words[name] and known is not None and words[name] not in known:
            raise _Fault(f"{name} is {words[name]!r}, it may be {', '.join(known)}")
    return TraceRow(arrival, *lengths, **words)


def _time(value: Any) -> float:
    """Seconds, of a number or of a date and time (ISO 8601), in UTC where it names no zone: a day that has an hour
    twice would else send the trace back in time."""
    try:
        seconds = value if isinstance(value, datetime) else float(value)
    except (TypeError, ValueError, OverflowError):
        try:
            seconds = datetime.fromisoformat(str(value))
        except ValueError:
            raise _Fault(f"arrival is {value!r}, no time") from None
    if isinstance(seconds, datetime):
        return (seconds if seconds.tzinfo else seconds.replace(tzinfo=UTC)).timestamp()
    if not abs(seconds) < 1e12:  # 30,000 years; results keep microseconds, which doubles do not hold far beyond
        raise _Fault(f"arrival is {value!r}, no time")
    return seconds


def _tokens(name: str, value: Any) -> int:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise _Fault(f"{name} is {value!r}, no number") from None
    except OverflowError:
        number = math.inf
    if not (number.is_integer() and 1 <= number <= MAX_TOKENS):
        raise _Fault(f"{name} is {value}, no whole number from 1 to {MAX_TOKENS:,}")
    return int(number)


Raw = tuple[str, "Mapping[str, Any] | _Fault"]


def _read_csv(path: Path, names: Mapping[str, str]) -> Iterator[Raw]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        there = _those_there(path, names, rows.fieldnames or [])
        for raw in rows:
            yield f"line {rows.line_num}", {name: raw[column] for name, column in there.items()}


def _read_parquet(path: Path, names: Mapping[str, str]) -> Iterator[Raw]:
    with pq.ParquetFile(path) as file:
        there = _those_there(path, names, file.schema_arrow.names)
        number = 0
        for batch in file.iter_batches(batch_size=10_000, columns=list(there.values())):
            for raw in _with_seconds(batch).to_pylist():
                number += 1
                yield f"row {number}", {name: raw[column] for name, column in there.items()}


def _with_seconds(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Timestamps as seconds, for Python's cannot hold all of Arrow's."""
    a_second = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}
    for i, kind in enumerate(batch.schema.types):
        if pa.types.is_timestamp(kind):
            seconds = pc.divide(batch.column(i).cast(pa.int64()).cast(pa.float64(), safe=False), a_second[kind.unit])
            batch = batch.set_column(i, batch.schema.names[i], seconds)
    return batch


def _read_json_lines(path: Path, names: Mapping[str, str]) -> Iterator[Raw]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.isspace():
                continue
            try:
                content = json.loads(line)
                raw = {name: content[column] for name, column in names.items()}
                raw["arrival"] = float(raw["arrival"]) / 1000
            except (ValueError, TypeError, OverflowError, RecursionError) as error:
                raw = _Fault(f"is no JSON object of numbers: {error}")
            except KeyError as error:
                raw = _Fault(f"lacks {error}")
            yield f"line {number}", raw


def _read_vllm_bench(path: Path, names: Mapping[str, str]) -> Iterator[Raw]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        series = [content[column] for column in names.values()]
        rows = sorted(enumerate(zip(*series, strict=True), start=1), key=lambda numbered: numbered[1][0])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        message = f"holds no {', '.join(names.values())} of one length: was it saved with --save-detailed?"
        raise ParamsError(f"{path}: {message} ({type(error).__name__}: {error})") from None
    for number, row in rows:
        yield f"request {number}", dict(zip(names, row, strict=True))


def _read_clients(path: Path, names: Mapping[str, str]) -> Iterator[Raw]:
    spec = ClientSpec.load(path)
    generators = np.random.default_rng(spec.seed).spawn(len(spec.clients))
    clients = [
        _of_client(*of) for of in zip(spec.clients, generators, [spec.duration_s] * len(generators), strict=True)
    ]
    for number, raw in enumerate(heapq.merge(*clients, key=lambda raw: raw["arrival"]), start=1):
        yield f"request {number}", raw


def _of_client(client: Client, rng: np.random.Generator, duration_s: float) -> Iterator[dict[str, Any]]:
    variance, now = client.arrival_cv**2, 0.0
    while (now := now + rng.gamma(1 / variance, variance) / client.rate_per_s) < duration_s:
        lengths = {name: _drawn(getattr(client, name), rng) for name in ("prompt_tokens", "output_tokens")}
        words = {"tenant": client.tenant, "tier": client.tier, "category": client.category}
        yield {"arrival": now} | lengths | words


def _drawn(spec: LengthSpec, rng: np.random.Generator) -> int:
    log_length = math.log(spec.median) + spec.log_sd * rng.standard_normal()
    return max(1, round(math.exp(min(log_length, math.log(MAX_TOKENS)))))


def _those_there(path: Path, names: Mapping[str, str], columns: Iterable[str]) -> dict[str, str]:
    columns = list(columns)
    if missing := [names[name] for name in FIELDS[:3] if names[name] not in columns]:
        raise ParamsError(f"{path}: lacks the column {', '.join(missing)} (it has {', '.join(columns)})")
    return {name: column for name, column in names.items() if column in columns}


def _names(arrival: str, prompt_tokens: str, output_tokens: str) -> dict[str, str]:
    return dict(zip(FIELDS, (arrival, prompt_tokens, output_tokens), strict=False))


Reader = Callable[[Path, Mapping[str, str]], Iterator[Raw]]
FORMATS: dict[str, tuple[Reader, dict[str, str] | None]] = {
    "azure": (_read_csv, _names("TIMESTAMP", "ContextTokens", "GeneratedTokens")),
    "burstgpt": (_read_csv, _names("Timestamp", "Request tokens", "Response tokens")),
    "mooncake": (_read_json_lines, _names("timestamp", "input_length", "output_length")),
    "vllm_bench": (_read_vllm_bench, _names("start_times", "input_lens", "output_lens")),
    "clients": (_read_clients, {}),
    "csv": (_read_csv, None),
    "parquet": (_read_parquet, None),
}
