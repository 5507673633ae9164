"""Traces of every format, rows that are bad, and a trace as an experiment's load."""

import json
import os
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from simulation import ONE_RUN, PAPER_L4

from driftsched_lib.errors import ParamsError
from driftsched_lib.experiments.grid import run_grid
from driftsched_lib.experiments.params import Params
from driftsched_lib.validation import PROJECT
from driftsched_lib.workloads.params import WorkloadParams
from driftsched_lib.workloads.synthetic import make_load, trace_window
from driftsched_lib.workloads.traces import CHUNK, FIELDS, FORMATS, Faults, read_trace

AZURE = PROJECT.parent / "shared" / "traces"
LENGTH = "no whole number from 1 to 10,000,000"
ROWS = [(0.0, 100, 10), (1.5, 200, 20), (1.5, 7, 3)]
CLIENTS = """
seed: 3
duration_s: 2000
clients:
  - {tenant: acme, tier: premium, category: report, rate_per_s: 2.0, arrival_cv: 3.0,
     prompt_tokens: {median: 300, log_sd: 0.5}, output_tokens: {median: 80}}
  - {tenant: crawler, tier: batch, rate_per_s: 1.0,
     prompt_tokens: {median: 50, log_sd: 0.0}, output_tokens: {median: 9}}
"""


def read(*arguments, **options):
    """The whole of a trace."""
    return pd.concat(read_trace(*arguments, **options))


def skipped(path, format="csv", text=None):
    """The good rows of a trace, of this text if one is given, and the faults of its bad ones."""
    if text is not None:
        path.write_text(text)
    faults = Faults()
    return read(path, format, on_bad_row="skip", faults=faults), faults


def write(folder, format):
    """A file of this format with the three `ROWS`."""
    path, columns = folder / format, list(FORMATS[format][2][:3])
    table = pd.DataFrame([(5 + arrival_s, *lengths) for arrival_s, *lengths in ROWS], columns=columns)
    if format == "azure":
        table["TIMESTAMP"] = [f"2023-11-16 18:15:{46.6805900 + arrival_s:010.7f}" for arrival_s, *_ in ROWS]
    if format == "burstgpt":
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


BAD = """arrival,prompt_tokens,output_tokens,tier
0,5,6,
x,5,6,
1,0,6,
2,5,nan,
3,5,1e30,
4,5,2.5,
5,5,,
inf,5,6,
0.5,5,6,gold
9,5,6,batch
8,5,6,
10,5,6,premium
11,5
"""


def test_bad_rows_are_counted_and_shown_by_line_with_the_reason(tmp_path):
    path = tmp_path / "bad.csv"
    rows, faults = skipped(path, text=BAD)
    assert rows.arrival_s.tolist() == [0, 9, 10] and faults.count == 10
    assert faults.first == [
        "line 3: arrival is 'x', no time",
        f"line 4: prompt_tokens is '0', {LENGTH}",
        f"line 5: output_tokens is 'nan', {LENGTH}",
        f"line 6: output_tokens is '1e30', {LENGTH}",
        f"line 7: output_tokens is '2.5', {LENGTH}",
    ]
    chunks, message = read_trace(path, "csv"), r"bad.csv: line 3: arrival is 'x', no time \(on_bad_row: skip leaves"
    assert next(chunks).prompt_tokens.tolist() == [5]  # the good row above it
    with pytest.raises(ParamsError, match=message):
        next(chunks)


def test_bad_rows_are_found_wherever_chunks_end(tmp_path):
    path, n = tmp_path / "long.csv", 2 * CHUNK + 1
    table = pd.DataFrame({"arrival": np.arange(n, dtype=float), "prompt_tokens": 100, "output_tokens": 10, "tier": ""})
    table.loc[CHUNK, "tier"], table.loc[CHUNK + 1, "output_tokens"] = "gold", 0
    table.loc[[CHUNK - 1, 2 * CHUNK - 1, 2 * CHUNK], "arrival"] = [1e9, 5.0, 1.0]
    rows, faults = skipped(path, text=table.to_csv(index=False))
    assert rows.arrival_s.tolist() == [*range(CHUNK - 1), *range(CHUNK + 2, 2 * CHUNK - 1)]
    assert sorted(fault.split(", ")[0] for fault in faults.first) == [
        f"line {CHUNK + 1}: arrival is out of order",
        f"line {CHUNK + 2}: tier is 'gold'",
        f"line {CHUNK + 3}: output_tokens is '0'",
        f"line {2 * CHUNK + 1}: arrival is out of order",
        f"line {2 * CHUNK + 2}: arrival is out of order",
    ]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("1700158546.5", "1700158548"),
        ("2023-11-16 18:15:46.5000000", "2023-11-16 18:15:48"),
        ("2023-11-16T18:15:46.500Z", "2023-11-16T19:15:48.000+01:00"),
        ("2023-03-26 01:59:59.5", "2023-03-26 02:00:01"),  # where clocks go forward
    ],
)
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
def test_times_are_the_same_in_every_time_zone(first, second, zone, tmp_path, monkeypatch):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        path = tmp_path / "times.csv"
        path.write_text(f"arrival,prompt_tokens,output_tokens\n{first},1,1\n{second},1,1\n")
        assert read(path, "csv").arrival_s.tolist() == pytest.approx([0.0, 1.5], abs=1e-5)
    finally:
        monkeypatch.undo()
        time.tzset()


