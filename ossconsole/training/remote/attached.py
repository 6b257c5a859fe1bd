"""Handles for runs and uploads of other processes, through the run record and the control socket."""

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
from ossconsole.telemetry.runs import RecordError, RecordReader, record_path
from ossconsole.training.remote import control
from ossconsole.training.remote.control import Command, ControlError, GetReport, UploadAction, UploadReport

PORTION = 500
"""About so many events for one `drain`: a long record takes a minute, and keys must not wait for it."""

_POLL_S = 0.5


class _Process:
    """Another process: whether it is alive, and a thread that sends it commands."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.problems: deque[ConsoleError] = deque(maxlen=100)
        self._commands: queue.SimpleQueue[Command | threading.Event] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        try:
            self._process: psutil.Process | None = psutil.Process(pid)
        except psutil.NoSuchProcess:
            self._process = None

    @property
    def alive(self) -> bool:
        """False also when another process has its pid now."""
        try:
            process = self._process
            return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def send(self, command: Command) -> None:
        """Queues a command; an error is appended to `problems`."""
        self._commands.put(command)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"ask-{self.pid}", daemon=True)
            self._thread.start()

    def flush(self, timeout_s: float) -> None:
        """Waits until every command so far was sent, at most `timeout_s`: the thread ends with this process."""
        if self._thread is not None:
            sent = threading.Event()
            self._commands.put(sent)
            sent.wait(timeout_s)

    def _work(self) -> None:
        while True:
            command = self._commands.get()
            if isinstance(command, threading.Event):
                command.set()
                continue
            try:
                control.ask(self.pid, command)
            except ControlError as error:
                self.problems.append(error)


class AttachedRun:
    """A run of another process, with the interface of TrainingRun; it continues when this console exits.

    Raises RecordError when its record cannot be read.
    """

    is_remote = True
    reading: float | None = None
    """How much of the record was read, 0 to 1, where `drain` has not come to its end yet; else None."""
    refused = 0
    """The number of requests that its process refused or did not answer."""

    def __init__(self, run: str, pid: int) -> None:
        self.id = run
        self.pid = pid
        self._process = _Process(pid)
        self._reader = RecordReader(record_path(run))
        self._state = RunState.STARTING
        self._step = 0
        self._over = False
        self._unreadable = False

    @property
    def state(self) -> RunState:
        """As of the last `drain`."""
        return self._state

    @property
    def alive(self) -> bool:
        """False once `drain` has returned the last event of the run or of its process."""
        return not self._over

    @property
    def record_path(self) -> Path:
        """The JSONL file with the run's events."""
        return self._reader.path

    def drain(self) -> list[Event]:
        """The events since the last call, about PORTION at most."""
        if self._over:
            return []
        was_alive = self._process.alive  # checked first: its last events are read below
        new = self._read()
        for event in new:
            self._follow(event)
        new += self._problems()
        if not new and (not was_alive or self._state.final):
            new = self._end()
        return new

    def pause(self) -> None:
        """Requests a pause after the step under way."""
        self._process.send(control.Pause(run=self.id))

    def resume(self) -> None:
        """Ends a pause."""
        self._process.send(control.Resume(run=self.id))

    def stop(self) -> None:
        """Requests the end of the run after the step under way, with a checkpoint."""
        self._process.send(control.Stop(run=self.id))

    def checkpoint(self) -> None:
        """Requests a checkpoint after the step under way."""
        self._process.send(control.SaveCheckpoint(run=self.id))

    def profile(self) -> None:
        """Requests a profile of the next steps."""
        self._process.send(control.ProfileSteps(run=self.id))

    def set_lr(self, lr: float) -> None:
        """Changes the peak learning rate from the next step on."""
        self._process.send(control.SetLr(run=self.id, lr=lr))

    def switch(self, kind: EndpointKind, reason: str = "requested") -> None:
        """Reads future batches through `kind`."""
        self._process.send(control.SwitchEndpoint(run=self.id, endpoint=kind, reason=reason))

    def flush(self, timeout_s: float) -> None:
        """Waits until every request so far was sent, at most `timeout_s`."""
        self._process.flush(timeout_s)

    def _read(self) -> list[Event]:
        new: list[Event] = []
        self.reading = None
        try:
            while more := self._reader.poll():
                self._unreadable = False
                new += more
                if len(new) >= PORTION:
                    self.reading = self._reader.read_share
                    break
        except RecordError as error:  # the run continues; its file server may answer again
            if not self._unreadable:
                self._unreadable = True
                new.append(events.WarningEvent(time=time.time(), message=error.message, step=self._step))
        return new

    def _follow(self, event: Event) -> None:
        if isinstance(event, events.State | events.Summary):
            self._state = event.state
        elif isinstance(event, events.Step):
            self._step = event.step

    def _problems(self) -> list[Event]:
        """Warnings about commands that failed, for the event log."""
        warnings: list[Event] = []
        while self._process.problems:
            error = self._process.problems.popleft()
            self.refused += 1
            warnings.append(
                events.WarningEvent(time=time.time(), message=error.message, remedy=error.remedy, step=self._step)
            )
        return warnings

    def _end(self) -> list[Event]:
        """The last events, with an error if the process exited before the run ended."""
        self._over = True
        last = self._reader.finish()
        for event in last:
            self._follow(event)
        self._reader.close()
        if not self._state.final:
            self._state = RunState.FAILED
            now = time.time()
            message = f"The process running this job ({self.pid}) exited unexpectedly."
            remedy = f"Resume from its last checkpoint with --resume; the record is {self.record_path}."
            last.append(events.ErrorEvent(time=now, message=message, remedy=remedy, step=self._step))
            last.append(events.State(time=now, state=RunState.FAILED, step=self._step))
        return last


