"""A command that is run when a run ends, stalls, diverges or fails: for chat, webhooks, and other programs."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import shlex
import subprocess
import threading
import time
from collections.abc import Callable

import msgspec

from ossconsole.config.credentials import without_credentials
from ossconsole.config.errors import SettingsError
from ossconsole.config.files import encode_json
from ossconsole.config.text import StrEnum
from ossconsole.telemetry import events
from ossconsole.telemetry.events import Event, RunState
from ossconsole.telemetry.view import STALLED_AFTER_S

log = logging.getLogger(__name__)

_TIMEOUT_S = 30.0  # of the command
_POLL_S = 1.0


class Occasion(StrEnum):
    """When the command is run."""

    END = "end"
    STALL = "stall"
    DIVERGENCE = "divergence"
    FAILURE = "failure"


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON that the command gets on its standard input. `summary` is null before the end."""

    occasion: Occasion
    time: float
    run: str
    bucket: str
    step: int
    message: str
    summary: events.Summary | None = None


class EventHook:
    """Takes the events of a run and runs `command` with a Notice on each occasion, in a thread of its own.

    The command gets no credentials in its environment. It must not hold up the run: one that fails, or takes more than
    30 s, is reported through `warn` once.
    """

    def __init__(
        self,
        command: str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises SettingsError where `command` is not a command line."""
        try:
            self._command = shlex.split(command)
        except ValueError as error:
            raise SettingsError(f"{command!r} is not a command line: {error}.", remedy=_REMEDY) from error
        if not self._command:
            raise SettingsError("The command of --on-event is empty.", remedy=_REMEDY)
        self.warn: Callable[[str, str], None] = lambda message, remedy: log.warning("%s %s", message, remedy)
        self._clock = clock
        self._lock = threading.Lock()
        self._run: events.Run | None = None
        self._state = RunState.STARTING
        self._step = 0
        self._heard = clock()
        self._stalled = self._warned = False
        self._error = ""
        self._notices: queue.SimpleQueue[Notice | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="on-event", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        """Takes one event. Samples of the machine, which come every second whatever the run does, are left out."""
        if isinstance(event, events.Telemetry):
            return
        with self._lock:
            self._heard = self._clock()
            self._stalled = False
        match event:
            case events.Run():
                self._run = event
            case events.Step():
                self._step = event.step
                if event.loss is None:
                    self._notify(Occasion.DIVERGENCE, f"The loss of step {event.step} is not a finite number.")
            case events.ErrorEvent():
                self._error = event.message
            case events.State():
                self._state = event.state
                if event.state is RunState.FAILED:
                    self._notify(Occasion.FAILURE, self._error or "The run failed.")
            case events.Summary():
                self._notify(Occasion.END, f"The run is {event.state}.", event)

    def check_stall(self) -> None:
        """Notifies once where a running run has been silent for too long."""
        with self._lock:
            silent = self._clock() - self._heard
            if self._state is not RunState.RUNNING or self._stalled or silent < STALLED_AFTER_S:
                return
            self._stalled = True
        self._notify(Occasion.STALL, f"No step has ended for {silent:.0f} s.")

    def close(self) -> None:
        """Waits until the command has run for all occasions so far, 30 s each at most."""
        self._notices.put(None)
        self._thread.join()

    def _notify(self, occasion: Occasion, message: str, summary: events.Summary | None = None) -> None:
        run = self._run
        self._notices.put(
            Notice(
                occasion=occasion,
                time=time.time(),
                run=run.run if run is not None else "",
                bucket=run.bucket if run is not None else "",
                step=self._step,
                message=message,
                summary=summary,
            )
        )

    def _work(self) -> None:
        while True:
            with contextlib.suppress(queue.Empty):
                notice = self._notices.get(timeout=_POLL_S)
                if notice is None:
                    return
                self._execute(notice)
            self.check_stall()

    def _execute(self, notice: Notice) -> None:
        try:
            # Not a pipe, which a process that the command leaves in the background holds open; and no disk, which may
            # be full.
            with os.fdopen(os.memfd_create("on-event"), "w+b") as errors:
                done = subprocess.run(  # noqa: S603 - the user's own command
                    self._command,
                    input=encode_json(notice),
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    env=without_credentials(),
                    timeout=_TIMEOUT_S,
                    check=False,
                )
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip().splitlines()
        except OSError as error:
            self._report(f"it could not be started: {error.strerror}")
        except subprocess.TimeoutExpired:
            self._report(f"it did not end within {_TIMEOUT_S:.0f} s")
        else:
            if done.returncode:
                self._report(f"exit code {done.returncode}{f', {said[-1][:200]}' if said else ''}")

    def _report(self, problem: str) -> None:
        if not self._warned:
            self._warned = True
            self.warn(f"The command of --on-event failed: {problem}.", _REMEDY)


_REMEDY = "It is run without a shell; for pipes use: --on-event \"sh -c '…'\""
