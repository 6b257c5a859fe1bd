"""A stand-in for the pynvml module: as many GPUs as asked for, and any call of any GPU can be made to fail."""

# ruff: noqa: N802 - the names are NVML's

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pynvml


class FakeNvml:
    """Has the names that the reader uses; constants and errors are the real module's.

    `failures` maps (call, GPU index or None for the calls without one) to an NVML error code. `mig` maps a GPU index
    to the number of its instances.
    """

    def __init__(self, gpus: int) -> None:
        self.gpus = gpus
        self.failures: dict[tuple[str, int | None], int] = {}
        self.mig: dict[int, int] = {}
        self.processes: dict[int, list[tuple[int, int | None]]] = {}
        self.reasons: dict[int, int] = {}
        self.open = False

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("NVML", "nvmlClocks")):
            return getattr(pynvml, name)
        raise AttributeError(name)

    def _enter(self, call: str, index: int | None = None) -> None:
        code = self.failures.get((call, index))
        if code is not None:
            raise pynvml.NVMLError(code)

    def nvmlInit(self) -> None:
        self._enter("nvmlInit")
        self.open = True

    def nvmlShutdown(self) -> None:
        self._enter("nvmlShutdown")
        self.open = False

    def nvmlDeviceGetCount(self) -> int:
        self._enter("nvmlDeviceGetCount")
        return self.gpus

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        self._enter("nvmlDeviceGetHandleByIndex", index)
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        return int(uuid.removeprefix("GPU-"))

    def nvmlDeviceGetName(self, handle: int) -> str:
        self._enter("nvmlDeviceGetName", handle)
        return "Fake H200" if handle < 1000 else "Fake H200 MIG 1g.18gb"

    def nvmlDeviceGetUUID(self, handle: int) -> bytes:
        self._enter("nvmlDeviceGetUUID", handle)
        return f"GPU-{handle}".encode()

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:
        self._enter("nvmlDeviceGetUtilizationRates", handle)
        return SimpleNamespace(gpu=50 + handle, memory=10)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        self._enter("nvmlDeviceGetMemoryInfo", handle)
        return SimpleNamespace(used=1 << 30, total=4 << 30, free=3 << 30)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        self._enter("nvmlDeviceGetPowerUsage", handle)
        return 312_500

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> int:
        self._enter("nvmlDeviceGetEnforcedPowerLimit", handle)
        return 700_000

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        self._enter("nvmlDeviceGetTemperature", handle)
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return 61

    def nvmlDeviceGetClockInfo(self, handle: int, clock: int) -> int:
        self._enter("nvmlDeviceGetClockInfo", handle)
        return {pynvml.NVML_CLOCK_SM: 1980, pynvml.NVML_CLOCK_MEM: 3201}[clock]

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: int) -> int:
        self._enter("nvmlDeviceGetCurrentClocksEventReasons", handle)
        return self.reasons.get(handle, 0)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> int:
        self._enter("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        return self.reasons.get(handle, 0)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:
        self._enter("nvmlDeviceGetComputeRunningProcesses", handle)
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.processes.get(handle, [])]

    def nvmlDeviceGetMigMode(self, handle: int) -> list[int]:
        self._enter("nvmlDeviceGetMigMode", handle)
        if handle not in self.mig:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [pynvml.NVML_DEVICE_MIG_ENABLE, pynvml.NVML_DEVICE_MIG_ENABLE]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: int) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: int, slot: int) -> int:
        if slot >= self.mig[handle]:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return 1000 + 10 * handle + slot