class AttachedUpload:
    """An upload of another process, polled twice a second, with the part of UploadJob's interface that screens use."""

    is_remote = True

    def __init__(self, pid: int, report: UploadReport) -> None:
        self.pid = pid
        self.error: ConsoleError | None = None
        self._process = _Process(pid)
        self._report = report
        self._ended = threading.Event()
        threading.Thread(target=self._watch, name=f"watch-upload-{pid}", daemon=True).start()

    @property
    def alive(self) -> bool:
        """False once the upload or its process has ended."""
        return not self._ended.is_set()

    @property
    def source(self) -> str:
        """The path or URI of the source."""
        return self._report.source

    @property
    def target(self) -> str:
        """The URI of the dataset; "" where the process does not say it."""
        return self._report.target

    def progress(self) -> UploadProgress:
        """The progress as of the last poll."""
        return self._report.progress

    def summary(self) -> UploadSummary:
        """The summary as of the last poll."""
        return self._report.summary

    def pause(self) -> None:
        """Requests a pause."""
        self._process.send(UploadAction(action="pause"))

    def resume(self) -> None:
        """Ends a pause."""
        self._process.send(UploadAction(action="resume"))

    def set_parallelism(self, number: int) -> None:
        """Requests another number of samples sent simultaneously."""
        self._process.send(UploadAction(action="parallelism", number=number))

    def set_bandwidth(self, bytes_per_s: float | None) -> None:
        """Requests another cap of the bytes sent per second; None for none."""
        self._process.send(UploadAction(action="bandwidth", number=bytes_per_s))

    def cancel(self) -> None:
        """Requests the end of the upload; it can be resumed later."""
        self._process.send(UploadAction(action="cancel"))

    def flush(self, timeout_s: float) -> None:
        """Waits until every request so far was sent, at most `timeout_s`."""
        self._process.flush(timeout_s)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits for the end; False on timeout."""
        return self._ended.wait(timeout_s)

    def _watch(self) -> None:
        while self._process.alive:
            time.sleep(_POLL_S)
            try:
                report = control.ask(self.pid, GetReport()).report
            except ControlError:
                continue  # suspended, or exiting; the loop ends with the process
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
                f"The process of this upload ({self.pid}) exited unexpectedly.",
                remedy="Start the upload again: it resumes where it stopped.",
            )
            gone = msgspec.structs.replace(progress, phase=Phase.FAILED, error=str(self.error))
            self._report = msgspec.structs.replace(self._report, progress=gone)
        self._ended.set()