RAGGED = "arrival,prompt_tokens,output_tokens\n0,5,6,7,8\n\n1,7\n2,8,9\n"
FAILED = '{"start_times": [3.0, 1.0, 2.0], "input_lens": [5, 6, 7], "output_lens": [8, 0, 9]}'


def json_lines(*rows):
    return "\n".join(f'{{"timestamp": {a}, "input_length": {p}, "output_length": 3}}\n' for a, p in rows)


def late(*times):
    return "\n".join(["arrival,prompt_tokens,output_tokens", *(f"{time},1,1" for time in times)])


ABSURD = json_lines((0, 1), ("9" * 400, 1), (5, "9" * 400), (2000, 1))


@pytest.mark.parametrize(
    ("format", "text", "kept", "found"),
    [
        ("csv", RAGGED, [[0, 5, 6], [2, 8, 9]], [f"line 3: output_tokens is '', {LENGTH}"]),
        ("mooncake", ABSURD, [[0, 1, 3], [2, 1, 3]], ["line 3", "line 5"]),
        ("mooncake", "\ufeff" + json_lines((0, 5)), [[0, 5, 3]], []),  # a byte order mark
        ("vllm_bench", FAILED, [[0, 7, 9], [1, 5, 8]], [f"request 2: output_tokens is 0, {LENGTH}"]),
        # one absurdly late time spoils no other row
        ("csv", late(0, 1e11, 1, 2, 3), [[0, 1, 1], [1, 1, 1], [2, 1, 1], [3, 1, 1]], ["line 3: arrival is out"]),
        ("csv", late(5, 1, 2), [[0, 1, 1], [1, 1, 1]], ["line 2: arrival is out"]),
        ("csv", late(0, 9, 8, 10), [[0, 1, 1], [9, 1, 1], [10, 1, 1]], ["line 4: arrival is out"]),
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


@pytest.mark.parametrize(
    ("format", "content", "message"),
    [
        ("azure", "a,b\n1,2\n", "lacks the column TIMESTAMP, ContextTokens, GeneratedTokens"),
        ("csv", b"\xff\xfe\x00", "cannot be read as csv"),
        ("csv", "", "cannot be read as csv: No columns"),
        ("parquet", "no parquet", "cannot be read as parquet"),
        ("mooncake", "[1, 2]\n", "line 1: arrival is .no JSON object"),
        ("mooncake", '{"timestamp": 1}\n', "line 1: arrival is .no JSON object of timestamp, input_length"),
        ("mooncake", "[" * 100_000, "line 1: arrival is .no JSON object"),
        ("vllm_bench", '{"input_lens": [1]}', "was it saved with --save-detailed"),
        ("vllm_bench", "[]", "was it saved with --save-detailed"),
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


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_a_long_trace_is_read_in_little_memory(format, tmp_path):
    path, n = tmp_path / "long", 200_000
    table = pd.DataFrame({"arrival": np.arange(n) / 10, "prompt_tokens": 100, "output_tokens": 10, "tenant": "a"})
    table.to_parquet(path, row_group_size=5000) if format == "parquet" else table.to_csv(path, index=False)
    tracemalloc.start()
    assert sum(map(len, read_trace(path, format))) == n
    assert tracemalloc.get_traced_memory()[1] < 30e6
    tracemalloc.stop()


@pytest.mark.skipif(not AZURE.exists(), reason="the Azure traces are not at hand")
@pytest.mark.parametrize(("name", "n"), [("code", 8819), ("conv", 19366)])
def test_the_azure_traces_are_read_whole(name, n):
    rows = read(AZURE / f"AzureLLMInferenceTrace_{name}.csv", "azure")
    assert len(rows) == n and rows.arrival_s.iloc[0] == 0.0 and 3000 < rows.arrival_s.iloc[-1] < 4000


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


def test_a_row_that_names_no_tier_has_the_default_of_whatever_tiers_there_are(trace):
    workload = on_trace(trace, default_tier="silver").model_copy(update={"tenants": {"bot": "gold"}})
    tiers = {request.tenant: request.tier for request in served(workload, tiers=["gold", "silver"])}
    assert tiers == {"acme": "silver", "bot": "gold"}


def test_bad_rows_of_a_run_are_shown_and_a_changed_trace_is_read_anew(trace, tmp_path):
    lines = trace.read_text().splitlines()
    before, _ = trace_window(on_trace(trace).trace, 30)
    trace.write_text("\n".join([*lines[:3], *["100,none,5,"] * 7, *lines[3:]]))
    os.utime(trace, (0, 0))
    message = r"(?s)trace.csv: 7 bad rows were left out\n  line 4: prompt_tokens.*and 2 more$"
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


def test_no_category_and_no_limit_tells_an_estimator_a_length(trace):
    requests = served(on_trace(trace))
    assert len({request.fixed_output_tokens for request in requests}) > 1
    assert len({(request.job_type, request.max_tokens) for request in requests}) == 1
    assert all(request.fixed_output_tokens <= request.max_tokens for request in requests)


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
        ({"speedup": 2.0, "load_factor": 1.0}, "trace: a load_factor stretches the times whatever the speedup"),
    ],
)
def test_wrong_parameters_of_a_trace_are_named(trace, changes, message):
    with pytest.raises(ParamsError, match=message):
        on_trace(trace, **changes)
    with pytest.raises(ParamsError, match="a trace decides the lengths"):
        WorkloadParams.parse({"trace": {"file": "x", "format": "csv"}, "output_length": "spread"}, "test")
