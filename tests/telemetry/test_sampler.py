from __future__ import annotations

import itertools
import threading
from collections.abc import Collection

import pytest

from ossconsole.telemetry import events
from ossconsole.telemetry.gpu import GpuReader
from ossconsole.telemetry.host import HostReader
from ossconsole.telemetry.sampler import Sampler, TelemetrySample
from ossconsole.telemetry.samples import GpuSnapshot, HostSample
from tests.telemetry.fake_nvml import FakeNvml


class BrokenGpus:
    """Fails on its first look with something no reader should raise."""

    def __init__(self) -> None:
        self.looks = 0
        self.closed = False

    def open(self) -> None:
        raise RuntimeError("the driver is upset")

    def close(self) -> None:
        self.closed = True

    def read(self, pids: Collection[int] = ()) -> GpuSnapshot:
        self.looks += 1
        if self.looks == 1:
            raise MemoryError("no room")
        return GpuSnapshot(problem="fine again")


class StuckGpus(BrokenGpus):
    """Never comes back from a look, as a driver that hangs."""

    def __init__(self) -> None:
        super().__init__()
        self.release = threading.Event()
        self.looking = threading.Event()

    def open(self) -> None:
        return

    def read(self, pids: Collection[int] = ()) -> GpuSnapshot:
        self.looking.set()
        self.release.wait(30)
        return GpuSnapshot()


class BrokenHost:
    pids: frozenset[int] = frozenset()

    def read(self) -> HostSample:
        raise PermissionError(13, "Permission denied", "/proc/stat")


def test_samples() -> None:
    clock = itertools.count(1000.0)
    sampler = Sampler(interval_s=0.001, gpus=GpuReader(FakeNvml(2)), clock=lambda: next(clock))
    sampler.start()
    assert sampler.wait(3, timeout_s=30)
    assert sampler.stop()
    sample = sampler.latest()
    assert sample is not None
    assert sample.problem == ""
    assert [gpu.power for gpu in sample.gpu.gpus] == [312.5, 312.5]
    event = events.decode(events.encode(sample.event()))
    assert event == sample.event()


def test_a_failing_reader_is_a_problem_and_the_thread_lives_on() -> None:
    gpus = BrokenGpus()
    first = threading.Event()
    go_on = threading.Event()

    def clock() -> float:
        if not first.is_set():
            first.set()
        else:
            go_on.wait(30)
        return 1.0

    sampler = Sampler(interval_s=0.001, gpus=gpus, host=BrokenHost(), clock=clock)
    sampler.start()
    assert sampler.wait(1, timeout_s=30)
    sample = sampler.latest()
    assert sample is not None
    assert "MemoryError: no room" in sample.gpu.problem
    assert "PermissionError" in sample.problem
    assert "the driver is upset" in sample.problem
    assert sample.host is None
    go_on.set()
    assert sampler.wait(3, timeout_s=30)
    latest = sampler.latest()
    assert latest is not None
    assert latest.gpu.problem == "fine again"
    assert sampler.stop()
    assert gpus.closed


def test_stop_does_not_wait_for_a_driver_that_hangs() -> None:
    gpus = StuckGpus()
    sampler = Sampler(gpus=gpus)
    sampler.start()
    assert gpus.looking.wait(30)
    assert sampler.latest() is None
    assert not sampler.stop(timeout_s=0.05)
    gpus.release.set()
    sampler.join(30)
    assert not sampler.is_alive()


def test_stop_before_start_is_fine() -> None:
    assert Sampler(gpus=GpuReader(FakeNvml(0))).stop()


@pytest.mark.parametrize("elapsed", [2.0, 0.0])
def test_host_rates(monkeypatch: pytest.MonkeyPatch, elapsed: float) -> None:
    clock = iter([10.0, 10.0 + elapsed])
    totals = iter([(1000, 500, 70), (3000, 500, 270)])
    monkeypatch.setattr("ossconsole.telemetry.host._network_bytes", lambda: next(totals))
    reader = HostReader(clock=lambda: next(clock))
    first, second = reader.read(), reader.read()
    assert (first.receive_rate, first.own_cpu) == (None, None)
    expected = (1000.0, 0.0, 100.0) if elapsed else (None, None, None)
    assert (second.receive_rate, second.send_rate, second.loopback_rate) == expected


def test_listeners_get_each_sample_until_they_no_longer_listen() -> None:
    sampler = Sampler(interval_s=0.001, gpus=GpuReader(FakeNvml(0)), clock=itertools.count(0.0).__next__)
    heard: list[float] = []
    others: list[float] = []

    def listen(found: TelemetrySample) -> None:
        heard.append(found.time)

    sampler.listen(listen)
    sampler.listen(lambda found: others.append(found.time))
    sampler.start()
    assert sampler.wait(3, timeout_s=30)
    sampler.unlisten(listen)
    known = list(heard)
    assert sampler.wait(len(known) + 2, timeout_s=30)
    assert sampler.stop()
    assert heard == known == others[: len(known)]
    assert len(others) > len(known)
