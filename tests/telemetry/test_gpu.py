from __future__ import annotations

import os
import subprocess
import sys

import pynvml
import pytest

from ossconsole.telemetry.gpu import GpuProcess, GpuReader, memory_of_others
from ossconsole.telemetry.samples import GpuSample
from tests.telemetry.fake_nvml import FakeNvml

# Calls of one GPU whose failure may cost their own fields and nothing else.
PER_GPU_CALLS = {
    "nvmlDeviceGetName": ["name"],
    "nvmlDeviceGetUUID": ["uuid"],
    "nvmlDeviceGetUtilizationRates": ["utilization"],
    "nvmlDeviceGetMemoryInfo": ["memory_used", "memory_total"],
    "nvmlDeviceGetPowerUsage": ["power"],
    "nvmlDeviceGetEnforcedPowerLimit": ["power_limit"],
    "nvmlDeviceGetTemperature": ["temperature"],
    "nvmlDeviceGetClockInfo": ["sm_clock", "memory_clock"],
    "nvmlDeviceGetComputeRunningProcesses": ["own_memory_used"],
    "nvmlDeviceGetMigMode": [],
}


def opened(nvml: FakeNvml) -> GpuReader:
    reader = GpuReader(nvml)
    reader.open()
    return reader


@pytest.mark.parametrize("count", [1, 8])
def test_every_figure_of_every_gpu(count: int) -> None:
    nvml = FakeNvml(count)
    nvml.processes[0] = [(os.getpid(), 300), (os.getpid() + 1, 500)]
    snapshot = opened(nvml).read()
    assert snapshot.problem == ""
    assert [gpu.index for gpu in snapshot.gpus] == list(range(count))
    assert snapshot.gpus[0] == GpuSample(
        index=0,
        name="Fake H200",
        uuid="GPU-0",
        utilization=50.0,
        memory_used=1 << 30,
        memory_total=4 << 30,
        own_memory_used=300,
        power=312.5,
        power_limit=700.0,
        temperature=61,
        sm_clock=1980,
        memory_clock=3201,
    )


def test_a_missing_gpu_is_explained() -> None:
    snapshot = opened(FakeNvml(0)).read()
    assert snapshot.gpus == ()
    assert "run uses the CPU" in snapshot.problem


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
            "The run uses the CPU: no NVIDIA driver (libnvidia-ml.so.1 not found).",
        ),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "not loaded"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "may not read the GPUs"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "restart the machine"),
        (pynvml.NVML_ERROR_UNKNOWN, "NVML does not start"),
    ],
)
def test_nvml_that_does_not_start(code: int, words: str) -> None:
    nvml = FakeNvml(2)
    nvml.failures["nvmlInit", None] = code
    snapshot = opened(nvml).read()
    assert snapshot.gpus == ()
    assert words in snapshot.problem


@pytest.mark.parametrize("call", PER_GPU_CALLS)
@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_NO_PERMISSION])
def test_a_refused_figure_costs_only_itself(call: str, code: int) -> None:
    nvml = FakeNvml(2)
    nvml.processes = {0: [(os.getpid(), 1)], 1: [(os.getpid(), 1)]}
    nvml.failures[call, 1] = code
    healthy, refused = opened(nvml).read().gpus
    for field in GpuSample.__struct_fields__:
        if field in {"index", "uuid", "utilization"} and field not in PER_GPU_CALLS[call]:
            continue
        expected = None if field in PER_GPU_CALLS[call] else getattr(healthy, field)
        assert getattr(refused, field) == expected, field


@pytest.mark.parametrize("call", ["nvmlDeviceGetHandleByIndex", *PER_GPU_CALLS])
def test_a_lost_gpu_is_reported_and_the_others_are_read(call: str) -> None:
    nvml = FakeNvml(8)
    nvml.failures[call, 3] = pynvml.NVML_ERROR_GPU_IS_LOST
    gpus = opened(nvml).read().gpus
    assert [gpu.index for gpu in gpus] == list(range(8))
    assert "fell off the bus" in gpus[3].problem
    assert gpus[3].utilization is None
    assert [gpu.problem for gpu in gpus if gpu.index != 3] == [""] * 7
    assert all(gpu.power == 312.5 for gpu in gpus if gpu.index != 3)


def test_nvml_that_stops_answering_and_comes_back() -> None:
    nvml = FakeNvml(1)
    reader = opened(nvml)
    nvml.failures["nvmlDeviceGetCount", None] = pynvml.NVML_ERROR_UNKNOWN
    assert "does not answer" in reader.read().problem
    nvml.failures.clear()
    assert len(reader.read().gpus) == 1


