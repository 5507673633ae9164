"""Telemetry of the machine while an engine serves: NVML on a GPU (the paper's columns), psutil on a CPU."""

import threading
import time
from contextlib import suppress
from functools import partial

import psutil
import pynvml

GPU = {
    "gpu_utilisation_percent": lambda gpu: pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
    "gpu_memory_used_mib": lambda gpu: pynvml.nvmlDeviceGetMemoryInfo(gpu).used / 2**20,
    "gpu_power_w": lambda gpu: pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
    "gpu_temperature_c": lambda gpu: pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU),
    "gpu_sm_clock_mhz": lambda gpu: pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM),
    "gpu_memory_clock_mhz": lambda gpu: pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_MEM),
}
CPU = {
    "cpu_utilisation_percent": psutil.cpu_percent,
    "memory_used_mib": lambda: psutil.virtual_memory().used / 2**20,
    "process_memory_mib": lambda: psutil.Process().memory_info().rss / 2**20,
    "cpu_clock_mhz": lambda: getattr(psutil.cpu_freq(), "current", float("nan")),
    "load_1min": lambda: psutil.getloadavg()[0],
}


class Telemetry:
    """Sample the machine every `interval_s` seconds in a thread, as a context manager.

    Attributes:
        columns: `time_s`, then the names of what is sampled here.
        rows: the samples; `time_s` counts from the entry into the context.
    """

    def __init__(self, interval_s: float):
        self.interval_s = interval_s
        self.rows: list[tuple[float, ...]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._sources = CPU
        with suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
            self._sources = {name: partial(sample, gpu) for name, sample in GPU.items()} | CPU
        self.columns = ("time_s", *self._sources)

    def __enter__(self) -> "Telemetry":
        self._started = time.monotonic()
        psutil.cpu_percent()
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self.interval_s):
            now_s = time.monotonic() - self._started
            self.rows.append((now_s, *(sample() for sample in self._sources.values())))
