"""TrainingRun: a run in a thread of its own, with the controls a screen or a command line has over it.

No torch here: it is imported by the thread, after the console has painted.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from ossconsole import __version__
from ossconsole.config.credentials import CredentialSource
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.profile import Profile
from ossconsole.telemetry import events
from ossconsole.telemetry.events import Event, RunState
from ossconsole.telemetry.record import RunRecord, new_run_id, record_path
from ossconsole.training.claim import Claim
from ossconsole.training.settings import TrainSettings

log = logging.getLogger(__name__)

_KEPT_EVENTS = 50_000
"""Events kept for a screen that does not look; the record on disk has them all."""


class Controls:
    """What may be asked of a run while it goes on; every method is cheap and safe from any thread."""

    def __init__(self, endpoint: EndpointKind) -> None:
        self.endpoint = endpoint
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

    def wait_while_paused(self) -> None:
        self._going.wait()

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


class TrainingRun:
    """One run. `attended` tells that somebody can act: a failing endpoint then pauses the run instead of ending it.

    `attended` may change while it goes on. `on_event` is called with each event, from the thread that made it.
    Raises SettingsError, and ClaimedError while another run writes to the same checkpoint prefix.
    """

    elsewhere = False
    """Another process does the runs that are; see `ossconsole.training.attached`."""

    def __init__(
        self,
        profile: Profile,
        credentials: CredentialSource,
        settings: TrainSettings,
        *,
        record_dir: Path | None = None,
        attended: bool = False,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        if profile.endpoint(settings.endpoint) is None:
            raise SettingsError(
                f"Profile {profile.name!r} has no {settings.endpoint} endpoint.",
                remedy="Add one on the Setup screen, or give --endpoint.",
            )
        self.id = new_run_id()
        self.profile = profile
        self.credentials = credentials
        self.settings = settings
        self.attended = attended
        self.controls = Controls(settings.endpoint)
        self.error: ConsoleError | None = None
        self.summary: events.Summary | None = None
        self.step = 0
        self._claim = Claim(profile, self.id)
        self._record = RunRecord(record_path(self.id, record_dir))
        self._on_event = on_event
        self._told_of_record = False
        self._events: deque[Event] = deque(maxlen=_KEPT_EVENTS)
        self._state = RunState.STARTING
        self._thread = threading.Thread(
            target=self._work, name=f"training-{self.id}", daemon=True
        )

    @property
    def state(self) -> RunState:
        return self._state

    @property
    def alive(self) -> bool:
        """False before `start` and once the run's thread has ended."""
        return self._thread.is_alive()

    @property
    def record_path(self) -> Path:
        return self._record.path

    def start(self) -> None:
        self._thread.start()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits for the end; False when it has not come within `timeout_s`."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def pause(self) -> None:
        self.controls.pause()

    def resume(self) -> None:
        self.controls.resume()

    def stop(self) -> None:
        """Asks the run to end after the step under way, with a checkpoint."""
        self.controls.stop()

    def checkpoint(self) -> None:
        """Asks for a checkpoint after the step under way."""
        self.controls.ask_checkpoint()

    def set_lr(self, lr: float) -> None:
        """Changes the peak learning rate from the next step on."""
        self.controls.ask_lr(lr)

    def switch(self, kind: EndpointKind, reason: str = "asked for") -> None:
        """Reads the batches that are fetched from now on through `kind`. Raises SettingsError where there is none."""
        if self.profile.endpoint(kind) is None:
            raise SettingsError(
                f"Profile {self.profile.name!r} has no {kind} endpoint.",
                remedy="Add one on the Setup screen.",
            )
        if self.controls.endpoint is not kind:
            self.controls.endpoint = kind
            self.emit(
                events.Switch(
                    time=time.time(), endpoint=kind, reason=reason, step=self.step
                )
            )

    def drain(self) -> list[Event]:
        """The events since the last call, oldest first."""
        drained = []
        while self._events:
            drained.append(self._events.popleft())
        return drained

    def emit(self, event: Event) -> None:
        """Records the event and hands it on."""
        self._record.append(event)
        self._events.append(event)
        if self._on_event is not None:
            self._on_event(event)
        if self._record.problem and not self._told_of_record:
            self._told_of_record = True
            remedy = "Free its disk; the run goes on, and `status` and `export` miss these events."
            self.emit(
                events.WarningEvent(
                    time=time.time(),
                    message=self._record.problem,
                    remedy=remedy,
                    step=self.step,
                )
            )

    def enter(self, state: RunState) -> None:
        """Changes the state and says so."""
        if state is not self._state:
            self._state = state
            self.emit(events.State(time=time.time(), state=state, step=self.step))

    def describe(self, *, epochs: int = 0, steps_per_epoch: int = 0) -> events.Run:
        """The first event of the record."""
        return events.Run(
            time=time.time(),
            run=self.id,
            version=__version__,
            profile=self.profile.name,
            bucket=self.profile.bucket,
            settings=msgspec.to_builtins(self.settings),
            pid=os.getpid(),
            host=socket.gethostname(),
            simulated=self.profile.simulated,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
        )

    def _work(self) -> None:
        try:
            from ossconsole.training.session import Session

            self.summary = Session(self).train()
        except ConsoleError as error:
            self._fail(error)
        except Exception as error:
            log.exception("The run %s failed", self.id)
            self._fail(
                ConsoleError(
                    f"The run failed unexpectedly: {type(error).__name__}: {error}.",
                    remedy="The log of the program has the traceback.",
                )
            )
        finally:
            self._claim.release()
            self._record.close()

    def _fail(self, error: ConsoleError) -> None:
        self.error = error
        self.emit(
            events.ErrorEvent(
                time=time.time(),
                message=error.message,
                remedy=error.remedy,
                step=self.step,
            )
        )
        self.enter(RunState.FAILED)
