"""The worker processes of a watched loader: how much they compute, and how often they wait for work."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from ossconsole.telemetry.samples import WorkerUsage

_POLL = "7"
"""The number of poll(2) on x86-64; other machines have ppoll(2), which does not show its timeout."""

_WORK_TIMEOUT_MS = 5_000
"""A worker of torch's DataLoader waits this long at a time for work: torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL.

`poll` has the milliseconds as its third argument. No other call of a worker is likely to have the same ones.
"""


class WorkerReader:
    """Reads what the worker processes did. `look` should be called several times between two calls of `read`."""

    def __init__(self) -> None:
        self._processes: dict[int, psutil.Process] = {}
        self._looks: dict[int, list[bool]] = {}
        self._used: dict[int, float] = {}
        self._read_at = time.monotonic()

    def look(self, pids: Iterable[int]) -> None:
        """Notes whether each process waits for work at this moment."""
        for pid in pids:
            waiting = _waits_for_work(pid)
            if waiting is not None:
                self._looks.setdefault(pid, []).append(waiting)

    def read(self, pids: Iterable[int]) -> tuple[WorkerUsage, ...]:
        """The usage since the last call, of those processes that were there then, in the order of `pids`."""
        now = time.monotonic()
        seconds, self._read_at = now - self._read_at, now
        before, self._used = self._used, {}
        found = []
        for pid in pids:
            used = self._cpu_s(pid)
            if used is None:
                continue
            self._used[pid] = used
            looks = self._looks.get(pid)
            if pid in before and seconds > 0:
                idle = sum(looks) / len(looks) if looks else None
                found.append(WorkerUsage(pid=pid, cpu=max(0.0, used - before[pid]) / seconds, idle=idle))
        self._looks.clear()
        self._processes = {pid: process for pid, process in self._processes.items() if pid in self._used}
        return tuple(found)

    def _cpu_s(self, pid: int) -> float | None:
        """The processor time of the process so far, seconds; None where it has ended."""
        try:
            process = self._processes.setdefault(pid, psutil.Process(pid))
            times = process.cpu_times()
        except psutil.Error:
            return None
        return float(times.user + times.system)


_TIMEOUT = 3  # the position of poll's timeout in /proc/PID/syscall, after the number of the call


def _waits_for_work(pid: int) -> bool | None:
    """Whether the main thread of the process waits for work; None where the kernel does not show its system call."""
    if platform.machine() != "x86_64":
        return None
    try:
        call = Path(f"/proc/{pid}/syscall").read_text().split()
    except OSError:
        return None
    return len(call) > _TIMEOUT and call[0] == _POLL and int(call[_TIMEOUT], 16) == _WORK_TIMEOUT_MS
