"""One reading of the GPUs and of the host. None means that the machine does not report a value: it is never a guess.

Units: percent 0 to 100, bytes, bytes/s, watts, degrees Celsius, MHz.
"""

from __future__ import annotations

import msgspec


class GpuSample(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU, or one MIG instance of it (`mig` is its number; power, clocks and temperature are the whole GPU's).

    `problem` is the reason where metrics are missing; `throttle` names the reasons for lowered clocks;
    `own_memory_used` is the memory of our own processes, None where NVML does not know them (often in a container).
    """

    index: int
    name: str | None = None
    uuid: str | None = None
    mig: int | None = None
    utilization: float | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    own_memory_used: int | None = None
    power: float | None = None
    power_limit: float | None = None
    temperature: int | None = None
    sm_clock: int | None = None
    memory_clock: int | None = None
    throttle: tuple[str, ...] = ()
    problem: str = ""


class GpuSnapshot(msgspec.Struct, frozen=True):
    """Every GPU, in index order; `problem` is the reason where there is none, or where NVML does not work."""

    gpus: tuple[GpuSample, ...] = ()
    problem: str = ""


class HostSample(msgspec.Struct, frozen=True, kw_only=True):
    """The machine, and the part that our process and its children use.

    `own_cpu` is in percent of one core. `receive_rate` and `send_rate` exclude the loopback interface; `loopback_rate`
    is its rate, with the sandbox's traffic. Rates and `cpu` are None in the first sample.
    """

    cores: int
    cpu: float | None
    load: float
    own_cpu: float | None
    own_memory: int
    own_processes: int
    own_open_files: int | None
    memory_used: int
    memory_total: int
    receive_rate: float | None
    send_rate: float | None
    loopback_rate: float | None


class WorkerUsage(msgspec.Struct, frozen=True, kw_only=True):
    """A worker process of a watched loader; all shares are of its time since the last sample, 0 to 1.

    `cpu` is the share in which it had a core, `runnable` the share in which it had one or waited for one. `idle` is the
    share in which it waited for work; None where the kernel does not show that.
    """

    pid: int
    cpu: float
    runnable: float = 0.0
    idle: float | None = None
