from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from ossconsole.telemetry import host
from ossconsole.telemetry.host import HostReader

# Says when it has burned half a second of CPU and holds 64 MB, then waits to be ended.
CHILD = "import time\nblock = bytearray(64 << 20)\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ninput()"


def test_children_count_as_our_own() -> None:
    reader = HostReader()
    before = reader.read()
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdin is not None
    try:
        child.stdout.readline()
        during = reader.read()
        assert child.pid in reader.pids
    finally:
        child.stdin.close()
        child.stdout.close()
        child.wait(30)
    after = reader.read()
    assert during.own_processes == before.own_processes + 1
    assert during.own_memory - before.own_memory > 60 << 20
    assert during.own_cpu is not None
    assert during.own_cpu > 0
    assert child.pid not in reader.pids
    assert after.own_memory < during.own_memory
    assert after.own_cpu is not None
    assert after.own_cpu >= 0


def test_machine_figures_are_plausible() -> None:
    reader = HostReader()
    assert reader.read().cpu is None, "the first look has nothing to compare with"
    sample = reader.read()
    assert sample.cores >= 1
    assert sample.cpu is not None
    assert 0 <= sample.cpu <= 100
    assert 0 < sample.memory_used <= sample.memory_total
    assert 0 < sample.own_memory < sample.memory_total
    assert sample.own_open_files is None or sample.own_open_files > 2


def test_a_counter_that_was_reset_gives_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    totals = iter([(5000, 5000, 0), (10, 6000, 0)])
    clock = iter([0.0, 1.0])
    monkeypatch.setattr(host, "_network_bytes", lambda: next(totals))
    reader = HostReader(clock=lambda: next(clock))
    reader.read()
    sample = reader.read()
    assert (sample.receive_rate, sample.send_rate) == (None, 1000.0)


def test_figures_that_the_machine_does_not_have_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(process: psutil.Process) -> int:
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "num_fds", denied)
    sample = HostReader().read()
    assert sample.own_open_files is None
