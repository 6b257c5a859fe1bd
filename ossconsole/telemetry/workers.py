"""The worker processes of a watched loader: how much they compute, and how often they wait for work."""

from __future__ import annotations

import contextlib
import multiprocessing
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import psutil

from ossconsole.telemetry.samples import WorkerUsage

_POLL = "7"
"""The number of poll(2) on x86-64; other machines have ppoll(2), which does not show its timeout."""

_WORK_TIMEOUT_MS = 5_000
"""A worker of torch's DataLoader waits this long at a time for work: torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL.

`poll` has the milliseconds as its third argument. No other call of a worker is likely to have the same ones.
"""


def worker_pids() -> list[int]:
    """The child processes of this one that multiprocessing has started, in the order of their start."""
    return sorted(child.pid for child in multiprocessing.active_children() if child.pid is not None)


class _WorkerState(NamedTuple):
    runnable: bool
    idle: bool | None


class WorkerReader:
    """Measures what worker processes do. `sample` should be called several times between two calls of `read`."""

    def __init__(self) -> None:
        self._processes: dict[int, psutil.Process] = {}
        self._samples: dict[int, list[_WorkerState]] = {}
        self._used: dict[int, float] = {}
        self._read_at = time.monotonic()

    def sample(self, pids: Iterable[int]) -> None:
        """Notes whether each process computes or waits at this moment."""
        for pid in pids:
            with contextlib.suppress(OSError):  # it has ended
                self._samples.setdefault(pid, []).append(_WorkerState(_is_runnable(pid), _waits_for_work(pid)))

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
            samples = self._samples.get(pid)
            if pid in before and seconds > 0 and samples:
                waits = [sample.idle for sample in samples if sample.idle is not None]
                found.append(
                    WorkerUsage(
                        pid=pid,
                        cpu=max(0.0, used - before[pid]) / seconds,
                        runnable=sum(sample.runnable for sample in samples) / len(samples),
                        idle=sum(waits) / len(waits) if waits else None,
                    )
                )
        self._samples.clear()
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


def _is_runnable(pid: int) -> bool:
    """Whether the process computes, or waits for a core. Raises OSError where it has ended."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "R"


def _waits_for_work(pid: int) -> bool | None:
    """Whether the main thread of the process waits for work; None where the kernel does not show its system call."""
    if platform.machine() != "x86_64":
        return None
    try:
        call = Path(f"/proc/{pid}/syscall").read_text().split()
    except OSError:
        return None
    return len(call) > _TIMEOUT and call[0] == _POLL and int(call[_TIMEOUT], 16) == _WORK_TIMEOUT_MS