def test_throttle_reasons_are_named_and_idle_is_none() -> None:
    nvml = FakeNvml(2)
    nvml.reasons = {
        0: pynvml.nvmlClocksThrottleReasonSwPowerCap | pynvml.nvmlClocksThrottleReasonHwThermalSlowdown,
        1: pynvml.nvmlClocksThrottleReasonGpuIdle,
    }
    gpus = opened(nvml).read().gpus
    assert gpus[0].throttle == ("power cap", "thermal (hardware)")
    assert gpus[1].throttle == ()
    # Drivers before 535 know the reasons under the old name only.
    nvml.failures[("nvmlDeviceGetCurrentClocksEventReasons", 0)] = pynvml.NVML_ERROR_FUNCTION_NOT_FOUND
    assert opened(nvml).read().gpus[0].throttle == ("power cap", "thermal (hardware)")


def test_mig_instances_take_the_place_of_their_gpu() -> None:
    nvml = FakeNvml(2)
    nvml.mig = {1: 2}
    nvml.failures["nvmlDeviceGetUtilizationRates", 1] = pynvml.NVML_ERROR_NOT_SUPPORTED
    whole, first, second = opened(nvml).read().gpus
    assert (whole.index, whole.mig, whole.problem) == (0, None, "")
    assert (first.index, first.mig, second.mig) == (1, 0, 1)
    assert first.name == "Fake H200 MIG 1g.18gb"
    assert first.utilization is None
    assert "MIG is on" in first.problem
    assert first.power == 312.5


def test_mig_without_instances_is_reported() -> None:
    nvml = FakeNvml(1)
    nvml.mig = {0: 0}
    (gpu,) = opened(nvml).read().gpus
    assert "no instance" in gpu.problem


def test_memory_of_processes_nvml_does_not_know_is_unknown() -> None:
    nvml = FakeNvml(1)
    nvml.processes[0] = [(os.getpid() + 1, 500), (os.getpid(), None)]
    assert opened(nvml).read().gpus[0].own_memory_used is None
    nvml.processes[0] = [(7, 500), (8, 200), (9, 1)]
    assert opened(nvml).read(pids={7, 8}).gpus[0].own_memory_used == 700


def test_a_closed_reader_shuts_nvml_down() -> None:
    nvml = FakeNvml(1)
    reader = opened(nvml)
    reader.close()
    assert not nvml.open
    assert "closed" in reader.read().problem


def test_before_open_there_is_a_reason() -> None:
    assert GpuReader(FakeNvml(1)).read().problem


def test_the_real_binding_on_this_machine() -> None:
    reader = GpuReader()
    reader.open()
    snapshot = reader.read()
    reader.close()
    assert bool(snapshot.gpus) != bool(snapshot.problem)


@pytest.mark.gpu
def test_a_real_gpu_reports_power_and_memory() -> None:
    reader = GpuReader()
    reader.open()
    snapshot = reader.read()
    reader.close()
    if not snapshot.gpus:
        pytest.skip(snapshot.problem)
    gpu = snapshot.gpus[0]
    assert gpu.name
    assert gpu.memory_total is None or gpu.memory_total > 0
    assert gpu.power is None or 0 < gpu.power < 3000


def test_pynvml_is_loaded_by_open_only() -> None:
    code = (
        "import sys, ossconsole.telemetry.sampler, ossconsole.telemetry.runs, ossconsole.telemetry.runs\n"
        "from ossconsole.telemetry.gpu import GpuReader\n"
        "assert not {'pynvml', 'torch', 'textual', 'oss2'} & set(sys.modules)\n"
        "GpuReader().open()\n"
        "assert 'pynvml' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_who_else_holds_the_memory_of_a_gpu() -> None:
    nvml = FakeNvml(2)
    parent, no_process = os.getppid(), 2**22 + 1
    nvml.processes[1] = [(os.getpid(), 5), (no_process, 7 << 30), (parent, 9 << 30), (parent, None)]
    others = memory_of_others("GPU-1", nvml)
    assert [(other.pid, other.bytes) for other in others] == [(parent, 9 << 30), (no_process, 7 << 30)]
    assert others[1] == GpuProcess(no_process, "another container", 7 << 30)
    assert not nvml.open
    nvml.failures["nvmlDeviceGetComputeRunningProcesses", 1] = pynvml.NVML_ERROR_NOT_SUPPORTED
    assert memory_of_others("GPU-1", nvml) == ()
