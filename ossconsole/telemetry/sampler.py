"""The sampler thread: looks at GPUs and host once a second and keeps what it saw."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import Protocol, TypeVar

import msgspec

from ossconsole.telemetry.events import Telemetry
from ossconsole.telemetry.gpu import GpuReader
from ossconsole.telemetry.host import GpuSnapshot, HostReader, HostSample
from ossconsole.telemetry.series import Series

T = TypeVar("T")

_GPU_FIGURES = (
    "utilization",
    "memory_used",
    "own_memory_used",
    "power",
    "temperature",
    "sm_clock",
    "memory_clock",
)
_HOST_FIGURES = (
    "cpu",
    "own_cpu",
    "own_memory",
    "memory_used",
    "receive_rate",
    "send_rate",
    "loopback_rate",
)


class Gpus(Protocol):
    """What the sampler needs of a GpuReader."""

    def open(self) -> None: ...
    def close(self) -> None: ...
    def read(self, pids: Collection[int] = ()) -> GpuSnapshot: ...


class Host(Protocol):
    """What the sampler needs of a HostReader."""

    @property
    def pids(self) -> frozenset[int]: ...
    def read(self) -> HostSample: ...


class TelemetrySample(msgspec.Struct, frozen=True, kw_only=True):
    """The newest look; `time` is Unix seconds, `problem` what kept the sampler from a whole look."""

    time: float
    gpu: GpuSnapshot
    host: HostSample | None
    problem: str = ""

    def event(self) -> Telemetry:
        """The same as a line of the run record."""
        return Telemetry(time=self.time, gpus=self.gpu.gpus, host=self.host, problem=self.problem or self.gpu.problem)


Listener = Callable[[TelemetrySample], None]


class Sampler(threading.Thread):
    """Samples every `interval_s` seconds until `stop`; a reader that fails becomes a `problem` in the sample.

    There is one in a process, for all that want to know. `latest` and `series` may be asked from any thread at any
    time.
    """

    def __init__(
        self,
        *,
        interval_s: float = 1.0,
        gpus: Gpus | None = None,
        host: Host | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(name="ossconsole-sampler", daemon=True)
        self._interval = interval_s
        self._gpus: Gpus = GpuReader() if gpus is None else gpus
        self._host: Host = HostReader() if host is None else host
        self._clock = clock
        self._listeners: list[Listener] = []
        self._telling = threading.Lock()
        self._halt = threading.Event()
        self._sampled = threading.Condition()
        self._open_problem = ""
        self._count = 0
        self._latest: TelemetrySample | None = None
        self._series: dict[str, Series] = {}

    def latest(self) -> TelemetrySample | None:
        """The newest sample, None before the first."""
        return self._latest

    def listen(self, listener: Listener) -> None:
        """Calls `listener` with each sample from now on, from this thread; it must not call back."""
        with self._telling:
            self._listeners.append(listener)

    def unlisten(self, listener: Listener) -> None:
        """Ends what `listen` began, if it did: once this returns, no call comes any more."""
        with self._telling:
            self._listeners = [known for known in self._listeners if known != listener]

    def series(self, name: str) -> Series | None:
        """Values over Unix time: `gpu0.utilization` and the other figures of a GPU, `host.cpu` and so on.

        None where no such figure was ever seen.
        """
        return self._series.get(name)

    def wait(self, count: int = 1, timeout_s: float = 10.0) -> bool:
        """Wait until `count` samples were taken; False when the time is over first."""
        with self._sampled:
            return self._sampled.wait_for(lambda: self._count >= count, timeout_s)

    def stop(self, timeout_s: float = 2.0) -> bool:
        """End the thread; False where NVML or the kernel holds it (it is a daemon and ends with the process)."""
        self._halt.set()
        if self.is_alive():
            self.join(timeout_s)
        return not self.is_alive()

    def run(self) -> None:
        _, self._open_problem = self._guard(self._gpus.open)
        while not self._halt.is_set():
            self._sample()
            self._halt.wait(self._interval)
        self._guard(self._gpus.close)

    def _sample(self) -> None:
        host, host_problem = self._guard(self._host.read)
        gpu, gpu_problem = self._guard(lambda: self._gpus.read(self._host.pids))
        sample = TelemetrySample(
            time=self._clock(),
            gpu=gpu or GpuSnapshot(problem=gpu_problem),
            host=host,
            problem=" ".join(filter(None, (self._open_problem, host_problem, gpu_problem))),
        )
        for name, value in _figures(sample):
            series = self._series.get(name)
            if series is None:
                series = self._series[name] = Series()
            series.append(sample.time, value)
        self._latest = sample
        with self._telling:
            for listener in self._listeners:
                listener(sample)
        with self._sampled:
            self._count += 1
            self._sampled.notify_all()

    def _guard(self, call: Callable[[], T]) -> tuple[T | None, str]:
        """What `call` gives, or None and what went wrong: the thread outlives any reader."""
        try:
            return call(), ""
        except Exception as error:  # noqa: BLE001 - whatever a driver or /proc comes up with is shown, not fatal
            return None, f"Reading the machine failed: {type(error).__name__}: {error}."


def _figures(sample: TelemetrySample) -> Iterator[tuple[str, float | None]]:
    for gpu in sample.gpu.gpus:
        prefix = f"gpu{gpu.index}" if gpu.mig is None else f"gpu{gpu.index}.{gpu.mig}"
        for name in _GPU_FIGURES:
            yield f"{prefix}.{name}", getattr(gpu, name)
    if sample.host is not None:
        for name in _HOST_FIGURES:
            yield f"host.{name}", getattr(sample.host, name)
