"""GPU metrics and the driver's versions, through NVML; the only importer of pynvml (the module of nvidia-ml-py)."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from ossconsole.telemetry.samples import GpuSample, GpuSnapshot

T = TypeVar("T")

# Bits of nvmlClocksEventReasons (nvml.h) in words, as numbers: their names in pynvml change. The idle bit (1) is left
# out: an idle GPU is not throttled.
_THROTTLE_WORDS = {
    0x002: "application clocks",
    0x004: "power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "thermal (software)",
    0x040: "thermal (hardware)",
    0x080: "power brake",
    0x100: "display clocks",
}
_NO_GPU = "The run uses the CPU: the NVIDIA driver lists no GPU."
_MIG_INSTANCE = "MIG is on: NVML reports no utilization for an instance."
REINSTALL = "pip install --upgrade --force-reinstall torch torchvision osstorchconnector"
CONTEXT_BYTES = 10**9
"""More than a CUDA context takes (300 to 600 MB)."""
_UUID_PREFIX = len("GPU-")
_MIG_EMPTY = "MIG is on, and no instance of this GPU is visible to this user."


class GpuReader:
    """Reads every GPU. Call `open` first; neither `open` nor `read` raises for an error of NVML.

    `nvml` replaces the pynvml module (tests).
    """

    def __init__(self, nvml: Any = None) -> None:
        self._nvml: Any = nvml
        self._problem = "The GPU reader is not open yet."
        self._opened = False

    def open(self) -> None:
        """Loads NVML. Where that fails, every later snapshot has the reason."""
        try:
            if self._nvml is None:
                import pynvml

                self._nvml = pynvml
            self._nvml.nvmlInit()
        except ImportError as error:
            self._problem = f"GPU metrics need nvidia-ml-py, which cannot be imported ({error})."
        except self._nvml.NVMLError as error:
            self._problem = self._init_problem(error)
        else:
            self._opened = True
            self._problem = ""

    def close(self) -> None:
        """Shuts NVML down; later snapshots are empty."""
        if not self._opened:
            return
        self._opened = False
        self._problem = "The GPU reader is closed."
        try:
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError as error:
            self._problem = f"NVML did not close: {error}."

    def read(self, pids: Collection[int] = ()) -> GpuSnapshot:
        """A snapshot of every GPU; `pids` are our own processes, this one when empty."""
        if not self._opened:
            return GpuSnapshot(problem=self._problem)
        try:
            count = self._nvml.nvmlDeviceGetCount()
        except self._nvml.NVMLError as error:
            return GpuSnapshot(problem=f"NVML does not answer: {self._words(error)}.")
        own = frozenset(pids) or frozenset({os.getpid()})
        gpus = tuple(sample for index in range(count) for sample in self._read_gpu(index, own))
        return GpuSnapshot(gpus, "" if gpus else _NO_GPU)

    def _read_gpu(self, index: int, own: frozenset[int]) -> list[GpuSample]:
        try:
            handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
            whole = self._sample(index, handle, own)
            mode = self._ask(self._nvml.nvmlDeviceGetMigMode, handle)
            if mode is None or mode[0] != self._nvml.NVML_DEVICE_MIG_ENABLE:
                return [whole]
            return self._mig_samples(whole, handle, own) or [msgspec.structs.replace(whole, problem=_MIG_EMPTY)]
        except self._nvml.NVMLError as error:
            return [GpuSample(index=index, problem=self._gpu_problem(error))]

    def _sample(self, index: int, handle: Any, own: frozenset[int]) -> GpuSample:
        nvml = self._nvml
        utilization = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        power = self._ask(nvml.nvmlDeviceGetPowerUsage, handle)
        limit = self._ask(nvml.nvmlDeviceGetEnforcedPowerLimit, handle)
        return GpuSample(
            index=index,
            name=_text(self._ask(nvml.nvmlDeviceGetName, handle)),
            uuid=_text(self._ask(nvml.nvmlDeviceGetUUID, handle)),
            utilization=None if utilization is None else float(utilization.gpu),
            memory_used=None if memory is None else int(memory.used),
            memory_total=None if memory is None else int(memory.total),
            own_memory_used=self._own_memory(handle, own),
            power=None if power is None else power / 1000,
            power_limit=None if limit is None else limit / 1000,
            temperature=self._ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            sm_clock=self._ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
            memory_clock=self._ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM),
            throttle=self._throttle(handle),
        )

    def _mig_samples(self, whole: GpuSample, handle: Any, own: frozenset[int]) -> list[GpuSample]:
        """One sample per MIG instance; NVML reports power, clocks and temperature for the whole GPU only."""
        nvml = self._nvml
        found = []
        for slot in range(self._ask(nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
            instance = self._ask(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, slot)
            if instance is None:
                continue
            memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, instance)
            sample = msgspec.structs.replace(
                whole,
                mig=slot,
                name=_text(self._ask(nvml.nvmlDeviceGetName, instance)) or whole.name,
                uuid=_text(self._ask(nvml.nvmlDeviceGetUUID, instance)),
                utilization=None,
                memory_used=None if memory is None else int(memory.used),
                memory_total=None if memory is None else int(memory.total),
                own_memory_used=self._own_memory(instance, own),
                problem=_MIG_INSTANCE,
            )
            found.append(sample)
        return found

    def _own_memory(self, handle: Any, own: frozenset[int]) -> int | None:
        processes = self._ask(self._nvml.nvmlDeviceGetComputeRunningProcesses, handle)
        used = [process.usedGpuMemory for process in processes or () if process.pid in own]
        known = [int(amount) for amount in used if amount is not None]
        return sum(known) if known else None

    def _throttle(self, handle: Any) -> tuple[str, ...]:
        bits = None
        # The old name goes away with CUDA 14; drivers before 535 lack the new one.
        for name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
            if bits is None and hasattr(self._nvml, name):
                bits = self._ask(getattr(self._nvml, name), handle)
        return tuple(word for bit, word in _THROTTLE_WORDS.items() if (bits or 0) & bit)

    def _ask(self, call: Callable[..., T], *arguments: Any) -> T | None:
        """The result of `call`, None where this GPU or driver does not support it. Raises where the GPU is lost."""
        try:
            return call(*arguments)
        except self._nvml.NVMLError as error:
            if error.value in self._fatal:
                raise
            return None

    @property
    def _fatal(self) -> frozenset[int]:
        nvml = self._nvml
        return frozenset({nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED, nvml.NVML_ERROR_UNINITIALIZED})

    def _gpu_problem(self, error: Any) -> str:
        nvml = self._nvml
        known = {
            nvml.NVML_ERROR_GPU_IS_LOST: "fell off the bus (NVML: GPU is lost); see dmesg for an Xid, the machine "
            "needs a restart",
            nvml.NVML_ERROR_RESET_REQUIRED: "needs a reset before it can be used",
            nvml.NVML_ERROR_NO_PERMISSION: "may not be read by this user",
        }
        return f"This GPU {known.get(error.value, f'does not answer ({self._words(error)})')}."

    def _init_problem(self, error: Any) -> str:
        nvml = self._nvml
        known = {
            nvml.NVML_ERROR_LIBRARY_NOT_FOUND: "The run uses the CPU: no NVIDIA driver (libnvidia-ml.so.1 not found).",
            nvml.NVML_ERROR_DRIVER_NOT_LOADED: "The NVIDIA driver is installed but not loaded; the run uses the CPU.",
            nvml.NVML_ERROR_NO_PERMISSION: "This user may not read the GPUs (NVML: no permission); request access to "
            "/dev/nvidiactl.",
            nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "The NVIDIA driver was updated under the running kernel module "
            "(NVML: version mismatch); restart the machine.",
        }
        return known.get(error.value, f"NVML does not start: {self._words(error)}.")

    def _words(self, error: Any) -> str:
        return str(error).strip() or f"error {error.value}"


class GpuProcess(msgspec.Struct, frozen=True):
    """A process that uses memory of a GPU, in bytes; `name` is "another container" for one outside this container."""

    pid: int
    name: str
    bytes: int


def memory_of_others(uuid: str, nvml: Any = None) -> tuple[GpuProcess, ...]:
    """The other processes that use memory of this GPU, the largest first; empty where NVML does not report them."""
    if nvml is None:
        import pynvml

        nvml = pynvml
    try:
        nvml.nvmlInit()
        try:
            running = nvml.nvmlDeviceGetComputeRunningProcesses(nvml.nvmlDeviceGetHandleByUUID(uuid))
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError:
        return ()
    others = [
        GpuProcess(process.pid, _process_name(process.pid), int(process.usedGpuMemory))
        for process in running
        if process.pid != os.getpid() and process.usedGpuMemory is not None
    ]
    return tuple(sorted(others, key=lambda other: -other.bytes))


def _process_name(pid: int) -> str:
    import psutil

    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return "another container"


def _text(value: str | bytes | None) -> str | None:
    """NVML's texts are bytes in some versions of pynvml."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


