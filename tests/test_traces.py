"""Traces of every format, rows that are bad, and a trace as an experiment's load."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from simulation import ONE_RUN, PAPER_L4

from driftsched_lib import Params, run_grid
from driftsched_lib.errors import ParamsError
from driftsched_lib.validation import PROJECT
from driftsched_lib.workloads.params import WorkloadParams
from driftsched_lib.workloads.synthetic import make_load, trace_window
from driftsched_lib.workloads.traces import FIELDS, FORMATS, REACH, Faults, read_trace

HEADER = "arrival,prompt_tokens,output_tokens\n"
LENGTH = "no whole number from 1 to 10,000,000"
ROWS = [(0.0, 100, 10), (1.5, 200, 20), (1.5, 7, 3)]
CLIENTS = """
seed: 3
duration_s: 2000
clients:
  - {tenant: acme, tier: premium, category: report, rate_per_s: 2.0, arrival_cv: 3.0,
     prompt_tokens: {median: 300, log_sd: 0.5}, output_tokens: {median: 80}}
  - {tenant: crawler, tier: batch, rate_per_s: 1, prompt_tokens: {median: 50, log_sd: 0.0}, output_tokens: {median: 9}}
"""


def read(*arguments, **options):
    """The whole of a trace."""
    return pd.concat(read_trace(*arguments, **options))


def text_of(*times):
    return HEADER + "".join(f"{time},1,1\n" for time in times)


def skipped(path, format="csv", text=None, **options):
    """The good rows of a trace, of this text if one is given, and the faults of its bad ones."""
    if text is not None:
        path.write_text(text)
    faults = Faults()
    return read(path, format, on_bad_row="skip", faults=faults, **options), faults


def write(folder, format):
    """A file of this format with the three `ROWS`."""
    path, columns = folder / format, list(FORMATS[format][2][:3])
    table = pd.DataFrame([(5 + arrival_s, *lengths) for arrival_s, *lengths in ROWS], columns=columns)
    if format == "azure":
        table["TIMESTAMP"] = [f"2023-11-16 18:15:{46.6805900 + arrival_s:010.7f}" for arrival_s, *_ in ROWS]
    table = table.assign(Model="ChatGPT", **{"Log Type": "API log"})
    match format:
        case "parquet":
            table.to_parquet(path)
        case "mooncake":
            table.assign(timestamp=1000 * table.timestamp, hash_ids=1).to_json(path, orient="records", lines=True)
        case "vllm_bench":
            order = [2, 0, 1]  # as they ended
            series = {column: [table[column][i].item() for i in order] for column in columns}
            path.write_text(json.dumps(series | {"ttfts": [0.1] * 3, "model_id": "m"}))
        case _:
            table.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("format", [format for format in FORMATS if format != "clients"])
def test_each_format_is_read_as_it_was_written(format, tmp_path):
    rows = read(write(tmp_path, format), format)
    lengths = zip(rows.prompt_tokens.tolist(), rows.output_tokens.tolist(), strict=True)
    assert sorted(lengths) == [(7, 3), (100, 10), (200, 20)]
    assert rows.arrival_s.tolist() == pytest.approx([0.0, 1.5, 1.5], abs=1e-6)
    assert (rows[["tenant", "tier", "category"]] == "").all(axis=None)


def test_clients_send_at_their_rates_in_bursts_and_lengths(tmp_path):
    (tmp_path / "spec.yaml").write_text(CLIENTS)
    rows, again = (read(tmp_path / "spec.yaml", "clients") for _ in range(2))
    pd.testing.assert_frame_equal(rows, again)
    assert rows.arrival_s.is_monotonic_increasing
    acme, crawler = rows[rows.tenant == "acme"], rows[rows.tenant == "crawler"]
    assert len(acme) == pytest.approx(4000, rel=0.2) and len(crawler) == pytest.approx(2000, rel=0.1)
    gaps = acme.arrival_s.diff().dropna()
    assert gaps.std() / gaps.mean() == pytest.approx(3.0, rel=0.15)
    assert np.log(acme.prompt_tokens).std() == pytest.approx(0.5, rel=0.1) and (crawler.prompt_tokens == 50).all()
    assert acme.output_tokens.median() == pytest.approx(80, rel=0.1)
    assert set(acme.tier) == {"premium"} and set(acme.category) == {"report"} and set(crawler.category) == {""}


def test_columns_are_mapped_and_say_who_sent_what(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("when,in,out,who,sla\n10,5,6,acme,premium\n11.5,7,8,,\n")
    columns = {"arrival": "when", "prompt_tokens": "in", "output_tokens": "out", "tenant": "who", "tier": "sla"}
    rows = read(path, "csv", columns)
    assert rows.to_numpy().tolist() == [[0.0, 5, 6, "acme", "premium", ""], [1.5, 7, 8, "", "", ""]]
    path.write_text(path.read_text().replace("premium", "gold"))
    assert read(path, "csv", columns, tiers=["gold", "silver"]).tier.tolist() == ["gold", ""]
    with pytest.raises(ParamsError, match="the column in is there twice, or two fields name it"):
        read(path, "csv", columns | {"output_tokens": "in"})


BAD = "0,5,6, x,5,6, 1,0,6, 2,5,nan, 3,5,1e30, 4,5,2.5, 5,5,, inf,5,6, 0,5,6,gold 9,5,6,batch 8,5,6, 10,5,6,premium 1,5"
BAD = HEADER.replace("\n", ",tier\n") + BAD.replace(" ", "\n") + "\n"


def test_bad_rows_are_counted_and_shown_by_line_with_the_reason(tmp_path):
    path = tmp_path / "bad.csv"
    rows, faults = skipped(path, text=BAD + "12,5,6,\n" * 6)
    assert rows.arrival_s.tolist() == [0, 8, 9, 10, *[12] * 6] and (faults.count, faults.rows) == (9, 19)
    no_time = "line 3: arrival is 'x', no time: a date in ISO 8601 or a number below 1e+11 s (time_unit: ms, us, ns?)"
    found = ["prompt_tokens is '0'", "output_tokens is 'nan'", "output_tokens is '1e30'", "output_tokens is '2.5'"]
    assert faults.first == [no_time, *(f"line {number}: {fault}, {LENGTH}" for number, fault in enumerate(found, 4))]
    with pytest.raises(ParamsError, match=r"bad.csv: line 3: arrival is 'x', no time: .* \(on_bad_row: skip leaves"):
        read(path, "csv")
    with pytest.raises(ParamsError, match=r"no good rows, or more bad ones. 9 of 13 rows(?s:.*)line 7.*\n  and 4 more"):
        skipped(path, text=BAD)


def test_rows_are_sorted_arrival_or_the_trace_is_refused(tmp_path):
    path, times = tmp_path / "log.csv", np.arange(3 * REACH)
    path.write_text(text_of(*times.reshape(3, -1)[:, ::-1].ravel()))
    assert (read(path, "csv").arrival_s == times).all()
    path.write_text(text_of(*np.roll(times, REACH + 1)))
    with pytest.raises(ParamsError, match="[0-9]+ is over 50,000 rows too late: sort the trace in order of arrival"):
        skipped(path)


@pytest.mark.parametrize(
    ("first", "second", "unit"),
    [
        ("1700158546500", "1.700158548e12", "ms"),
        ("1700158546500000000", "1700158548000000000", "ns"),
        ("2023-11-16 18:15:46.5000000", "2023-11-16 18:15:48", "ms"),
        ("2023-11-16T18:15:46.500Z", "2023-11-16T19:15:48.000+01:00", None),
        ("2023-11-16 18:15:46.5 UTC", "2023-11-16 18:15:48-00:00", None),
        ("2023-03-26 01:59:59.5", "2023-03-26 02:00:01", None),  # where clocks go forward
        ("2023-10-29T02:59:59.5+02:00", "2023-10-29T02:00:01+01:00", None),  # and back
    ],
)
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
def test_times_are_the_same_in_every_time_zone(first, second, unit, zone, tmp_path, monkeypatch):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        path = tmp_path / "times.csv"
        path.write_text(text_of(first, second))
        assert read(path, "csv", time_unit=unit).arrival_s.tolist() == pytest.approx([0.0, 1.5], abs=1e-5)
    finally:
        monkeypatch.undo()
        time.tzset()


RAGGED = "arrival,prompt_tokens,output_tokens\n0,5,6,7,8\n\n1,7\n2,8,9\n"
FAILED = '{"start_times": [3.0, 1.0, 2.0], "input_lens": [5, 6, 7], "output_lens": [8, 0, 9]}'


WORDS = "a,\n" * 50_000 + "b" * 1_000_000
LINE = '{{"timestamp": {}, "input_length": {}, "output_length": 3}}\n\n'
ABSURD = "".join(LINE.format(*row) for row in [(0, 1), ("9" * 400, 1), (5, "9" * 400), (2000, 1)])


@pytest.mark.parametrize(
    ("format", "text", "kept", "found"),
    [
        ("csv", RAGGED, [[0, 5, 6], [2, 8, 9]], [f"line 3: output_tokens is '', {LENGTH}"]),
        ("mooncake", ABSURD, [[0, 1, 3], [2, 1, 3]], ["line 3", "line 5"]),
        ("vllm_bench", FAILED, [[0, 7, 9], [1, 5, 8]], [f"request 2: output_tokens is 0, {LENGTH}"]),
        ("csv", text_of(0, 1e11, 1, 2), [[0, 1, 1], [1, 1, 1], [2, 1, 1]], ["line 3: arrival is '100000000000.0', no"]),
        ("csv", text_of(17e8, 0, 17e8 + 1), [[0, 1, 1], [1, 1, 1]], ["line 3: arrival is '0', decades away from"]),
        ("csv", "\ufeff" + text_of(5).replace("\n", "\r\n"), [[0, 1, 1]], []),  # a byte order mark
        *(("csv", text_of(5).replace(",", mark), [[0, 1, 1]], []) for mark in (";", "\t", "|", " ,  ")),
        ("csv", f'x,{HEADER}"{WORDS}",0,500.0,3\n', [[0, 500, 3]], []),
        ("csv", text_of('"1,000"', True, 5, 6), [[0, 1, 1], [1, 1, 1]], ["line 2: arrival is '1,000'", "line 3"]),
    ],
)
def test_odd_rows_are_kept_or_named(format, text, kept, found, tmp_path):
    rows, faults = skipped(tmp_path / "trace", format, text)
    assert rows[["arrival_s", "prompt_tokens", "output_tokens"]].to_numpy().tolist() == kept
    assert faults.count == len(faults.first) == len(found)
    assert all(fault.startswith(start) for fault, start in zip(faults.first, found, strict=True))


def test_times_beyond_pythons_are_bad_rows(tmp_path):
    path, lengths = tmp_path / "far.parquet", {"prompt_tokens": [1, 1], "output_tokens": [1, 1]}
    pq.write_table(pa.table({"arrival": pa.array([0, 10**14], pa.timestamp("s"))} | lengths), path)
    rows, faults = skipped(path, "parquet")
    assert len(rows) == faults.count == 1
    pq.write_table(pa.table({"arrival": pa.array([1, 1_500_000_001], pa.timestamp("ns"))} | lengths), path)
    assert read(path, "parquet").arrival_s.tolist() == pytest.approx([0.0, 1.5])


@pytest.mark.parametrize("codec", ["gzip", "bz2", "zstd"])
@pytest.mark.parametrize("format", ["azure", "mooncake", "vllm_bench"])
def test_compressed_traces_are_read_whatever_their_names(format, codec, tmp_path):
    path = write(tmp_path, format)
    plain, content = read(path, format), path.read_bytes()
    with pa.output_stream(path, compression=codec) as file:
        file.write(content)
    pd.testing.assert_frame_equal(read(path, format), plain)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ParamsError, match=f"cannot be read as {format}: .*Truncated compressed stream"):
        read(path, format)


@pytest.mark.parametrize(
    ("format", "content", "message"),
    [
        ("azure", "a,b\n1,2\n", "lacks the column TIMESTAMP, ContextTokens, GeneratedTokens; it has a, b"),
        ("csv", "", "cannot be read as csv: No columns"),
        ("csv", HEADER, "holds no good rows"),
        ("csv", HEADER.replace("\n", ",arrival\n0,1,1,2\n"), "the column arrival is there twice"),
        ("csv", HEADER + '0,"5,6\n1,7,8\n', "EOF inside string"),
        ("csv", text_of(1700158546500), "line 2: arrival is '1700158546500', no time: .*time_unit: ms, us, ns"),
        ("csv", b"\xfd7zXZ\x00", "it is compressed with xz: unpack it first"),
        ("clients", b"\x1f\x8b\x08", "it is compressed with gzip: unpack it first"),
        ("parquet", "no parquet", "cannot be read as parquet"),
        ("mooncake", '{"timestamp": 1}\n', "line 1: arrival is .no JSON object of timestamp, input_length"),
        ("mooncake", "[" * 100_000, "line 1: arrival is .no JSON object"),
        ("vllm_bench", '{"input_lens": [1]}', "was it saved with --save-detailed"),
        ("vllm_bench", f"{FAILED}\n{FAILED}", "holds several results: keep one"),
        ("clients", "clients: []", "duration_s: is missing"),
        ("burst", "", "format: 'burst' is unknown. Did you mean 'burstgpt'"),
    ],
)
def test_a_file_that_is_no_such_trace_is_refused_by_name(format, content, message, tmp_path):
    path = tmp_path / "trace"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ParamsError, match=message):
        read(path, format)
    with pytest.raises(ParamsError, match="cannot be read"):
        read(tmp_path / "missing", "csv")


@pytest.mark.parametrize(("unit", "rate"), [("s", ""), (None, "4,000 requests per second: is the time_unit (s, ms")])
def test_json_lines_have_any_names_and_unit_and_an_absurd_rate_is_shown(unit, rate, tmp_path):
    path, columns, faults = tmp_path / "log.jsonl", {"prompt_tokens": "in", "tenant": "who"}, Faults()
    lines = [{"timestamp": i / 4, "in": 5, "output_length": 6, "who": "acme", "text": "x" * 200_000} for i in range(9)]
    path.write_text("\n".join(map(json.dumps, lines)))
    rows = read(path, "mooncake", columns, faults=faults, time_unit=unit)
    assert str(faults).startswith(rate) and bool(str(faults)) == bool(rate) and set(rows.tenant) == {"acme"}


READ = "import sys; from driftsched_lib.workloads.traces import read_trace as read\n"
READ += "print(sum(map(len, read(sys.argv[1], 'csv'))), open('/proc/self/status').read())"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the peak of memory")
@pytest.mark.parametrize(("n", "prompt"), [(2_000_000, ""), (500, 'a "b"\n' * 30_000)])
def test_rows_out_of_order_and_long_texts_are_read_in_less_than_200_mib(n, prompt, tmp_path):
    rng, path = np.random.default_rng(1), tmp_path / "big.csv"
    columns = [np.arange(n) / 10 + rng.exponential(100, n), *rng.integers(1, 9999, (2, n)), [prompt] * n]
    pa_csv.write_csv(pa.table(columns, names=[*FIELDS[:3], "prompt"]), path)
    printed = subprocess.check_output([sys.executable, "-c", READ, path], cwd=PROJECT, text=True).split()
    assert int(printed[0]) == n and int(printed[printed.index("VmHWM:") + 1]) < 200 * 1024  # KiB


def on_trace(path, **changes):
    return WorkloadParams.parse({"trace": {"file": str(path), "format": "csv"} | changes}, "test")


def served(workload, **options):
    """The requests of 30 rows at a capacity of 100 tokens per second."""
    [load] = make_load(workload, 30, 1, 100.0, **options)
    return load.requests


def params_on(path, seeds, **changes):
    workload = {"workload.trace": on_trace(path, **changes).trace.model_dump()}
    return Params.load(PAPER_L4, ONE_RUN | workload | {"requests": 30, "seeds": seeds})


@pytest.fixture
def trace(tmp_path):
    rng, path = np.random.default_rng(1), tmp_path / "trace.csv"
    rows = [(100 + i / 2, rng.integers(20, 200), rng.integers(1, 600), "acme" if i % 4 else "") for i in range(80)]
    pd.DataFrame(rows, columns=FIELDS[:4]).to_csv(path, index=False)
    return path


def test_each_seed_serves_a_window_of_its_own(trace, tmp_path):
    workload, rows = on_trace(trace, skip=10), read(trace, "csv")
    for window, part in enumerate((rows[10:40], rows[40:70])):
        pd.testing.assert_frame_equal(trace_window(workload.trace, 30, window)[0], part)
    requests = served(workload, window=1)
    for request, row in zip(requests, rows[40:70].itertuples(), strict=True):
        assert request.arrival_s == pytest.approx(row.arrival_s - rows.arrival_s.iloc[40])
        assert request.fixed_output_tokens == row.output_tokens <= request.max_tokens
        assert request.prompt_tokens == row.prompt_tokens
        assert request.tenant == (row.tenant or request.tenant)
        assert request.tier == workload.tenants.get(request.tenant, "standard")
    assert {request.tenant for request in requests} > {"acme"}
    summary = run_grid(params_on(trace, [1, 2], skip=10), tmp_path / "out", jobs=1)
    assert (summary.completed == 30).all() and len(summary) == 2


def test_a_row_that_names_no_tier_has_the_default_and_no_category_nor_limit_tells_a_length(trace):
    workload = on_trace(trace, default_tier="silver").model_copy(update={"tenants": {"bot": "gold"}})
    tiers = {request.tenant: request.tier for request in served(workload, tiers=["gold", "silver"])}
    assert tiers == {"acme": "silver", "bot": "gold"}
    requests = served(on_trace(trace))
    assert len({request.fixed_output_tokens for request in requests}) > 1
    assert len({(request.job_type, request.max_tokens) for request in requests}) == 1
    assert all(request.fixed_output_tokens <= request.max_tokens for request in requests)


def test_bad_rows_of_a_run_are_shown_and_a_changed_trace_is_read_anew(trace, tmp_path):
    lines = trace.read_text().splitlines()
    before, _ = trace_window(on_trace(trace).trace, 30)
    trace.write_text("\n".join([*lines[:3], *["100,none,5,"] * 7, *lines[3:]]))
    os.utime(trace, (0, 0))
    message = r"(?s)trace.csv: 7 of 87 rows are bad and were left out\n  line 4: prompt_tokens.*and 2 more$"
    with pytest.warns(UserWarning, match=message):
        run_grid(params_on(trace, 1, on_bad_row="skip"), tmp_path / "out", jobs=1)
    after, _ = trace_window(on_trace(trace, on_bad_row="skip").trace, 30)
    pd.testing.assert_frame_equal(after.reset_index(drop=True), before.reset_index(drop=True))
    with pytest.raises(ParamsError, match=r"line 4: .* \(on_bad_row: skip leaves such rows out\)"):
        run_grid(params_on(trace, 1), tmp_path / "refused")


def test_times_are_compressed_or_stretched_to_a_load(trace):
    plain, fast = (served(on_trace(trace, speedup=s)) for s in (1.0, 4.0))
    assert [4 * r.arrival_s for r in fast] == pytest.approx([r.arrival_s for r in plain])
    loaded, twice = (served(on_trace(trace, load_factor=2.0), rate=rate) for rate in (1.0, 2.0))
    assert sum(r.fixed_output_tokens for r in loaded) / loaded[-1].arrival_s == pytest.approx(200.0)
    assert twice[-1].arrival_s == pytest.approx(loaded[-1].arrival_s / 2)


def test_a_trace_that_does_not_do_is_refused_before_any_run(trace, tmp_path):
    with pytest.raises(ParamsError, match=r"a run serves the good rows 61 to 90, and there are 80"):
        run_grid(params_on(trace, [1, 2, 3]), tmp_path / "out")
    with pytest.raises(ParamsError, match="nowhere.csv: cannot be read"):
        run_grid(params_on(Path("nowhere.csv"), 1), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "arrow"}, "trace.format: input should be 'azure'"),
        ({"columns": {"when": "arrival"}}, "trace.columns.*'when'"),
        ({"time_unit": "h"}, "trace.time_unit: input should be 's', 'ms', 'us' or 'ns'"),
        ({"speedup": 2.0, "load_factor": 1.0}, "trace: a load_factor stretches the times whatever the speedup"),
    ],
)
def test_wrong_parameters_of_a_trace_are_named(trace, changes, message):
    with pytest.raises(ParamsError, match=message):
        on_trace(trace, **changes)
    with pytest.raises(ParamsError, match="a trace decides the lengths"):
        WorkloadParams.parse({"trace": {"file": "x", "format": "csv"}, "output_length": "spread"}, "test")
