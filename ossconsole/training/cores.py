"""How many of the machine's cores the compute takes where there is no GPU. No torch here."""

from __future__ import annotations

import os
import threading

from ossconsole.telemetry.cgroup import CpuLimit, cpu_limit


def usable_cores(limit: CpuLimit | None = None) -> int:
    """The cores this process may use: by its affinity, and by the limit of its container."""
    cores = len(os.sched_getaffinity(0))
    limit = limit or cpu_limit()
    return max(1, min(cores, int(limit.cores))) if limit else cores


_NICENESS = 10


def give_way() -> None:
    """Puts this thread, and the threads and processes that it starts, behind the process's others on the same cores.

    The screen needs a fiftieth of a core. With two cores, both busy, a dialog opened after it in 50 to 70 ms (p95),
    where it took 80 to 90.
    """
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)  # Linux has a niceness for each thread


def compute_threads(workers: int, cores: int) -> int:
    """Threads for a step on the CPU: a core is left for each reader, but at most a quarter of them, at least one.

    Threads of a step wait for each other hundreds of times, so a single one that has to share its core holds up all:
    seen on two busy cores, ResNet-18 at 64 px, batches of 32: 2 threads 0.85 to 5 s, one thread 0.6 to 1.8 s.
    """
    left = max(1, min(workers, cores // 4))
    return max(1, cores - left)
