"""Telemetry of the machine while a run is served: NVML on a GPU (the paper's columns), psutil on a CPU."""

import threading
import time

import psutil
import pynvml

GPU_COLUMNS = (
    "gpu_utilisation_percent",
    "gpu_memory_used_mib",
    "gpu_power_w",
    "gpu_temperature_c",
    "gpu_sm_clock_mhz",
    "gpu_memory_clock_mhz",
)
CPU_COLUMNS = ("cpu_utilisation_percent", "memory_used_mib", "process_memory_mib", "cpu_clock_mhz", "load_1min")


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
        self._process = psutil.Process()
        try:
            pynvml.nvmlInit()
            self._gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
        except pynvml.NVMLError:
            self._gpu = None
        self.columns = ("time_s", *(GPU_COLUMNS if self._gpu is not None else ()), *CPU_COLUMNS)

    def __enter__(self) -> "Telemetry":
        self._started = time.monotonic()
        psutil.cpu_percent()
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._stop.set()
        self._thread.join()
        if self._gpu is not None:
            pynvml.nvmlShutdown()

    def _run(self) -> None:
        while not self._stop.wait(self.interval_s):
            gpu = _sample_gpu(self._gpu) if self._gpu is not None else ()
            self.rows.append((time.monotonic() - self._started, *gpu, *self._sample_cpu()))

    def _sample_cpu(self) -> tuple[float, ...]:
        frequency = psutil.cpu_freq()
        return (
            psutil.cpu_percent(),
            psutil.virtual_memory().used / 2**20,
            self._process.memory_info().rss / 2**20,
            frequency.current if frequency else float("nan"),
            psutil.getloadavg()[0],
        )


def _sample_gpu(gpu) -> tuple[float, ...]:
    return (
        pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
        pynvml.nvmlDeviceGetMemoryInfo(gpu).used / 2**20,
        pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
        pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU),
        pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM),
        pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_MEM),
    )
