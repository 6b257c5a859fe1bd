"""How many of the machine's cores the compute takes where there is no GPU. No torch here."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # "<microseconds of processor time> <per microseconds>", or "max ..."


def usable_cores(quota_file: Path = _CGROUP_QUOTA) -> int:
    """The cores this process may use: by its affinity, and by the quota of its container."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = quota_file.read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2, or no quota
        return cores


def compute_threads(workers: int, cores: int) -> int:
    """Threads for a step on the CPU: a core is left for each reader, but at most a quarter of them, at least one.

    Threads of a step wait for each other hundreds of times, so a single one that has to share its core holds up all:
    seen on two busy cores, ResNet-18 at 64 px, batches of 32: 2 threads 0.85 to 5 s, one thread 0.6 to 1.8 s.
    """
    left = max(1, min(workers, cores // 4))
    return max(1, cores - left)