class Driver(msgspec.Struct, frozen=True):
    """The driver's own version, and the newest CUDA version it can run, such as (12, 4)."""

    version: str
    cuda: tuple[int, int]


def cuda_problem(cuda_built: str, driver: Driver) -> tuple[str, str]:
    """Why torch cannot use a GPU that has this driver, and a remedy. `cuda_built` is torch's CUDA version, or ""."""
    built = f"torch is built for CUDA {cuda_built}" if cuda_built else "torch is built without CUDA"
    runs = f"driver {driver.version} runs up to CUDA {driver.cuda[0]}.{driver.cuda[1]}"
    if not cuda_built:
        return f"{built}, though there is a GPU ({runs}).", REINSTALL
    if int(cuda_built.partition(".")[0]) > driver.cuda[0]:
        index = f"cu{driver.cuda[0]}{driver.cuda[1]}"
        remedy = f"Update the driver, or install a torch built for it (see pytorch.org, build {index})."
        return f"{built}, but {runs}: torch cannot use the GPU.", remedy
    return f"{built} and {runs}, but torch finds no usable GPU.", "nvidia-smi; echo $CUDA_VISIBLE_DEVICES"


def read_gpus() -> tuple[GpuSample, ...]:
    """One reading of all GPUs and MIG instances; none without NVML or a driver."""
    reader = GpuReader()
    reader.open()
    try:
        return reader.read().gpus
    finally:
        reader.close()


