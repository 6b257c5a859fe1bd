"""What the parts of a run share: what is asked of it, where it stands, and whom it tells.

No torch here: the console holds one of these before the run's thread imports it.
"""

from __future__ import annotations

import logging
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

log = logging.getLogger(__name__)


class Controls:
    """What may be asked of a run while it goes on; every method is cheap and safe from any thread."""

    def __init__(self, endpoint: EndpointKind) -> None:
        self.endpoint = endpoint
        self.on_stop: Callable[[], None] = _nothing
        self.stopping = threading.Event()
        self._going = threading.Event()
        self._going.set()
        self._lock = threading.Lock()
        self._checkpoint = False
        self._lr: float | None = None

    @property
    def paused(self) -> bool:
        return not self._going.is_set()

    def pause(self) -> None:
        self._going.clear()

    def resume(self) -> None:
        self._going.set()

    def stop(self) -> None:
        self.stopping.set()
        self._going.set()
        self.on_stop()

    def wait_while_paused(self, timeout_s: float | None = None) -> None:
        self._going.wait(timeout_s)

    def ask_checkpoint(self) -> None:
        with self._lock:
            self._checkpoint = True

    def ask_lr(self, lr: float) -> None:
        with self._lock:
            self._lr = lr

    def take_checkpoint(self) -> bool:
        """Whether a checkpoint was asked for since the last call."""
        with self._lock:
            asked, self._checkpoint = self._checkpoint, False
            return asked

    def take_lr(self) -> float | None:
        with self._lock:
            lr, self._lr = self._lr, None
            return lr


def _nothing() -> None:
    pass


class RunContext:
    """One run in one process. `hand_on` gets each event, from the thread that made it; `measurement` has its figures.

    `attended` tells that somebody can act: a failing endpoint then pauses the run instead of ending it. It may change.
    """

    def __init__(
        self,
        run: str,
        profile: Profile,
        credentials: CredentialSource,
        settings: TrainSettings,
        tell: Callable[[Event], None],
        *,
        attended: bool = False,
    ) -> None:
        self.id = run
        self.profile = profile
        self.credentials = credentials
        self.settings = settings
        self.attended = attended
        self.controls = Controls(settings.endpoint)
        self.step = 0
        self.state = RunState.STARTING
        self.measurement = Measurement()
        self.hand_on = tell
        self._telling = threading.RLock()  # a switch is told by the thread that asks for it

    def tell(self, event: Event) -> None:
        """Measures the event and hands it on; a new look at the comparison is told as an event of its own."""
        with self._telling:
            looks = self.measurement.looks
            self.measurement.apply(event)
            self.hand_on(event)
            if self.measurement.looks != looks:
                found = self.measurement.comparison.report()
                self.hand_on(events.Compared(time=event.time, comparison=found, step=self.step))

    def stop(self) -> None:
        """Asks the run to end after the step under way."""
        self.controls.stop()

    def enter(self, state: RunState) -> None:
        """Changes the state and says so."""
        if state is not self.state:
            self.state = state
            self.tell(events.State(time=time.time(), state=state, step=self.step))

    def switch(self, kind: EndpointKind, reason: str) -> None:
        """Reads the batches that are fetched from now on through `kind`. Raises SettingsError where there is none."""
        if self.profile.endpoint(kind) is None:
            raise SettingsError(
                f"Profile {self.profile.name!r} has no {kind} endpoint.", remedy="Add one on the Setup screen."
            )
        if self.controls.endpoint is not kind:
            self.controls.endpoint = kind
            self.tell(events.Switch(time=time.time(), endpoint=kind, reason=reason, step=self.step))

    def say(self, message: str) -> None:
        self.tell(events.InfoEvent(time=time.time(), message=message, step=self.step))

    def warn(self, message: str, remedy: str = "") -> None:
        self.tell(events.WarningEvent(time=time.time(), message=message, remedy=remedy, step=self.step))

    def complain(self, message: str, remedy: str) -> None:
        """Tells an error; whether the run ends over it is told by its state."""
        self.tell(events.ErrorEvent(time=time.time(), message=message, remedy=remedy, step=self.step))

    def look_at_accelerator(self) -> None:
        """Tells the size of the bucket's accelerator once that is known; what it is costs one request, in a thread."""
        if self.profile.endpoint(EndpointKind.ACCELERATED) is not None:
            threading.Thread(target=self._look_at_accelerator, name="accelerator", daemon=True).start()

    def _look_at_accelerator(self) -> None:
        from ossconsole.storage.accelerator import find_accelerator

        try:
            found = find_accelerator(self.profile, self.credentials)
        except ConsoleError as error:  # a key may have no right to it; the run needs it for words only
            log.info("The size of the accelerator is not known: %s", error)
            return
        with self._telling:
            if found is not None and not self.state.final:
                peak = found.peak_mb_per_s * 1e6
                self.tell(events.AcceleratorSize(time=time.time(), quota_gb=found.quota_gb, peak_bytes_per_s=peak))

    def describe(
        self,
        *,
        epochs: int = 0,
        steps_per_epoch: int = 0,
        world: int = 1,
        sample_format: str = "",
        stored_as: str = "",
    ) -> None:
        """Tells the first event of the record."""
        self.tell(
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
            )
        )
