"""Telemetry of the machine that the tests run on."""

import time

import psutil

from driftsched_lib.engines.telemetry import Telemetry


def test_samples_are_taken_while_inside_and_fit_their_columns():
    with Telemetry(interval_s=0.01) as telemetry:
        while len(telemetry.rows) < 3:
            time.sleep(0.01)
    taken = list(telemetry.rows)
    time.sleep(0.05)
    assert telemetry.rows == taken
    samples = [dict(zip(telemetry.columns, row, strict=True)) for row in taken]
    times = [sample["time_s"] for sample in samples]
    assert times == sorted(times) and times[0] >= 0.01
    for sample in samples:
        assert 0 <= sample["cpu_utilisation_percent"] <= 100
        assert 0 < sample["process_memory_mib"] < psutil.virtual_memory().total / 2**20
