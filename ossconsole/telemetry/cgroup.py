"""What the container of this process may take of the machine, and takes: its control groups, v2 or v1."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class CpuLimit:
    """`cores` may be 2.5; `seconds` tells how much processor time was taken so far, None where that is not told."""

    cores: float
    seconds: Callable[[], float | None]


@dataclass(frozen=True)
class MemoryLimit:
    """`total` bytes; `used` tells those taken now, without files that are only cached, None where that is not told."""

    total: int
    used: Callable[[], int | None]


def cpu_limit(root: Path = _ROOT, own: Path = _OWN) -> CpuLimit | None:
    """The tightest limit of the processors, None without one."""
    found = []
    for folder in _folders(root, own, "cpu"):
        quota = _words(folder / "cpu.max")  # "<microseconds> <per microseconds>", or "max ..."
        if not quota:
            quota = [*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")]
        if len(quota) == 2 and quota[0].isdigit() and int(quota[1]):
            found.append(CpuLimit(int(quota[0]) / int(quota[1]), _cpu_seconds(root, folder)))
    return min(found, key=lambda limit: limit.cores, default=None)


def memory_limit(root: Path = _ROOT, own: Path = _OWN) -> MemoryLimit | None:
    """The tightest limit of the memory, None without one; v1 has a number beyond any machine's for none."""
    found = []
    for folder in _folders(root, own, "memory"):
        limit = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
        if limit and limit[0].isdigit():
            found.append(MemoryLimit(int(limit[0]), _memory_used(folder)))
    return min(found, key=lambda limit: limit.total, default=None)


def _folders(root: Path, own: Path, controller: str) -> Iterator[Path]:
    """The groups of this process with that controller, up to the root of what is seen of them here.

    A container often sees its own group as the root, and its path as it is on the machine: that is not there then.
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
    """What the file has, nothing where it is not there or not for us."""
    try:
        return path.read_text().split()
    except OSError:
        return []
