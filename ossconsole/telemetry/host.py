"""Host readings through psutil: CPU, memory, network, and the share our own processes take."""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable

import psutil

from ossconsole.telemetry.cgroup import CpuLimit, MemoryLimit, cpu_limit, memory_limit
from ossconsole.telemetry.samples import HostSample


class HostReader:
    """Reads the machine and this process with its children. Rates are over the time since the previous `read`.

    In a container that has a limit, cores, processor use and memory are the container's.
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
        """This process; found at the first look, as that opens a file, which may fail."""
        return psutil.Process()

    def read(self) -> HostSample:
        """One look; `pids` is then this process and its children."""
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
        """How many there are, and the percentage of them in use."""
        cores, limit = psutil.cpu_count() or 1, self._cpu_limit
        percent = psutil.cpu_percent(interval=None)  # since the last call of this thread: the first says nothing
        if limit is None or limit.cores >= cores:
            return cores, None if elapsed is None else percent
        before, self._container_seconds = self._container_seconds, limit.seconds()
        if before is None or self._container_seconds is None:
            return math.ceil(limit.cores), None
        used = _rate(self._container_seconds - before, elapsed)
        return math.ceil(limit.cores), None if used is None else min(100.0, used / limit.cores * 100)

    def _memory(self) -> tuple[int, int]:
        """Bytes in use, and in all."""
        memory, limit = psutil.virtual_memory(), self._memory_limit
        used = None if limit is None or limit.total >= memory.total else limit.used()
        if limit is None or used is None:
            return memory.total - memory.available, memory.total
        return used, limit.total

    def _own_use(self, elapsed: float | None) -> tuple[float | None, int, int]:
        """CPU in percent of one core, resident bytes, number of processes."""
        uses = [_process_use(process) for process in (self._own, *self._own.children(recursive=True))]
        alive = [use for use in uses if use is not None]
        seconds = {key: cpu_seconds for key, cpu_seconds, _ in alive}
        # A process that appeared since the last look counts from its own start, one that ended no longer.
        used = sum(total - self._cpu_seconds.get(key, 0.0) for key, total in seconds.items())
        self._cpu_seconds = seconds
        self.pids = frozenset(pid for pid, _ in seconds)
        own_cpu = _rate(used, elapsed)
        return None if own_cpu is None else own_cpu * 100, sum(resident for *_, resident in alive), len(alive)


def _process_use(process: psutil.Process) -> tuple[tuple[int, float], float, int] | None:
    """Identity, CPU seconds so far and resident bytes; None where the process has ended meanwhile."""
    try:
        with process.oneshot():
            times = process.cpu_times()
            return (process.pid, process.create_time()), times.user + times.system, process.memory_info().rss
    except psutil.NoSuchProcess:
        return None


def _rate(amount: float, elapsed: float | None) -> float | None:
    # A counter that went down was reset (an interface that left and came back): no rate rather than a negative one.
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
