"""Readings of the host through psutil (CPU, memory, network, our own share), and the limits of our container.

The limits are those of control groups, v2 or v1.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from ossconsole.telemetry.samples import HostSample

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class CpuLimit:
    """A container's CPU limit. `cores` may be 2.5; `seconds()` is the CPU time used so far, None where unknown."""

    cores: float
    seconds: Callable[[], float | None]


@dataclass(frozen=True)
class MemoryLimit:
    """A container's memory limit in bytes; `used()` leaves out the file cache, and is None where unknown."""

    total: int
    used: Callable[[], int | None]


def cpu_limit(root: Path = _ROOT, own: Path = _OWN) -> CpuLimit | None:
    """The tightest CPU limit, None without one."""
    found = []
    for folder in _folders(root, own, "cpu"):
        quota = _words(folder / "cpu.max")  # "<microseconds> <per microseconds>", or "max ..."
        if not quota:
            quota = [*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")]
        if len(quota) == 2 and quota[0].isdigit() and int(quota[1]):
            found.append(CpuLimit(int(quota[0]) / int(quota[1]), _cpu_seconds(root, folder)))
    return min(found, key=lambda limit: limit.cores, default=None)


def memory_limit(root: Path = _ROOT, own: Path = _OWN) -> MemoryLimit | None:
    """The tightest memory limit, None without one; v1 has a number larger than any machine's memory for none."""
    found = []
    for folder in _folders(root, own, "memory"):
        limit = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
        if limit and limit[0].isdigit():
            found.append(MemoryLimit(int(limit[0]), _memory_used(folder)))
    return min(found, key=lambda limit: limit.total, default=None)


def usable_cores(limit: CpuLimit | None = None) -> int:
    """The number of cores that this process may use, by its affinity and the CPU limit of its container."""
    cores = len(os.sched_getaffinity(0))
    limit = limit or cpu_limit()
    return max(1, min(cores, int(limit.cores))) if limit else cores


def processor_name() -> str:
    """The model of the processor, "" where Linux does not say it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        return ""
    return ""


def free_memory() -> int:
    """Bytes that new buffers may use: what the machine or the container has left."""
    memory, limit = psutil.virtual_memory(), memory_limit()
    used = limit.used() if limit is not None else None
    return memory.available if limit is None or used is None else min(memory.available, limit.total - used)


def _folders(root: Path, own: Path, controller: str) -> Iterator[Path]:
    """The control groups of this process with that controller, from its own up to the root that is visible here.

    A container often sees its own group as the root, but its path as on the host, which then does not exist here.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controller if controllers else root
        for depth in range(len(parts := Path(path).parts[1:]), -1, -1):
            if (folder := base.joinpath(*parts[:depth])).is_dir():
                yield folder


def _cpu_seconds(root: Path, folder: Path) -> Callable[[], float | None]:
    def seconds() -> float | None:
        micros = _statistic(folder / "cpu.stat", "usage_usec")
        if micros is not None:
            return micros / 1e6
        nanos = _words(root / "cpuacct" / folder.relative_to(root / "cpu") / "cpuacct.usage") if v1 else []
        return int(nanos[0]) / 1e9 if nanos else None

    v1 = folder.is_relative_to(root / "cpu")
    return seconds


def _memory_used(folder: Path) -> Callable[[], int | None]:
    def used() -> int | None:
        taken = _words(folder / "memory.current") or _words(folder / "memory.usage_in_bytes")
        statistics = folder / "memory.stat"
        cached = _statistic(statistics, "total_inactive_file") or _statistic(statistics, "inactive_file") or 0
        return max(0, int(taken[0]) - cached) if taken else None

    return used


def _statistic(path: Path, name: str) -> int | None:
    words = _words(path)
    return int(words[words.index(name) + 1]) if name in words else None


def _words(path: Path) -> list[str]:
    """The words of the file; empty where it does not exist or cannot be read."""
    try:
        return path.read_text().split()
    except OSError:
        return []


class HostReader:
    """Reads the machine and this process with its children. Rates are over the time since the previous `read`.

    In a container with a limit, cores, CPU use and memory are the container's.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        cpu: CpuLimit | None = None,
        memory: MemoryLimit | None = None,
    ) -> None:
        self._clock = clock
        self._cpu_limit = cpu or cpu_limit()
        self._memory_limit = memory or memory_limit()
        self._container_seconds: float | None = None
        self._before: float | None = None
        self._network: tuple[int, int, int] = (0, 0, 0)
        self._cpu_seconds: dict[tuple[int, float], float] = {}
        self.pids: frozenset[int] = frozenset({os.getpid()})

    @functools.cached_property
    def _own(self) -> psutil.Process:
        """This process; created at the first reading, because that opens a file, which may fail."""
        return psutil.Process()

    @functools.cached_property
    def _descendants(self) -> _Descendants:
        return _Descendants(self._own.pid)

    def read(self) -> HostSample:
        """One sample; `pids` is then this process and its children."""
        now = self._clock()
        elapsed = None if self._before is None else now - self._before
        network, before = _network_bytes(), self._network
        rates = [_rate(new - old, elapsed) for new, old in zip(network, before, strict=True)]
        cores, cpu = self._processors(elapsed)
        memory_used, memory_total = self._memory()
        own_cpu, own_memory, own_processes = self._own_use(elapsed)
        self._before, self._network = now, network
        return HostSample(
            cores=cores,
            cpu=cpu,
            load=psutil.getloadavg()[0],
            own_cpu=own_cpu,
            own_memory=own_memory,
            own_processes=own_processes,
            own_open_files=_open_files(self._own),
            memory_used=memory_used,
            memory_total=memory_total,
            receive_rate=rates[0],
            send_rate=rates[1],
            loopback_rate=rates[2],
        )

    def _processors(self, elapsed: float | None) -> tuple[int, float | None]:
        """The number of cores, and their use in percent."""
        cores, limit = psutil.cpu_count() or 1, self._cpu_limit
        percent = psutil.cpu_percent(interval=None)  # since this thread's last call: the first is meaningless
        if limit is None or limit.cores >= cores:
            return cores, None if elapsed is None else percent
        before, self._container_seconds = self._container_seconds, limit.seconds()
        if before is None or self._container_seconds is None:
            return math.ceil(limit.cores), None
        used = _rate(self._container_seconds - before, elapsed)
        return math.ceil(limit.cores), None if used is None else min(100.0, used / limit.cores * 100)

    def _memory(self) -> tuple[int, int]:
        """Used and total bytes."""
        memory, limit = psutil.virtual_memory(), self._memory_limit
        used = None if limit is None or limit.total >= memory.total else limit.used()
        if limit is None or used is None:
            return memory.total - memory.available, memory.total
        return used, limit.total

    def _own_use(self, elapsed: float | None) -> tuple[float | None, int, int]:
        """CPU in percent of one core, resident bytes, number of processes."""
        uses = [_process_use(process) for process in (self._own, *self._descendants.read())]
        alive = [use for use in uses if use is not None]
        seconds = {key: cpu_seconds for key, cpu_seconds, _ in alive}
        # A process that started since the last reading counts from its start; one that ended no longer counts.
        used = sum(total - self._cpu_seconds.get(key, 0.0) for key, total in seconds.items())
        self._cpu_seconds = seconds
        self.pids = frozenset(pid for pid, _ in seconds)
        own_cpu = _rate(used, elapsed)
        return None if own_cpu is None else own_cpu * 100, sum(resident for *_, resident in alive), len(alive)


class _Descendants:
    """Finds the processes below one.

    It reads the parent of new processes only: psutil's `children` reads that of every process of the machine, which
    takes hundreds of system calls, and each of them may hold up a training thread that wants the interpreter's lock.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._seen: set[int] = set()
        self._found: dict[int, psutil.Process] = {}

    def read(self) -> list[psutil.Process]:
        """The descendants that exist now."""
        pids = set(psutil.pids())
        parents = {pid: parent for pid in pids - self._seen if (parent := _parent(pid)) is not None}
        self._seen = pids
        self._found = {pid: process for pid, process in self._found.items() if pid in pids}
        while below := [pid for pid, parent in parents.items() if parent == self._pid or parent in self._found]:
            for pid in below:
                del parents[pid]
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._found[pid] = psutil.Process(pid)
        return list(self._found.values())


def _parent(pid: int) -> int | None:
    """None where the process has ended."""
    try:
        return int(psutil.Process(pid).ppid())
    except psutil.NoSuchProcess:
        return None


def _process_use(process: psutil.Process) -> tuple[tuple[int, float], float, int] | None:
    """Identity, CPU seconds so far and resident bytes; None where the process has ended."""
    try:
        with process.oneshot():
            times = process.cpu_times()
            return (process.pid, process.create_time()), times.user + times.system, process.memory_info().rss
    except psutil.NoSuchProcess:
        return None


def _rate(amount: float, elapsed: float | None) -> float | None:
    # A counter that decreased was reset (an interface that was removed and added): no rate rather than a negative one.
    return None if not elapsed or elapsed <= 0 or amount < 0 else amount / elapsed


def _network_bytes() -> tuple[int, int, int]:
    """Bytes received and sent without loopback, and bytes over loopback."""
    received = sent = loopback = 0
    for name, counters in psutil.net_io_counters(pernic=True).items():
        if name == "lo":
            loopback = counters.bytes_recv
        else:
            received += counters.bytes_recv
            sent += counters.bytes_sent
    return received, sent, loopback


def _open_files(process: psutil.Process) -> int | None:
    try:
        return process.num_fds()
    except psutil.AccessDenied:
        return None
