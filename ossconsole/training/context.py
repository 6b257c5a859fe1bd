"""What the parts of a run share: requests of the user, the state of the run, and its events.

No torch here: the console holds a context before the run's thread imports torch.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable

import msgspec

from ossconsole import __version__
from ossconsole.config.credentials import CredentialSource
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.profiles import Profile
from ossconsole.telemetry import events
from ossconsole.telemetry.compare import installed_versions
from ossconsole.telemetry.events import Event, RunState
from ossconsole.telemetry.measure import Measurement
from ossconsole.training.settings import TrainSettings


class BrokenDeviceError(ConsoleError):
    """The GPU failed: nothing can be read from it any more, and this process cannot use CUDA any more."""


class Controls:
    """Requests to a running run; every method is cheap and thread-safe."""

    def __init__(self, endpoint: EndpointKind) -> None:
        self.endpoint = endpoint
        self.on_stop: Callable[[], None] = lambda: None
        self.stopping = threading.Event()
        self._not_paused = threading.Event()
        self._not_paused.set()
        self._lock = threading.Lock()
        self._checkpoint = False
        self._lr: float | None = None
        self._profile = False

    @property
    def paused(self) -> bool:
        """Whether the run is to pause after the step under way."""
        return not self._not_paused.is_set()

    def pause(self) -> None:
        """Requests a pause after the step under way."""
        self._not_paused.clear()

    def resume(self) -> None:
        """Ends a pause."""
        self._not_paused.set()

    def stop(self) -> None:
        """Requests the end of the run after the step under way; ends a pause."""
        self.stopping.set()
        self._not_paused.set()
        self.on_stop()

    def wait_while_paused(self, timeout_s: float) -> None:
        """Returns when the run is resumed or stopped, or after `timeout_s`."""
        self._not_paused.wait(timeout_s)

    def request_checkpoint(self) -> None:
        """Requests a checkpoint after the step under way."""
        with self._lock:
            self._checkpoint = True

    def request_lr(self, lr: float) -> None:
        """Requests a new peak learning rate from the next step on."""
        with self._lock:
            self._lr = lr

    def request_profile(self) -> None:
        """Requests a profile of the next steps."""
        with self._lock:
            self._profile = True

    def pop_profile_request(self) -> bool:
        """Whether a profile was requested since the last call."""
        with self._lock:
            requested, self._profile = self._profile, False
            return requested

    def pop_checkpoint_request(self) -> bool:
        """Whether a checkpoint was requested since the last call."""
        with self._lock:
            requested, self._checkpoint = self._checkpoint, False
            return requested

    def pop_lr(self) -> float | None:
        """The peak learning rate requested since the last call, None without a request."""
        with self._lock:
            lr, self._lr = self._lr, None
            return lr


class RunContext:
    """One run in one process. `sink` gets each event, in the thread that emits it; `measurement` has its figures.

    `interactive` means that a user can act: a failing endpoint then pauses the run instead of ending it. It may change:
    a run that a failure has paused continues then, and ends where it fails again.
    `on_failure` gets the error that ends the run before the parts of the run are closed, which may take long.
    `described` is whether the first event of the record was emitted.
    """

    def __init__(
        self,
        run: str,
        profile: Profile,
        credentials: CredentialSource,
        settings: TrainSettings,
        emit: Callable[[Event], None],
        *,
        interactive: bool = False,
    ) -> None:
        self.id = run
        self.profile = profile
        self.credentials = credentials
        self.settings = settings
        self._interactive = interactive
        self._paused_by_failure = False
        self.controls = Controls(settings.endpoint)
        self.step = 0
        self.state = RunState.STARTING
        self.measurement = Measurement()
        self.sink = emit
        self.described = False
        self.on_failure: Callable[[Exception], None] = lambda _error: None
        self._emitting = threading.RLock()  # a switch is emitted by the thread that requests it

    @property
    def interactive(self) -> bool:
        """Whether a user can act."""
        return self._interactive

    @interactive.setter
    def interactive(self, interactive: bool) -> None:
        self._interactive = interactive
        if not interactive and self._paused_by_failure:
            self.info("Nobody watches the run any more: it tries again.")
            self.controls.resume()

    def pause_for_failure(self, wait: Callable[[], None]) -> None:
        """Pauses the run because of a failure while a user can act; `wait` returns when it is resumed or stopped."""
        self._paused_by_failure = True
        try:
            self.controls.pause()
            if not self._interactive:  # since a moment ago
                self.controls.resume()
            wait()
        finally:
            self._paused_by_failure = False

    def emit(self, event: Event) -> None:
        """Measures the event and passes it to `sink`; a new interim comparison follows as an event of its own."""
        with self._emitting:
            looks = self.measurement.looks
            self.measurement.apply(event)
            self.sink(event)
            if self.measurement.looks != looks:
                report = self.measurement.comparison.report()
                self.sink(events.Compared(time=event.time, comparison=report, step=self.step))

    def stop(self) -> None:
        """Requests the end of the run after the step under way."""
        self.controls.stop()

    def enter(self, state: RunState) -> None:
        """Changes the state and emits the change."""
        if state is not self.state:
            self.state = state
            self.emit(events.State(time=time.time(), state=state, step=self.step))

    def switch(self, kind: EndpointKind, reason: str) -> None:
        """Reads future batches through `kind`. Raises SettingsError when the profile has no such endpoint."""
        self.check_endpoint(kind)
        if self.controls.endpoint is not kind:
            self.controls.endpoint = kind
            self.emit(events.Switch(time=time.time(), endpoint=kind, reason=reason, step=self.step))

    def check_endpoint(self, kind: EndpointKind) -> None:
        """Raises SettingsError when the profile has no such endpoint."""
        if self.profile.endpoint(kind) is None:
            raise SettingsError(
                f"Profile {self.profile.name!r} has no {kind} endpoint.", remedy="Add one on the Setup screen."
            )

    def info(self, message: str) -> None:
        """Emits a message."""
        self.emit(events.InfoEvent(time=time.time(), message=message, step=self.step))

    def warn(self, message: str, remedy: str = "") -> None:
        """Emits a warning."""
        self.emit(events.WarningEvent(time=time.time(), message=message, remedy=remedy, step=self.step))

    def error(self, message: str, remedy: str) -> None:
        """Emits an error; the run's state says whether the run ends because of it."""
        self.emit(events.ErrorEvent(time=time.time(), message=message, remedy=remedy, step=self.step))

    def report_accelerator(self) -> None:
        """Emits the size of the bucket's accelerator once it is known; the request for it runs in a thread."""
        if self.profile.endpoint(EndpointKind.ACCELERATED) is not None:
            threading.Thread(target=self._report_accelerator, name="accelerator", daemon=True).start()

    def _report_accelerator(self) -> None:
        from ossconsole.storage.accelerator import find_accelerator

        accelerator = find_accelerator(self.profile, self.credentials)
        with self._emitting:
            if accelerator is not None and not self.state.final:
                peak = accelerator.peak_mb_per_s * 1e6
                self.emit(
                    events.AcceleratorSize(time=time.time(), quota_gb=accelerator.quota_gb, peak_bytes_per_s=peak)
                )

    def describe(
        self,
        *,
        epochs: int = 0,
        steps_per_epoch: int = 0,
        world: int = 1,
        sample_format: str = "",
        stored_as: str = "",
    ) -> None:
        """Emits the first event of the record."""
        from ossconsole.telemetry.host import usable_cores  # psutil is late: the first paint needs this module

        self.described = True
        self.emit(
            events.Run(
                time=time.time(),
                run=self.id,
                version=__version__,
                profile=self.profile.name,
                bucket=self.profile.bucket,
                sample_format=sample_format,
                settings=msgspec.to_builtins(self.settings),
                pid=os.getpid(),
                host=socket.gethostname(),
                simulated=self.profile.simulated,
                epochs=epochs,
                steps_per_epoch=steps_per_epoch,
                world=world,
                region=self.profile.region,
                stored_as=stored_as,
                versions=installed_versions(),
                cores=usable_cores(),
                dataset_prefix=self.profile.dataset_prefix,
            )
        )