def visible_gpus(gpus: Sequence[GpuSample], environ: Mapping[str, str] = os.environ) -> tuple[GpuSample, ...]:
    """Those of `gpus` that CUDA_VISIBLE_DEVICES leaves visible, in its order; all of them where it is not set.

    It lists indices, UUIDs or unique beginnings of them; like CUDA, this stops at the first that is not valid. Without
    it CUDA uses at most one MIG instance.
    """
    listed = environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        whole = tuple(gpu for gpu in gpus if gpu.mig is None)
        return whole or tuple(gpus[:1])
    found: list[GpuSample] = []
    for name in (part.strip() for part in listed.split(",")):
        matching = [gpu for gpu in gpus if _has_name(gpu, name)]
        if not name or len(matching) != 1 or matching[0] in found:
            break
        found.append(matching[0])
    return tuple(found)


def _has_name(gpu: GpuSample, name: str) -> bool:
    if name.isdigit():
        return gpu.mig is None and gpu.index == int(name)
    return bool(gpu.uuid) and len(name) > _UUID_PREFIX and str(gpu.uuid).startswith(name)


def emptiest(gpus: Sequence[GpuSample], count: int = 1) -> tuple[GpuSample, ...]:
    """The `count` GPUs on which other processes hold the least memory, in the order of `gpus`.

    Differences of less than a CUDA context, which an idle console may hold, do not count.
    """
    ranked = sorted(range(len(gpus)), key=lambda at: (_held_by_others(gpus[at]) // CONTEXT_BYTES, at))
    return tuple(gpus[at] for at in sorted(ranked[:count]))


def _held_by_others(gpu: GpuSample) -> int:
    return (gpu.memory_used or 0) - (gpu.own_memory_used or 0)


def read_driver() -> Driver | None:
    """The driver's versions; None without a working driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            version = _text(pynvml.nvmlSystemGetDriverVersion())
            cuda = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())  # 1000 x major + 10 x minor
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None
    return Driver(version or "", (cuda // 1000, cuda % 1000 // 10))
