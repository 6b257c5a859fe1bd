"""Runs and uploads of other processes, as a console sees and steers them: by the run record and the control socket."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from pathlib import Path

import msgspec
import psutil

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.upload.job import UploadSummary
from ossconsole.dataset.upload.progress import Phase, UploadProgress
from ossconsole.telemetry import events
from ossconsole.telemetry.events import Event, RunState
from ossconsole.telemetry.runs import RecordReader, record_path
from ossconsole.training.remote import control
from ossconsole.training.remote.control import Command, ControlError, Look, UploadAction, UploadReport

DRAIN_BUDGET_S = 0.05
"""How long one `drain` reads at most: a long run's record is caught up with in pieces, so that keys keep working."""

_LOOK_S = 0.5


class _Process:
    """Another process: whether it lives, and a thread that asks it without keeping the caller waiting."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.problems: deque[ConsoleError] = deque(maxlen=100)
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._asking: threading.Thread | None = None
        try:
            self._process: psutil.Process | None = psutil.Process(pid)
        except psutil.NoSuchProcess:
            self._process = None

    @property
    def alive(self) -> bool:
        """Also False when its number has been given to another process."""
        try:
            process = self._process
            return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def send(self, command: Command) -> None:
        """Has it carried out soon; where that fails, the reason is among `problems`."""
        self._commands.put(command)
        if self._asking is None:
            self._asking = threading.Thread(target=self._work, name=f"ask-{self.pid}", daemon=True)
            self._asking.start()

    def _work(self) -> None:
        while True:
            self._ask(self._commands.get())

    def _ask(self, command: Command) -> None:
        try:
            control.ask(self.pid, command)
        except ControlError as error:
            self.problems.append(error)


class AttachedRun:
    """A run that another process does; it goes on when this console leaves. A handle like TrainingRun.

    Raises RecordError where its record cannot be read.
    """

    elsewhere = True

    def __init__(self, run: str, pid: int, *, record_dir: Path | None = None) -> None:
        self.id = run
        self.pid = pid
        self._process = _Process(pid)
        self._reader = RecordReader(record_path(run, record_dir))
        self._state = RunState.STARTING
        self._step = 0
        self._over = False

    @property
    def state(self) -> RunState:
        """As of the last `drain`."""
        return self._state

    @property
    def alive(self) -> bool:
        """False once `drain` has given the run's last event, or the end of its process."""
        return not self._over

    @property
    def record_path(self) -> Path:
        return self._reader.path

    def drain(self) -> list[Event]:
        """The events since the last call, as many as can be read within DRAIN_BUDGET_S."""
        if self._over:
            return []
        lived = self._process.alive  # looked at first: what it wrote last is read below
        found = self._read()
        for event in found:
            self._follow(event)
        found += self._problems()
        if not found and (not lived or self._state.final):
            found = self._end()
        return found

    def pause(self) -> None:
        self._process.send(control.Pause(run=self.id))

    def resume(self) -> None:
        self._process.send(control.Resume(run=self.id))

    def stop(self) -> None:
        self._process.send(control.Stop(run=self.id))

    def checkpoint(self) -> None:
        self._process.send(control.SaveCheckpoint(run=self.id))

    def set_lr(self, lr: float) -> None:
        self._process.send(control.SetLr(run=self.id, lr=lr))

    def switch(self, kind: EndpointKind, reason: str = "asked for") -> None:
        self._process.send(control.Switch(run=self.id, endpoint=kind, reason=reason))

    def _read(self) -> list[Event]:
        found: list[Event] = []
        until = time.monotonic() + DRAIN_BUDGET_S
        while more := self._reader.poll():
            found += more
            if time.monotonic() >= until:
                break
        return found

    def _follow(self, event: Event) -> None:
        if isinstance(event, events.State | events.Summary):
            self._state = event.state
        elif isinstance(event, events.Step):
            self._step = event.step

    def _problems(self) -> list[Event]:
        """What became of commands that failed, for the event log."""
        found: list[Event] = []
        while self._process.problems:
            error = self._process.problems.popleft()
            found.append(
                events.WarningEvent(time=time.time(), message=error.message, remedy=error.remedy, step=self._step)
            )
        return found

    def _end(self) -> list[Event]:
        """The last events: where the process went without a word, that is told here."""
        self._over = True
        found = self._reader.finish()
        for event in found:
            self._follow(event)
        self._reader.close()
        if not self._state.final:
            self._state = RunState.FAILED
            now = time.time()
            message = f"Process {self.pid}, which did the run, is gone without having ended it."
            remedy = f"Go on from its last checkpoint with --resume; the record is {self.record_path}."
            found.append(events.ErrorEvent(time=now, message=message, remedy=remedy, step=self._step))
            found.append(events.State(time=now, state=RunState.FAILED, step=self._step))
        return found


class AttachedUpload:
    """An upload that another process does, seen twice a second. The part of UploadJob that screens use."""

    elsewhere = True

    def __init__(self, pid: int, report: UploadReport) -> None:
        self.pid = pid
        self.error: ConsoleError | None = None
        self._process = _Process(pid)
        self._report = report
        self._ended = threading.Event()
        threading.Thread(target=self._watch, name=f"watch-upload-{pid}", daemon=True).start()

    @property
    def alive(self) -> bool:
        return not self._ended.is_set()

    @property
    def source(self) -> str:
        return self._report.source

    def progress(self) -> UploadProgress:
        return self._report.progress

    def summary(self) -> UploadSummary:
        return self._report.summary

    def pause(self) -> None:
        self._process.send(UploadAction(action="pause"))

    def resume(self) -> None:
        self._process.send(UploadAction(action="resume"))

    def cancel(self) -> None:
        self._process.send(UploadAction(action="cancel"))

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits for the end; False on timeout."""
        return self._ended.wait(timeout_s)

    def _watch(self) -> None:
        while self._process.alive:
            time.sleep(_LOOK_S)
            try:
                report = control.ask(self.pid, Look()).report
            except ControlError:
                continue  # stopped, or ending; a process that is gone ends the loop
            if report is None or report.upload is None:
                break
            self._report = report.upload
            if self._report.progress.phase.final:
                break
        self._end()

    def _end(self) -> None:
        progress = self._report.progress
        if not progress.phase.final:
            self.error = ConsoleError(
                f"Process {self.pid}, which did the upload, is gone without having ended it.",
                remedy="Start the upload again: it goes on where it stopped.",
            )
            gone = msgspec.structs.replace(progress, phase=Phase.FAILED, error=str(self.error))
            self._report = msgspec.structs.replace(self._report, progress=gone)
        self._ended.set()
