"""The sampler thread: reads GPUs and host once a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from typing import Protocol, TypeVar

import msgspec

from ossconsole.telemetry.events import Telemetry
from ossconsole.telemetry.gpu import GpuReader
from ossconsole.telemetry.host import HostReader
from ossconsole.telemetry.samples import GpuSnapshot, HostSample

T = TypeVar("T")


class _Gpus(Protocol):
    """The part of GpuReader that the sampler uses."""

    def open(self) -> None: ...
    def close(self) -> None: ...
    def read(self, pids: Collection[int] = ()) -> GpuSnapshot: ...


class _Host(Protocol):
    """The part of HostReader that the sampler uses."""

    @property
    def pids(self) -> frozenset[int]: ...
    def read(self) -> HostSample: ...


class TelemetrySample(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of GPUs and host; `time` is Unix seconds, `problem` the reason where a part is missing."""

    time: float
    gpu: GpuSnapshot
    host: HostSample | None
    problem: str = ""

    def event(self) -> Telemetry:
        """The sample as an event of the run record."""
        return Telemetry(time=self.time, gpus=self.gpu.gpus, host=self.host, problem=self.problem or self.gpu.problem)


Listener = Callable[[TelemetrySample], None]


class Sampler(threading.Thread):
    """Samples every `interval_s` seconds until `stop`; a reader that fails becomes a `problem` in the sample.

    A process has one sampler for all its users. `latest` may be called from any thread.
    """

    def __init__(
        self,
        *,
        interval_s: float = 1.0,
        gpus: _Gpus | None = None,
        host: _Host | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(name="ossconsole-sampler", daemon=True)
        self._interval = interval_s
        self._gpus: _Gpus = GpuReader() if gpus is None else gpus
        self._host: _Host = HostReader() if host is None else host
        self._clock = clock
        self._listeners: list[Listener] = []
        self._notifying = threading.Lock()
        self._halt = threading.Event()
        self._sampled = threading.Condition()
        self._open_problem = ""
        self._count = 0
        self._latest: TelemetrySample | None = None

    def latest(self) -> TelemetrySample | None:
        """The newest sample, None before the first."""
        return self._latest

    def listen(self, listener: Listener) -> None:
        """Calls `listener` with each sample from now on, from this thread; it must not call the sampler."""
        with self._notifying:
            self._listeners.append(listener)

    def unlisten(self, listener: Listener) -> None:
        """Removes a listener: it is not called any more once this returns."""
        with self._notifying:
            self._listeners = [known for known in self._listeners if known != listener]

    def wait(self, count: int = 1, timeout_s: float = 10.0) -> bool:
        """Waits until `count` samples were taken; False on timeout."""
        with self._sampled:
            return self._sampled.wait_for(lambda: self._count >= count, timeout_s)

    def stop(self, timeout_s: float = 2.0) -> bool:
        """Ends the thread; False where NVML or the kernel blocks it (it is a daemon and ends with the process)."""
        self._halt.set()
        if self.is_alive():
            self.join(timeout_s)
        return not self.is_alive()

    def run(self) -> None:
        """The thread's loop."""
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
        self._latest = sample
        with self._notifying:
            for listener in self._listeners:
                listener(sample)
        with self._sampled:
            self._count += 1
            self._sampled.notify_all()

    def _guard(self, call: Callable[[], T]) -> tuple[T | None, str]:
        """The result of `call`, or None and the problem: no reader's failure ends the thread."""
        try:
            return call(), ""
        except Exception as error:  # noqa: BLE001 - any failure of a driver or of /proc is shown, not fatal
            return None, f"Reading the machine failed: {type(error).__name__}: {error}."
