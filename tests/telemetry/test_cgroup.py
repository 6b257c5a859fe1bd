"""The limits of a container, from trees of control groups as kernels lay them out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from ossconsole.telemetry.host import HostReader, cpu_limit, memory_limit

GIB = 1 << 30
V2 = {
    "cgroup.controllers": "cpu memory",
    "pod/cpu.max": "400000 100000",
    "pod/memory.max": f"{8 * GIB}",
    "pod/memory.current": f"{5 * GIB}",
    "pod/memory.stat": f"anon 1\ninactive_file {GIB}\n",
    "pod/cpu.stat": "usage_usec 9000000\nuser_usec 1\n",
    "pod/app/cpu.max": "250000 100000",
    "pod/app/cpu.stat": "usage_usec 7000000\nuser_usec 1\n",
    "pod/app/memory.max": "max",
    "pod/app/memory.current": f"{3 * GIB}",
    "pod/app/memory.stat": "inactive_file 0\n",
}
V1 = {
    "cpu/docker/x/cpu.cfs_quota_us": "150000",
    "cpu/docker/x/cpu.cfs_period_us": "100000",
    "cpu/docker/x/cpu.stat": "nr_periods 0\nnr_throttled 0\n",
    "cpuacct/docker/x/cpuacct.usage": "2500000000",
    "memory/docker/x/memory.limit_in_bytes": f"{4 * GIB}",
    "memory/docker/x/memory.usage_in_bytes": f"{2 * GIB}",
    "memory/docker/x/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB}\n",
    "memory/memory.limit_in_bytes": "9223372036854771712",
}

Tree = Callable[[dict[str, str], str], tuple[Path, Path]]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    def make(files: dict[str, str], own: str) -> tuple[Path, Path]:
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (tmp_path / "own").write_text(own)
        return tmp_path / "cgroup", tmp_path / "own"

    return make


def test_the_tightest_limit_of_all_groups_counts(tree: Tree) -> None:
    at = tree(V2, "0::/pod/app\n")
    cpu, memory = cpu_limit(*at), memory_limit(*at)
    assert cpu is not None
    assert (cpu.cores, cpu.seconds()) == (2.5, 7.0)
    assert memory is not None
    assert (memory.total, memory.used()) == (8 * GIB, 4 * GIB)


def test_a_container_sees_its_own_group_as_the_root(tree: Tree) -> None:
    own = {name.removeprefix("pod/"): text for name, text in V2.items() if name.startswith("pod/")}
    at = tree(own, "0::/not/here\n")
    cpu, memory = cpu_limit(*at), memory_limit(*at)
    assert cpu is not None
    assert (cpu.cores, cpu.seconds()) == (4.0, 9.0)
    assert memory is not None
    assert memory.used() == 4 * GIB


def test_the_older_layout(tree: Tree) -> None:
    at = tree(V1, "5:memory:/docker/x\n4:cpuacct,cpu:/docker/x\n1:name=systemd:/docker/x\n0::/\n")
    cpu, memory = cpu_limit(*at), memory_limit(*at)
    assert cpu is not None
    assert (cpu.cores, cpu.seconds()) == (1.5, 2.5)
    assert memory is not None
    assert (memory.total, memory.used()) == (4 * GIB, GIB)


def test_no_limit(tree: Tree, tmp_path: Path) -> None:
    free = {"cpu.max": "max 100000", "memory.max": "max", "cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "1"}
    at = tree(free, "3:cpu:/\n0::/\n")
    assert (cpu_limit(*at), memory_limit(*at)) == (None, None)
    assert cpu_limit(tmp_path, tmp_path / "none") is None


def test_the_host_shown_is_the_container(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda: 64)
    at = tree(V1, "5:memory:/docker/x\n4:cpu:/docker/x\n")
    clock = iter([0.0, 2.0])
    reader = HostReader(clock=lambda: next(clock), cpu=cpu_limit(*at), memory=memory_limit(*at))
    first = reader.read()
    assert (first.cores, first.cpu, first.memory_used, first.memory_total) == (2, None, GIB, 4 * GIB)
    (at[0] / "cpuacct/docker/x/cpuacct.usage").write_text("4000000000")
    assert reader.read().cpu == pytest.approx(50.0)  # 1.5 s in 2 s, of the 3 s that 1.5 cores have
